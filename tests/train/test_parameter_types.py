"""Parameters in bfloat16: their rounding, their bytes and the loss of a run."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from jaxtyping import PyTree

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_dir import open_run
from t5x_lite.train.parameter_update import ParameterUpdate
from t5x_lite.trees import flatten_names
from tests.train.test_step import causal_batch, small_steps

BFLOAT16 = {"param_dtype": "bfloat16"}
ULP = 2**-7
"""Distance of bfloat16 values between 1 and 2."""
MATRICES = 2 * (4 * 32 * 32 + 2 * 32 * 128) + 40 * 32 + 32 * 1024
"""Of `small_steps`: two layers, 40 tokens, 1024 positions."""
VECTORS = 2 * (4 * 32 + 128 + 32 + 2 * 2 * 32) + 2 * 32
"""Biases and norms."""


def bytes_of(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if leaf.ndim)


def test_small_updates_survive_on_average_and_are_those_of_a_key() -> None:
    """Steps of an eighth of a bfloat16 step: 64 of them are 8, with the variance p(1-p) of a step for each."""
    update = ParameterUpdate(optax.sgd(1.0), {"w": True})
    params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
    opt_state = update.init(params)
    grads = {"w": jnp.full((64, 64), -ULP / 8)}

    def step(params: PyTree, number: int, seed: int = 0) -> PyTree:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return update.apply(grads, params, opt_state, key, lambda tree: tree, jnp.zeros(()))[0]

    first = step(params, 0)
    np.testing.assert_array_equal(first["w"], step(params, 0)["w"])
    assert (first["w"] != step(params, 1)["w"]).any()
    assert (first["w"] != step(params, 0, seed=1)["w"]).any()
    for number in range(64):
        params = step(params, number)
    assert params["w"].dtype == jnp.bfloat16
    steps_up = (np.asarray(params["w"], np.float64) - 1) / ULP
    deviation = (64 * (1 / 8) * (7 / 8) / 64**2) ** 0.5
    assert abs(steps_up.mean() - 8) < 4 * deviation


def test_a_master_copy_gives_the_rounded_parameters_of_float32() -> None:
    params = {"w": jnp.linspace(-2, 2, 64)}
    exact = ParameterUpdate(optax.adam(0.01))
    copied = ParameterUpdate(optax.adam(0.01), {"w": True}, has_master_copy=True)
    exact_params = params
    exact_state = exact.init(params)
    stored = copied.stored(params)
    state = copied.init(params)
    key = jax.random.key(0)
    for number in range(20):
        grads = {"w": jnp.sin(jnp.arange(64.0) + number)}
        exact_params, exact_state = exact.apply(grads, exact_params, exact_state, key, lambda tree: tree, jnp.zeros(()))
        stored, state = copied.apply(grads, stored, state, key, lambda tree: tree, jnp.zeros(()))
    np.testing.assert_array_equal(stored["w"], exact_params["w"].astype(jnp.bfloat16))


def test_the_master_copy_needs_parameters_in_bfloat16(tiny_config: Path) -> None:
    with pytest.raises(UserError, match="master_weights is a float32 copy of parameters in bfloat16"):
        configuration.load(tiny_config, ["optimizer.master_weights=true"])


def test_plan_counts_the_bytes_of_parameters_and_gradients(
    tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Matrices and tables of `tiny_config`: 2 layers, 300 tokens, 32 positions."""
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 128) + 300 * 32 + 32 * 32
    vectors = 2 * (4 * 32 + 128 + 32 + 2 * 2 * 32) + 2 * 32
    words = ["plan", str(tiny_config), "--topology=h100:1", "--no-compile", "--json"]
    words += ["model.vocab=300", "train.param_dtype=bfloat16"]

    def plan(*overrides: str) -> dict[str, float]:
        assert main([*words, *overrides]) == 0
        return json.loads(capsys.readouterr().out)["modelled"]

    rounded = plan()
    assert rounded["gradients_bytes"] == 2 * matrices + 4 * vectors
    assert rounded["state_bytes"] == pytest.approx(2 * matrices + 4 * vectors + 8 * (matrices + vectors), abs=100)
    with_copy = plan("optimizer.master_weights=true", "train.microbatches=2")
    assert with_copy["state_bytes"] - rounded["state_bytes"] == 4 * (matrices + vectors)
    assert with_copy["gradients_bytes"] == 4 * (matrices + vectors)
    summed = plan("train.microbatches=2", "train.gradient_dtype=bfloat16")
    assert summed["gradients_bytes"] == 2 * (matrices + vectors)


