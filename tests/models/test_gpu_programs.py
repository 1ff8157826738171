"""Train steps lowered for an NVIDIA GPU on a machine without one: which fused kernels and products they have."""

import re
from collections.abc import Mapping

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

LENGTH = 320
ROWS = 4


@pytest.fixture(autouse=True)
def installed_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer for cuDNN and a card: JAX asks for their versions before it lowers attention to cuDNN."""
    fused = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{fused}.check_cudnn_version", lambda: 91002)
    monkeypatch.setattr(f"{fused}.check_compute_capability", lambda capability: True)


def program_for_a_gpu(name: str, *overrides: str, axes: Mapping[str, int] | None = None) -> str:
    """Return the loss of a config with its gradients, of two layers and rows of `LENGTH` tokens, as StableHLO.

    `axes` has the sizes of mesh axes that are not 1.
    """
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
    sizes_of_axes = tuple((axes or {}).get(axis, 1) for axis in MESH_AXES)
    mesh = jax.sharding.AbstractMesh(sizes_of_axes, MESH_AXES, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(loss)).trace(spec.shapes, batch, key)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def has_scores(program: str, heads: int) -> bool:
    """Return whether an array has a number for each head and pair of positions of a row."""
    return re.search(rf"[<x]{heads}x{LENGTH}x{LENGTH}x", program) is not None


def has_pairs(program: str) -> bool:
    """Return whether an array has a number for each pair of positions of a row, as a mask has."""
    return re.search(rf"[<x]{LENGTH}x{LENGTH}x", program) is not None


@pytest.mark.parametrize(
    ("name", "heads", "kernels"), [("t5/small", 8, 4 + 4 + 3), ("bert/base", 12, 3), ("modernbert/base", 12, 3)]
)
def test_scores_of_t5_and_bert_stay_in_triton_kernels(name: str, heads: int, kernels: int) -> None:
    """Three kernels for each kind of attention, four with the gradient of a bias: encoder, decoder, cross-attention."""
    program = program_for_a_gpu(name, "model.unroll=1")
    assert program.count("xla.gpu.triton") >= kernels
    assert not has_scores(program, heads)


@pytest.mark.parametrize(
    ("axes", "rows", "heads"),
    [({}, ROWS, 12), ({"fsdp": 2}, ROWS // 2, 12), ({"tensor": 2}, ROWS, 6), ({"fsdp": 2, "pipeline": 2}, 1, 12)],
)
def test_causal_attention_in_rows_of_one_document_is_cudnns(axes: dict[str, int], rows: int, heads: int) -> None:
    """The kernel is called with the rows and heads of one device.

    Its own partitioning fails in a mesh that `jax.shard_map` has split in part. A pipeline has microbatches of a row.
    """
    program = program_for_a_gpu("gpt2/117m", "model.unroll=1", "data.separate_documents=false", axes=axes)
    calls = re.findall(r"custom_call @__cudnn\$fmha(\w+)\(.*?dimensions\\22: \[([^]]*)\]", program)
    sizes = [str(size) for size in (rows, heads, LENGTH, LENGTH)]
    assert [(kernel, re.findall(r"22(\d+)", dimensions)) for kernel, dimensions in calls] == [
        ("Softmax", sizes),
        ("SoftmaxBackward", sizes),
    ]
    assert not has_pairs(program)


def test_cudnn_reads_documents_from_a_mask() -> None:
    program = program_for_a_gpu("gpt2/117m", "model.unroll=1")
    assert len(re.findall(r"custom_call @__cudnn\$fmha\w*Softmax", program)) == 2
    assert has_pairs(program)
    assert not has_scores(program, heads=12)


@pytest.mark.parametrize("axes", [{"fsdp": 2, "pipeline": 2}, {"tensor": 2, "pipeline": 2}])
def test_rows_of_documents_in_a_pipeline_need_no_mask(axes: dict[str, int]) -> None:
    """cuDNN's kernel cannot be mapped over stages with a mask that all heads share."""
    program = program_for_a_gpu("gpt2/117m", "model.unroll=1", axes=axes)
    assert program.count("xla.gpu.triton") == 3
    assert not has_pairs(program)


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_products_of_training_are_in_8_bits(quantization: str) -> None:
    pytest.importorskip("qwix", reason="pip install -e '.[quantization]'")
    program = program_for_a_gpu("t5/small", f"train.quantization={quantization}", "model.unroll=1")
    kind = {"fp8": "f8E4M3FN", "int8": "i8"}[quantization]
    products = re.findall(rf"dot_general.*tensor<[^>]*x{kind}>", program)
    assert len(products) > 10
