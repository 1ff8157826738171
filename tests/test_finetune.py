"""Every config of configs/finetune, over a run of the published size of its family, and every shipped task."""

import re
from collections.abc import Callable

import jax
import pytest

from t5x_lite import config as configuration
from t5x_lite import tasks
from t5x_lite.adapt import ADAPTATIONS
from t5x_lite.evaluate.metrics import METRICS
from t5x_lite.models.transformer import model_spec
from t5x_lite.objectives import TextToText
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
FAMILIES = {"bert": "bert/base", "sbert": "bert/base", "t5": "t5/base", "gpt": "gpt1/117m"}
FILES = sorted(path.stem for path in (CONFIGS / "finetune").glob("*.yaml") if path.stem.split("_")[0] in FAMILIES)
KEYS = {"squad": {"exact_match", "f1"}, "rouge": {"rouge1", "rouge2", "rougeLsum"}}
"""Values of metrics that are not called as the metric is."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], configuration.RunConfig]:
    """Loads a config of configs/finetune over a run directory of its family, of which it reads the config alone."""
    runs = tmp_path_factory.mktemp("runs")
    for name, published in FAMILIES.items():
        (runs / name).mkdir()
        (runs / name / "config.yaml").write_text(configuration.dump(configuration.load(CONFIGS / f"{published}.yaml")))

    def load(name: str) -> configuration.RunConfig:
        path = CONFIGS / "finetune" / f"{name}.yaml"
        return configuration.load(path, [f"adapt.from={runs / name.split('_', maxsplit=1)[0]}"])

    return load


@pytest.mark.parametrize("name", FILES)
def test_a_config_fits_a_published_model(name: str, loaded: Callable[[str], configuration.RunConfig]) -> None:
    config = loaded(name)
    by_head = name.startswith(("bert", "sbert", "gpt")) and not name.endswith("_text")
    assert isinstance(config.objective, TextToText) != by_head
    assert (config.model.head is not None) == by_head
    _, task, key = config.checkpoint.best_metric.split("/")
    assert task in config.tasks
    assert any(key in KEYS.get(metric, {metric}) for metric in tasks.find_task(task).metrics)
    assert config.eval.every_steps == config.checkpoint.every_steps <= config.train.steps
    told = " ".join(re.findall(r"^# (.*)", (CONFIGS / "finetune" / f"{name}.yaml").read_text(), re.M))
    for epochs, examples, batch in re.findall(r"(\d+) epochs? of ([\d,]+) \w+ by (\d+)", told):
        assert config.train.batch_size == int(batch)
        assert config.train.steps == int(epochs) * int(examples.replace(",", "")) // int(batch)


def test_light_methods_train_what_is_counted_by_hand(
    loaded: Callable[[str], configuration.RunConfig],
) -> None:
    """By hand: 12 layers of 768, two norms in each and one after the embedding."""
    head = 2 * 768 + 2
    expected = {
        "lora": 12 * 2 * 2 * 8 * 768 + head,
        "houlsby": 12 * 2 * (2 * 64 * 768 + 64 + 768) + 12 * 4 * 768 + 2 * 768 + head,
        "head": head,
        "features": head,
    }
    for name, count in expected.items():
        config = loaded(f"bert_sst2_{name}")
        plan = model_spec(config.model, config.method.surgery)
        shapes = config.parts(plan.axes).trained(plan.shapes)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count, name


def test_every_family_and_method_has_its_config() -> None:
    glue = {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}
    assert {f"bert_{task}" for task in glue | {"squad", "squad2", "conll2003", "copa"}} <= set(FILES)
    assert {"sbert_nli", "sbert_stsb", "gpt_reward", "t5_glue", "t5_superglue", "t5_wmt"} <= set(FILES)
    assert {"lora", "houlsby", "bitfit", "head", "features", "unfreeze", "prompt"} <= ADAPTATIONS.keys()


@pytest.mark.parametrize("name", tasks.names())
def test_a_shipped_task_is_whole(name: str) -> None:
    task = tasks.find_task(name)
    assert set(task.metrics) <= METRICS.keys()
    assert task.tfds or name == "reward"
    form = tasks.objective_settings((name,), "text" if task.inputs else "head", "decoder")
    assert form
