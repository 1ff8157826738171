"""Every config of configs/finetune, applied to a run of its family's published size, and every shipped task."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import jax
import pytest

from t5x_lite import config as configuration
from t5x_lite import tasks
from t5x_lite.adapt import ADAPTATIONS
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.evaluate.metrics import MARGIN_METRICS, METRICS
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives import TextToText
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
BASE_CONFIGS = {"bert": "bert/base", "dpr": "bert/base", "sbert": "bert/base", "t5": "t5/base", "gpt": "gpt1/117m"}
"""The published model that configs with this prefix adapt."""
NAMES = sorted(
    path.stem for path in (CONFIGS / "finetune").glob("*.yaml") if path.stem.partition("_")[0] in BASE_CONFIGS
)
METRIC_VALUES = {"squad": {"exact_match", "f1"}, "rouge": {"rouge1", "rouge2", "rougeLsum"}}
"""Names of a metric's values, where they differ from the name of the metric."""

ConfigLoader: TypeAlias = Callable[[str], RunConfig]


@pytest.fixture(scope="module")
def load_config(tmp_path_factory: pytest.TempPathFactory) -> ConfigLoader:
    """A function that loads a config of configs/finetune. The run that it adapts consists of a config only."""
    runs = tmp_path_factory.mktemp("runs")
    for prefix, base_config in BASE_CONFIGS.items():
        (runs / prefix).mkdir()
        resolved = configuration.dump(configuration.load(CONFIGS / f"{base_config}.yaml"))
        (runs / prefix / "config.yaml").write_text(resolved)

    def load(name: str) -> RunConfig:
        prefix = name.partition("_")[0]
        return configuration.load(CONFIGS / "finetune" / f"{name}.yaml", [f"adapt.from={runs / prefix}"])

    return load


@pytest.mark.parametrize("name", NAMES)
def test_a_config_fits_its_published_model(name: str, load_config: ConfigLoader) -> None:
    config = load_config(name)
    has_head = name.startswith(("bert", "dpr", "sbert", "gpt")) and not name.endswith("_text")
    assert isinstance(config.objective, TextToText) != has_head
    assert (config.model.head is not None) == has_head
    _, task, value_name = config.checkpoint.best_metric.split("/")
    assert task in config.tasks
    metrics = tasks.find_task(task).metrics
    assert any(value_name in METRIC_VALUES.get(metric, {metric}) for metric in metrics)
    assert config.eval.every_steps == config.checkpoint.every_steps <= config.train.steps


def test_the_tagger_on_frozen_features_has_the_parameters_of_its_parts(
    load_config: ConfigLoader, tmp_path: Path
) -> None:
    """By hand: two BiLSTM layers of 200 cells and one bias a gate, a map to 768, 9 tags and their transitions."""
    bert = load_config("bert_conll2003")
    source = CONFIGS / "finetune/taglm_conll2003.yaml"
    (tmp_path / "config.yaml").write_text(configuration.dump(configuration.load(CONFIGS / "bert/base.yaml")))
    config = configuration.load(source, [f"adapt.from={tmp_path}"])
    cells = 200
    lstm = sum(2 * 4 * cells * (width + cells + 1) for width in (768, 2 * cells))
    added = lstm + (2 * cells + 1) * 768 + 9 * 9
    assert model_spec(config.model).parameters - model_spec(bert.model).parameters == added


