"""Adapters and their fusion against AdapterHub's package: equal outputs for equal weights, see `adapterhub.py`."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import t5x_lite  # noqa: E402
from t5x_lite.adapt import ADAPTATIONS, AdaptationMethod, Fusion  # noqa: E402
from t5x_lite.convert.huggingface import import_hf  # noqa: E402
from t5x_lite.models.spec import model_spec  # noqa: E402
from t5x_lite.trees import flatten_names, unflatten_names  # noqa: E402
from tests.reference.adapterhub import RECORDED, SIZES, TOKENS, WIDTH, draw  # noqa: E402

HUB_PFEIFFER = {"width": WIDTH, "original_ln_before": True}
HUB_FUSION = {"query_key_bias": True, "query_before_ln": False, "residual_before": False}
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "no adapter": ("full", {}),
    "houlsby": ("houlsby", {"width": WIDTH, "activation": "silu"}),
    "pfeiffer": ("pfeiffer", HUB_PFEIFFER),
    "pfeiffer, residual after the norm": ("pfeiffer", {**HUB_PFEIFFER, "residual_before_ln": False}),
    "pfeiffer, no norm after": (
        "pfeiffer",
        {**HUB_PFEIFFER, "residual_before_ln": False, "original_ln_after": False},
    ),
    "dynamic": ("fusion", HUB_FUSION),
    "static": ("fusion", HUB_FUSION),
    "dynamic, residual before, query before the norm": ("fusion", {"query_key_bias": True}),
}
"""Our method and its settings, by AdapterHub's case."""
NO_VALUES = ("static",)
"""Fusions whose values are the adapters' outputs as they are."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the tiny BERT, imported."""
    folder = tmp_path_factory.mktemp("bert")
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("bert."):
                parameter.copy_(torch.from_numpy(draw(name.removeprefix("bert."), tuple(parameter.shape))))
    model.save_pretrained(folder)
    import_hf(folder, folder / "run")
    return folder / "run"


def build_method(case: str) -> AdaptationMethod:
    name, settings = METHODS[case]
    if name == "fusion":
        settings = {**settings, "adapters": ("a", "b"), "kind": HUB_PFEIFFER}
    return ADAPTATIONS[name](**settings)


def foreign_name(ours: str, layer: int) -> str:
    """Return AdapterHub's name of an added parameter of ours, in a layer."""
    _, _, place = ours.partition(".adapters.")
    sublayer, _, part = place.partition(".")
    folder = {"attention": "attention.output", "feedforward": "output"}[sublayer]
    words = part.split(".")
    if words[0] in {"query", "key", "value"}:
        return f"encoder.layer.{layer}.{folder}.adapter_fusion_layer.a,b.{part}"
    adapter = "a"
    if words[0] == "adapters":
        adapter = "ab"[int(words[1])]
        words = words[2:]
    matrix = {"down": "adapter_down.0", "up": "adapter_up"}[words[0]]
    return f"encoder.layer.{layer}.{folder}.adapters.{adapter}.{matrix}.{words[1]}"


def transferred(ours: str, shape: tuple[int, ...], case: str) -> np.ndarray:
    """Return AdapterHub's weights of one of our parameters, stacked over the layers."""
    layers = []
    for layer in range(shape[0]):
        name = foreign_name(ours, layer)
        matrix = draw(name, shape[:0:-1]).T
        if ".value." in name:
            # Our value matrix is a change of the identity.
            matrix = np.zeros_like(matrix) if case in NO_VALUES else matrix - np.eye(len(matrix), dtype=np.float32)
        layers.append(matrix)
    return np.stack(layers)


def states(bert: Path, method: AdaptationMethod, case: str) -> np.ndarray:
    """Return the last states of the tiny BERT with AdapterHub's weights in the adapters of a method."""
    model = t5x_lite.load(bert)
    spec = model_spec(model.config.model, method.surgery)
    weights = flatten_names(model.params)
    for name, shape in flatten_names(spec.shapes).items():
        if name not in weights:
            weights[name] = transferred(name, shape.shape, case)
    return np.asarray(spec.model(unflatten_names(weights))(TOKENS))


@pytest.mark.parametrize("case", METHODS)
def test_states_equal_those_of_adapterhub_for_the_same_weights(case: str, bert: Path) -> None:
    with np.load(RECORDED) as recorded:
        expected = recorded[case]
    np.testing.assert_allclose(states(bert, build_method(case), case), expected, atol=1e-5)


def test_the_fusion_of_the_paper_is_another_function(bert: Path) -> None:
    """The options decide: without them the same weights give other states."""
    method = Fusion(adapters=("a", "b"), kind={"width": WIDTH}, query_key_bias=True)
    with np.load(RECORDED) as recorded:
        assert np.abs(states(bert, method, "dynamic") - recorded["dynamic"]).max() > 0.1
