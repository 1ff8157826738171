"""Every shipped quickstart as an export: Transformers computes the same, or is said to lack certain components."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import t5x_lite  # noqa: E402
from t5x_lite import config as configuration  # noqa: E402
from t5x_lite.api import Model  # noqa: E402
from t5x_lite.config import RunConfig  # noqa: E402
from t5x_lite.convert.huggingface import export_hf  # noqa: E402
from t5x_lite.convert.imported_run import write_run  # noqa: E402
from t5x_lite.errors import UserError  # noqa: E402
from t5x_lite.models.spec import init_params  # noqa: E402
from t5x_lite.objectives.supervised import Supervised  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402

CONFIGS = REPOSITORY / "configs"
VOCAB = 96
SIZES = ("model.embed=48", "model.heads=2", "model.mlp=64", f"model.vocab={VOCAB}")
EXPORTED = [
    ("quickstart", "Qwen3ForCausalLM"),
    ("quickstart_local", "Qwen3ForCausalLM"),
    ("quickstart_moe", "Qwen3MoeForCausalLM"),
    ("quickstart_t5", "T5ForConditionalGeneration"),
    ("quickstart_bert", "EuroBertForMaskedLM"),
    ("finetune/quickstart_encoder", "BertForMaskedLM"),
    ("finetune/quickstart_contrastive", "BertModel"),
    ("finetune/quickstart_scratch", "BertForSequenceClassification"),
    ("finetune/quickstart_retrieval", "BertModel"),
]
"""Quickstarts, and their class in Transformers."""
POOLER = ("objective.classify.transform=true",)
"""The head of a classifier of Transformers (docs/guides/convert.md)."""
FASTER_T5 = ("model.query_key_norm=head", "model.attention_scale=null")
"""What configs/quickstart_t5.yaml names as the way to a lower loss, which no T5 of Transformers has."""
MODEL_OF_ANOTHER_RUN = {"finetune/quickstart"}
"""Configs that adapt a run, whose model they take."""


def load_config(name: str, overrides: tuple[str, ...] = ()) -> RunConfig:
    return configuration.load(CONFIGS / f"{name}.yaml", [*SIZES, *overrides])


def make_run(config: RunConfig, folder: Path) -> None:
    """Write a run of the config with random weights: those of a fresh model make layers that do nothing."""
    rng = np.random.default_rng(0)

    def add_noise(values: jax.Array) -> jax.Array:
        return values + 0.1 * rng.normal(size=values.shape).astype(np.float32)

    params = jax.tree.map(add_noise, init_params(config.model, jax.random.key(0)))
    objective = config.require_objective()
    write_run(folder, config.model, {objective.name: objective.model_dump(mode="json")}, params, None)


def test_every_quickstart_is_expected_to_be_exported() -> None:
    paths = [*CONFIGS.glob("quickstart*.yaml"), *CONFIGS.glob("finetune/quickstart*.yaml")]
    names = {str(path.relative_to(CONFIGS).with_suffix("")) for path in paths}
    assert names == {name for name, _ in EXPORTED} | MODEL_OF_ANOTHER_RUN


def states(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Return the states of an encoder without a head."""
    module = model.spec.model(model.params)
    return np.asarray(module(tokens, segment_ids=np.ones_like(tokens)))


def scores(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Return the scores of a classifier."""
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens)}
    objective = model.config.require_objective()
    assert isinstance(objective, Supervised)
    return np.asarray(objective.scores(model.spec.model(model.params), batch)["scores"])


@pytest.mark.parametrize(("name", "architecture"), EXPORTED)
def test_transformers_computes_the_same_from_an_export(name: str, architecture: str, tmp_path: Path) -> None:
    config = load_config(name, POOLER if architecture.endswith("Classification") else ())
    make_run(config, tmp_path / "run")
    export_hf(tmp_path / "run", tmp_path / "out")
    theirs = getattr(transformers, architecture).from_pretrained(tmp_path / "out").eval()
    assert theirs.config.architectures == [architecture]
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, VOCAB, (2, 100))
    inputs = {"input_ids": torch.tensor(tokens)}
    model = t5x_lite.load(tmp_path / "run")
    if config.model.family == "encoder_decoder":
        decoder_tokens = np.concatenate([np.zeros((2, 1), int), rng.integers(3, VOCAB, (2, 9))], axis=1)
        inputs["decoder_input_ids"] = torch.tensor(decoder_tokens)
        ours = model.logits(tokens, decoder_tokens)
    elif config.model.outputs:
        ours = model.logits(tokens)
    elif architecture == "BertModel":
        ours = states(model, tokens)
    else:
        ours = scores(model, tokens)
    with torch.no_grad():
        outputs = theirs(**inputs)
    expected = outputs.last_hidden_state if architecture == "BertModel" else outputs.logits
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


def test_a_refusal_names_every_component_that_no_model_type_has(tmp_path: Path) -> None:
    make_run(load_config("quickstart_t5", FASTER_T5), tmp_path / "run")
    with pytest.raises(UserError) as raised:
        export_hf(tmp_path / "run", tmp_path / "out")
    missing = re.search(r"none of family \w+ has (.*?); nearest is \w+, except for", str(raised.value))
    assert missing is not None, raised.value
    assert missing[1] == "query_key_norm 'head'"  # BART has attention_scale null too
    assert not (tmp_path / "out").exists()