def test_the_tagger_on_elmo_has_the_parameters_of_its_parts(tmp_path: Path) -> None:
    """By hand: ELMo without its softmax, BiLSTM layers of 200 and of 100 cells, a map to 1024, tags and transitions."""
    elmo = configuration.load(CONFIGS / "elmo/original.yaml")
    (tmp_path / "config.yaml").write_text(configuration.dump(elmo))
    config = configuration.load(CONFIGS / "finetune/elmo_conll2003.yaml", [f"adapt.from={tmp_path}"])
    softmax = 793_471 * 513
    lstm = sum(2 * 4 * cells * (width + cells + 1) for width, cells in ((1024, 200), (400, 100)))
    added = lstm + 201 * 1024 + 1025 * 9 + 9 * 9
    assert model_spec(config.model).parameters == model_spec(elmo.model).parameters - softmax + added
    spec = model_spec(config.model, config.method.surgery)
    assert spec.shapes["encoder"]["stack"]["mix"]["weights"].shape == (3,)
    trained = config.trainable_split(spec.axes).trained(spec.shapes)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == added + 3 + 1
    assert config.train.steps == 25 * 14_041 // config.train.batch_size
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.yaml").write_text(configuration.dump(configuration.load(CONFIGS / "bert/base.yaml")))
    with pytest.raises(UserError, match=r"adapt\.new_tokenizer is for model\.characters"):
        configuration.load(CONFIGS / "finetune/taglm_conll2003.yaml", [f"adapt={{from: {bert}, new_tokenizer: true}}"])


def test_the_parameters_of_coves_translation_model_by_hand(tmp_path: Path) -> None:
    """Two layers of 300 cells a direction, two of 600, attention with biases, and two matrices of the vocabulary."""
    translation = configuration.load(CONFIGS / "finetune/cove_mt.yaml", ["data.files=x.{}"])
    width = 600
    encoder = 2 * 2 * 4 * 300 * (width + 300 + 1)
    decoder = 2 * 4 * width * (2 * width + 1) + 4 * width * (width + 1)
    vocab = 100_000
    assert model_spec(translation.model).parameters == vocab * width + encoder + decoder + vocab * (width + 1)
    (tmp_path / "config.yaml").write_text(configuration.dump(translation))
    tagger = configuration.load(CONFIGS / "finetune/cove_conll2003.yaml", [f"adapt.from={tmp_path}"])
    cells = 200
    lstm = sum(2 * 4 * cells * (inputs + cells + 1) for inputs in (width, 2 * cells))
    head = lstm + (2 * cells + 1) * width + (width + 1) * 9 + 9 * 9
    spec = model_spec(tagger.model, tagger.method.surgery)
    assert spec.parameters == vocab * width + encoder + head
    trained = tagger.trainable_split(spec.axes).trained(spec.shapes)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == head


def test_the_parameters_of_dai_and_les_lstm_by_hand(tmp_path: Path) -> None:
    """1024 cells read 512 channels, a map to 512, and an output matrix; the classifier adds two scores."""
    autoencoder = configuration.load(CONFIGS / "finetune/sa_lstm.yaml", ["data.files=x"])
    lstm = 4 * 1024 * (512 + 1024 + 1)
    vocab = 30_000
    model = vocab * 512 + lstm + (1024 + 1) * 512 + (512 + 1) * vocab
    assert model_spec(autoencoder.model).parameters == model
    (tmp_path / "config.yaml").write_text(configuration.dump(autoencoder))
    classifier = configuration.load(CONFIGS / "finetune/sa_lstm_imdb.yaml", [f"adapt.from={tmp_path}"])
    assert model_spec(classifier.model).parameters == model + 2 * 512 + 2
    assert classifier.train.steps == 10 * 25_000 // 64
    language_model = ["objective=causal", "data.packing=stream", "data.end_of_document=true", "data.files=x"]
    assert configuration.load(CONFIGS / "finetune/sa_lstm.yaml", language_model).model == autoencoder.model


def test_ulmfits_stages_fit_its_language_model(tmp_path: Path) -> None:
    """Three pooled states of 400 channels are scored as one of two labels; the language model has no head."""
    resolved = configuration.dump(configuration.load(CONFIGS / "rnn/awd_lstm.yaml"))
    (tmp_path / "config.yaml").write_text(resolved)
    files = ["data.files=x"]
    overrides = [f"adapt.from={tmp_path}", *files]
    language_model = configuration.load(CONFIGS / "finetune/ulmfit_lm.yaml", overrides)
    assert language_model.data.order == "consecutive"
    classifier = configuration.load(CONFIGS / "finetune/ulmfit_imdb.yaml", overrides)
    added = model_spec(classifier.model).parameters - model_spec(language_model.model).parameters
    output_bias = 10_000
    assert added in {3 * 400 * 2 + 2, 3 * 400 * 2 + 2 - output_bias}