def train_small(steps: int = 60, **train: object) -> list[float]:
    compiled = small_steps(**train)
    state = compiled.create_state()
    losses = []
    for _ in range(steps):
        state, metrics = compiled.train(state, causal_batch())
        losses.append(float(metrics["loss"]))
    return losses


def test_matrices_and_tables_take_half() -> None:
    assert bytes_of(small_steps().state.params) == 4 * (MATRICES + VECTORS)
    assert bytes_of(small_steps(**BFLOAT16).state.params) == 2 * MATRICES + 4 * VECTORS


@pytest.mark.slow
def test_the_loss_in_bfloat16_is_close_to_that_in_float32() -> None:
    losses = train_small(**BFLOAT16)
    exact_losses = train_small()
    assert exact_losses[-1] < 0.5 * exact_losses[0]
    np.testing.assert_allclose(losses, exact_losses, atol=0.1 * exact_losses[0])


@pytest.mark.slow
def test_gradients_summed_in_bfloat16_differ_by_its_rounding() -> None:
    """Four roundings of relative 2^-9 each in the sum: the norm of the gradient differs by less than 1 %."""
    batch = causal_batch()
    norms = {}
    for dtype in ("float32", "bfloat16"):
        steps = small_steps(microbatches=4, gradient_dtype=dtype)
        _, metrics = steps.train(steps.create_state(), batch)
        norms[dtype] = float(metrics["grad_norm"])
    assert norms["float32"] != norms["bfloat16"]
    assert norms["bfloat16"] == pytest.approx(norms["float32"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["optimizer.master_weights=true"]])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(
    overrides: list[str], tiny_config: Path, tmp_path: Path
) -> None:
    words = ["train", str(tiny_config), "train.param_dtype=bfloat16", "checkpoint.every_steps=4", *overrides]
    weights = {}
    for name in ("whole", "resumed"):
        folder = tmp_path / name
        assert main([*words, f"run_dir={folder}"]) == 0
        if name == "resumed":
            for later_step in (8, 12):
                shutil.rmtree(folder / "checkpoints" / str(later_step), ignore_errors=True)
            assert main([*words, f"run_dir={folder}"]) == 0
        run = open_run(folder)
        step, weights[name], _ = run.trained_weights(make_mesh(run.config.mesh))
        assert step == 12
    for name, array in flatten_names(weights["whole"]).items():
        assert array.dtype == jnp.float32
        np.testing.assert_array_equal(array, flatten_names(weights["resumed"])[name])
    assert yaml.safe_load((tmp_path / "whole/config.yaml").read_text())["train"]["param_dtype"] == "bfloat16"


@pytest.mark.slow
def test_checkpoints_are_smaller_by_two_bytes_for_each_value(tiny_config: Path, tmp_path: Path) -> None:
    """The files also hold an index, of some 100 kB, whose size varies."""
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        folder = tmp_path / dtype
        overrides = ["train.steps=1", "model.embed=128", f"run_dir={folder}", f"train.param_dtype={dtype}"]
        assert main(["train", str(tiny_config), *overrides]) == 0
        files = (folder / "checkpoints/1").rglob("*")
        sizes[dtype] = sum(path.stat().st_size for path in files if path.is_file())
    matrices = 2 * (4 * 128 * 128 + 2 * 128 * 512) + 300 * 128 + 32 * 128
    assert sizes["float32"] - sizes["bfloat16"] == pytest.approx(2 * matrices, rel=0.15)
