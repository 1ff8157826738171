"""The mesh, the rules of sharding, and training on meshes of simulated devices."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kernels import zigzag_order
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.sharding import MESH_AXES
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import check_sharded, common_axes, make_mesh
from tests.simulated_devices import run_on_eight_devices


def run_beside(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in a process with 8 simulated devices."""
    return run_on_eight_devices(Path(__file__).with_name(script), *arguments)


def test_weights_and_optimizer_state_are_sharded_by_the_table_of_rules() -> None:
    process = run_beside("shardings_on_a_mesh.py")
    assert process.stdout == "equal\n", process.stderr


@pytest.mark.slow
def test_experts_on_a_mesh_equal_one_device() -> None:
    """Expert × fsdp × tensor × data on 8 simulated devices: loss, statistics and gradients."""
    process = run_beside("experts_on_a_mesh.py")
    assert process.stdout == "equal\n", process.stderr


def test_devices_exchange_the_rows_of_their_experts() -> None:
    """The rows that arrive, those that come back, and their gradients; XLA has no such exchange on CPUs."""
    process = run_beside("exchange_on_a_mesh.py")
    assert process.stdout == "equal\n", process.stderr


def test_blocks_of_local_attention_stay_on_the_device_of_their_rows() -> None:
    process = run_beside("blocks_on_a_mesh.py")
    assert process.stdout == "equal\n", process.stderr


def test_the_gradients_of_tables_are_summed_in_shards() -> None:
    process = run_beside("table_on_a_mesh.py")
    assert process.stdout == "equal\n", process.stderr


@pytest.mark.slow
def test_replicas_send_their_gradients_once_in_a_step() -> None:
    process = run_beside("reductions_on_a_mesh.py")
    assert process.stdout == "equal\n", process.stderr


FAMILIES = ("decoder", "encoder_decoder", "long_t5", "encoder", "experts", "mixers", "gated_deltanet")


@pytest.mark.parametrize(
    ("family", "extent"),
    [("decoder", "one"), *(pytest.param(family, "all", marks=pytest.mark.slow) for family in FAMILIES)],
)
def test_every_mesh_gives_the_loss_curve_of_one_device(family: str, extent: str) -> None:
    """Ten steps in float32, each loss to 1e-5: each axis alone and combinations of them, 10 or 13 meshes per family.

    On those with `data`, also two microbatches and one sum of gradients in a step.
    """
    process = run_beside("curves_on_meshes.py", family, extent)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("equal") >= (1 if extent == "one" else 13)


@pytest.mark.slow
def test_splash_attention_of_a_row_that_devices_share_equals_the_definition() -> None:
    process = run_beside("splash_on_meshes.py")
    assert process.stdout == "equal\n", process.stderr


@pytest.mark.slow
def test_flash_attention_on_a_mesh_equals_the_definition() -> None:
    process = run_beside("flash_on_meshes.py")
    assert process.stdout == "equal\n", process.stderr


def test_blocks_of_a_causal_row_are_paired_from_both_ends() -> None:
    """Four devices, eight blocks: 0 and 7, 1 and 6, 2 and 5, 3 and 4; every pair attends to equally many keys."""
    assert zigzag_order(8).tolist() == [0, 7, 1, 6, 2, 5, 3, 4]


@pytest.mark.parametrize(
    ("model", "mesh", "message"),
    [
        ({"layers": 3}, {"pipeline": 2}, "mesh.pipeline 2 cannot cut model.layers 3, 3 repeats of the pattern"),
        ({"layers": 4, "shared_layers": True}, {"pipeline": 2}, "one layer for all"),
        ({"layers": 4, "feedforward": {"moe": {"dispatch": "dropless"}}}, {"pipeline": 2}, "take dispatch=capacity"),
        ({"layers": 4}, {"expert": 2}, "no experts to shard"),
        ({"layers": 4}, {"tensor": -1, "fsdp": -1}, "at most one axis may be -1"),
        ({"layers": 4}, {"tensor": 0}, "every axis must be ≥ 1"),
    ],
)
def test_the_config_refuses_meshes_that_a_model_cannot_have(
    model: dict[str, Any], mesh: dict[str, int], message: str
) -> None:
    settings = {
        "model": {"embed": 16, "heads": 2, **model},
        "mesh": mesh,
        "train": {"steps": 1, "batch_size": 4, "seq_len": 8},
    }
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(settings)