def test_instructions_are_learnt_by_a_language_model_in_several_wordings(tmp_path: Path) -> None:
    """Wei et al. 2022, §2.1: each task has several templates, and counts as at most 3000 examples."""
    (tmp_path / "config.yaml").write_text(configuration.dump(configuration.load(CONFIGS / "llama3/3.2_1b.yaml")))
    config = configuration.load(CONFIGS / "finetune/flan.yaml", [f"adapt.from={tmp_path}"])
    assert isinstance(config.objective, TextToText)
    assert config.data.mixture_limit == 3000
    for name in config.tasks:
        assert len(set(tasks.find_task(name).input_forms)) >= 3


def read_stated_epochs(name: str) -> list[tuple[int, int, int]]:
    """Return (epochs, examples, batch size) of each statement `3 epochs of 1,000 examples in batches of 32`."""
    comment_lines = re.findall(r"^# (.*)", (CONFIGS / "finetune" / f"{name}.yaml").read_text(), re.M)
    statements = re.findall(r"(\d+) epochs? of ([\d,]+) \w+ in batches of (\d+)", " ".join(comment_lines))
    return [(int(epochs), int(examples.replace(",", "")), int(size)) for epochs, examples, size in statements]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_trains_the_epochs_that_its_comment_states(name: str, load_config: ConfigLoader) -> None:
    config = load_config(name)
    for epochs, examples, batch_size in read_stated_epochs(name):
        assert config.train.batch_size == batch_size
        assert config.train.steps == epochs * examples // batch_size


def test_the_comments_of_most_configs_state_epochs() -> None:
    assert sum(len(read_stated_epochs(name)) for name in NAMES) >= 17


def test_light_methods_train_the_number_of_parameters_counted_by_hand(load_config: ConfigLoader) -> None:
    """BERT Base has 12 layers of width 768, with two norms in each layer and one after the embedding."""
    head = 2 * 768 + 2
    expected = {
        "lora": 12 * 2 * 2 * 8 * 768 + head,
        "houlsby": 12 * 2 * (2 * 64 * 768 + 64 + 768) + 12 * 4 * 768 + 2 * 768 + head,
        "head": head,
        "features": head,
    }
    for method, count in expected.items():
        config = load_config(f"bert_sst2_{method}")
        spec = model_spec(config.model, config.method.surgery)
        trained = config.trainable_split(spec.axes).trained(spec.shapes)
        assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == count, method


def test_every_family_and_method_has_its_config() -> None:
    glue = {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}
    assert {f"bert_{task}" for task in glue | {"squad", "squad2", "conll2003", "copa"}} <= set(NAMES)
    assert {"sbert_nli", "sbert_stsb", "gpt_reward", "t5_glue", "t5_superglue", "t5_wmt"} <= set(NAMES)
    assert {"lora", "houlsby", "bitfit", "head", "features", "unfreeze", "prompt"} <= ADAPTATIONS.keys()


@pytest.mark.parametrize("name", tasks.names())
def test_a_shipped_task_is_complete(name: str) -> None:
    task = tasks.find_task(name)
    assert set(task.metrics) <= METRICS.keys() | MARGIN_METRICS.keys()
    from_rewards = {"verified", "prompts", "arithmetic", "arithmetic_reward"}
    from_passages = {"retrieval", "retrieval_pairs", "dpr", "rag"}
    assert task.tfds or name in {"preference", "reward", "reward_prompt"} | from_rewards | from_passages
    form = "text" if task.inputs else "head"
    assert tasks.objective_settings((name,), form, "decoder")
