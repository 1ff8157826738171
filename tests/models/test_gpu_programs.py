"""Train steps lowered for an NVIDIA GPU on a machine without one: which fused kernels and products they have."""

import re

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, PyTree

from t5x_lite import config as configuration
from t5x_lite.models.loss_terms import Batch
from t5x_lite.models.sharding import MESH_AXES
from t5x_lite.models.spec import model_spec
from t5x_lite.planner.example import example_features
from t5x_lite.run_loss import loss_function
from tests.conftest import REPOSITORY

LENGTH = 384
ROWS = 4


@pytest.fixture(autouse=True)
def installed_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer for cuDNN and a card: JAX asks for their versions before it lowers attention to cuDNN."""
    fused = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{fused}.check_cudnn_version", lambda: 91002)
    monkeypatch.setattr(f"{fused}.check_compute_capability", lambda capability: True)


def program_for_a_gpu(name: str, *overrides: str) -> str:
    """Return the loss of a config with its gradients, of two layers and rows of `LENGTH` tokens, as StableHLO."""
    sizes = ("data.files=x", "model.layers=2", f"train.seq_len={LENGTH}", "model.compute=bfloat16")
    config = configuration.load(REPOSITORY / f"configs/{name}.yaml", [*sizes, *overrides])
    config = config.replace_model(vocab=config.model.vocab or 512)
    spec = model_spec(config.model)
    batch = {}
    for feature, array in example_features(config).items():
        batch[feature] = jax.ShapeDtypeStruct((ROWS, *array.shape), array.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compute_terms = loss_function(config, spec, 1, training=True)

    def loss(params: PyTree[Array], batch: Batch, key: Array) -> Float[Array, ""]:
        return jnp.sum(jnp.stack([term.total for term in compute_terms(params, batch, key).values()]))

    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=1, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,) * len(MESH_AXES), MESH_AXES, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(loss)).trace(spec.shapes, batch, key)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def has_scores(program: str, heads: int) -> bool:
    """Return whether an array has a number for each head and pair of positions of a row."""
    return re.search(rf"[<x]{heads}x{LENGTH}x{LENGTH}x", program) is not None


@pytest.mark.parametrize(
    ("name", "heads", "kernels"), [("t5/small", 8, 4 + 4 + 3), ("bert/base", 12, 3), ("modernbert/base", 12, 3)]
)
def test_scores_of_t5_and_bert_stay_in_triton_kernels(name: str, heads: int, kernels: int) -> None:
    """Three kernels for each kind of attention, four with the gradient of a bias: encoder, decoder, cross-attention."""
    program = program_for_a_gpu(name, "model.unroll=1")
    assert program.count("xla.gpu.triton") >= kernels
    assert not has_scores(program, heads)


@pytest.mark.parametrize("separate_documents", ["true", "false"])
def test_causal_attention_is_cudnns(separate_documents: str) -> None:
    program = program_for_a_gpu("gpt2/117m", "model.unroll=1", f"data.separate_documents={separate_documents}")
    assert re.search(r"__cudnn\$fmha\w*Softmax\b", program)
    assert re.search(r"__cudnn\$fmha\w*SoftmaxBackward\b", program)
    assert not has_scores(program, heads=12)


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_products_of_training_are_in_8_bits(quantization: str) -> None:
    pytest.importorskip("qwix", reason="pip install -e '.[quantization]'")
    program = program_for_a_gpu("t5/small", f"train.quantization={quantization}", "model.unroll=1")
    kind = {"fp8": "f8E4M3FN", "int8": "i8"}[quantization]
    products = re.findall(rf"dot_general.*tensor<[^>]*x{kind}>", program)
    assert len(products) > 10