def test_layers_that_an_adaptation_mixes_are_not_cut_into_stages() -> None:
    model = {"family": "encoder", "embed": 16, "heads": 2, "layers": 4, "head": {"outputs": 2}, "outputs": []}
    settings: dict[str, Any] = {
        "model": model,
        "objective": {"classify": {"labels": ["no", "yes"]}},
        "tasks": ["sst2"],
        "adapt": {"from": "base", "method": {"features": {"layers": 2}}},
        "train": {"steps": 1, "batch_size": 4, "seq_len": 8},
    }
    RunConfig.model_validate(settings)
    with pytest.raises(ValueError, match=r"mesh.pipeline 2: adapt.method=features mixes the outputs of layers"):
        RunConfig.model_validate({**settings, "mesh": {"pipeline": 2}})


@pytest.mark.slow
def test_the_states_of_layers_in_stages_are_those_of_one_device() -> None:
    process = run_beside("layer_states_in_stages.py")
    assert process.stdout == "equal\n", process.stderr


def test_the_error_of_a_mesh_that_does_not_fill_the_devices_names_the_divisors() -> None:
    message = r"data 2 × tensor 3 does not fill 8 devices; sizes that divide them are 1, 2, 4, 8"
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(data=2, tensor=3), devices=[jax.devices()[0]] * 8)


def abstract_mesh(**sizes: int) -> AbstractMesh:
    """Return a mesh without devices; axes that are not named have the size 1."""
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def test_parameters_that_no_mesh_axis_divides_are_refused_by_name() -> None:
    config = ModelConfig.model_validate(
        {"layers": 1, "embed": 258, "heads": 6, "head_dim": 43, "mlp": 1032, "vocab": 1001}
    )
    spec = model_spec(config)

    def check(**sizes: int) -> None:
        check_sharded(abstract_mesh(**sizes), spec.axes, spec.shapes)  # type: ignore[arg-type]

    check(data=8)
    check(fsdp=2)
    # 258 = 2·3·43 and 1032 = 8·129: five devices divide neither of the widths, nor 1001 tokens, nor 6 heads.
    with pytest.raises(UserError, match=r"would lie whole .*tokens\.weight \[1001, 258\].*fsdp divide none"):
        check(fsdp=5)
    # Three devices divide six heads and 1032 channels but not the tables, which have 258 · 2025 of the
    # 258 · (2025 + 3096) weights, besides the biases.
    with pytest.raises(UserError, match=r"39\.4% of the parameters .*tokens\.weight \[1001, 258\]\)"):
        check(tensor=3)


@pytest.mark.parametrize(
    ("shape", "parameter", "spec", "expected"),
    [
        ((15, 64, 6144), (15, 64, 2080, 6144), (None, "expert"), (None, "expert", None)),
        ((15, 64, 2080), (15, 64, 2080, 6144), (None, "expert"), (None, "expert", None)),
        ((4, 512), (4, 512, 2048), (None, "fsdp", "tensor"), (None, "fsdp")),
        ((4, 2048), (4, 512, 2048), (None, "fsdp", "tensor"), (None, "tensor")),
        ((4, 512, 64), (4, 512, 8, 8), (None, "fsdp", "tensor"), (None, "fsdp", None)),
        ((4, 512, 8, 8), (4, 512, 8, 8), (None, "fsdp", "tensor"), (None, "fsdp", "tensor", None)),
        ((1,), (4, 512), (None, "fsdp"), (None,)),
        ((), (4, 512), (None, "fsdp"), ()),
    ],
)
def test_moments_are_sharded_along_the_axes_that_they_share_with_their_parameter(
    shape: tuple[int, ...], parameter: tuple[int, ...], spec: tuple[str | None, ...], expected: tuple[str | None, ...]
) -> None:
    assert common_axes(shape, parameter, PartitionSpec(*spec)) == PartitionSpec(*expected)


@dataclass(frozen=True)
class HostedDevice:
    """What a mesh is built from: a device of a host that JAX numbers as a slice."""

    platform: str
    id: int

    @property
    def slice_index(self) -> int:
        return self.id // 4

    @property
    def process_index(self) -> int:
        return self.slice_index

    @property
    def device_kind(self) -> str:
        return self.platform


def test_any_axis_spans_the_hosts_of_gpus() -> None:
    """JAX numbers the hosts of GPUs as slices. Only slices of TPUs are joined along `data` alone."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), [HostedDevice("gpu", number) for number in range(8)])
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    with pytest.raises(UserError, match="not a multiple of the 2 slices"):
        make_mesh(MeshConfig(data=1, fsdp=8), [HostedDevice("tpu", number) for number in range(8)])
