"""Check what replicas that sum their gradients once in a step send, their dropout, and bfloat16, on 8 devices.

Print `equal`. Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

import sys
from collections.abc import Sequence

import jax
import numpy as np

from t5x_lite.config import RunConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.hlo import find_collectives
from t5x_lite.train.steps import make_steps

ROWS = 16
LENGTH = 8
EMBED = 64
VOCAB = 128
WEIGHTS = 2 * VOCAB * EMBED + 4 * EMBED * EMBED + 2 * EMBED * 4 * EMBED
"""Token table, output, attention and feed-forward; the norms have 3 · 64 more."""


def run_config(
    mesh: dict[str, int], *, microbatches: int, reduction: str, dropout: float = 0.0, compute: str = "float32"
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {
                "layers": 1,
                "embed": EMBED,
                "heads": 4,
                "vocab": VOCAB,
                "bias": False,
                "dropout": dropout,
                "compute": compute,
                "tied": False,
                "positions": "none",
            },
            "objective": "causal",
            "train": {
                "steps": 3,
                "batch_size": ROWS,
                "seq_len": LENGTH,
                "microbatches": microbatches,
                "data_reduction": reduction,
            },
            "mesh": mesh,
        }
    )


def make_batch() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape),
        "segment_ids": np.ones_like(tokens),
        "loss_weights": np.ones(tokens.shape, np.float32),
    }


def bytes_sent_over_data(reduction: str) -> float:
    """Return what a device sends to other replicas in a step of two microbatches."""
    config = run_config({"data": 4, "fsdp": 2}, microbatches=2, reduction=reduction)
    mesh = meshes.make_mesh(config.mesh, jax.devices())
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        batch = meshes.to_global(mesh, make_batch(), ROWS)
        text = steps.train.lower(steps.state, batch).compile().as_text()
    assert text is not None
    collectives = find_collectives(text, dict(mesh.shape))
    return sum(collective.sent for collective in collectives if "data" in collective.axes)


def check_bytes() -> None:
    # Four replicas have halves of all float32 gradients: in a ring each device sends 2 · 3/4 of its half.
    once = 2 * 3 / 4 * 4 * WEIGHTS / 2
    # Norms, metrics and lengths of the gradients are added to those.
    sent = bytes_sent_over_data("step")
    assert once <= sent <= 1.02 * once, (sent, once)
    assert bytes_sent_over_data("microbatch") > 1.9 * once


def losses(config: RunConfig, devices: Sequence[jax.Device], batch: dict[str, np.ndarray]) -> list[float]:
    mesh = meshes.make_mesh(config.mesh, devices)
    values = []
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        state = steps.create_state()
        for _ in range(config.train.steps):
            state, metrics = steps.train(state, meshes.to_global(mesh, batch, ROWS))
            values.append(float(metrics["loss"]))
    return values


def check_dropout() -> None:
    """Compare four replicas with as many microbatches of the same rows on one device."""
    in_replicas = run_config({"data": 4, "fsdp": 2}, microbatches=1, reduction="step", dropout=0.5)
    one_by_one = run_config({"data": 1}, microbatches=4, reduction="microbatch", dropout=0.5)
    batch = make_batch()
    # A replica has rows that follow each other, a microbatch every fourth row.
    dealt = {name: array.reshape(4, ROWS // 4, -1).swapaxes(0, 1).reshape(ROWS, -1) for name, array in batch.items()}
    result = losses(in_replicas, jax.devices(), batch)
    expected = losses(one_by_one, jax.devices()[:1], dealt)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert abs(result[0] / losses(in_replicas, jax.devices(), dealt)[0] - 1) > 1e-4, "no dropout"


def check_bfloat16() -> None:
    """Compare with float32: bfloat16 has 8 bits, and the first loss is a mean over 128 tokens."""
    mesh = {"data": 4, "fsdp": 2}
    batch = make_batch()
    expected = losses(run_config({"data": 1}, microbatches=1, reduction="microbatch"), jax.devices()[:1], batch)
    for reduction in ("microbatch", "step"):
        config = run_config(mesh, microbatches=2, reduction=reduction, compute="bfloat16")
        np.testing.assert_allclose(losses(config, jax.devices(), batch), expected, rtol=1e-2)


def main() -> None:
    check_bytes()
    check_bfloat16()
    check_dropout()
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
