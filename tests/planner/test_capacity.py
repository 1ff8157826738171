"""Runs that do not fit into memory are refused before anything is prepared or allocated."""

import logging
from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.planner.capacity import fit_to_devices

EMBED = 32
MLP = 4 * EMBED
LAYER = 4 * EMBED * EMBED + 4 * EMBED + 2 * EMBED * MLP + MLP + EMBED + 4 * EMBED
PARAMETERS = 2 * LAYER + 2 * EMBED + 300 * EMBED + 32 * EMBED
"""Of `tiny_config`, by hand: 2 layers, 300 tokens, 32 positions."""
EXACT_BYTES = PARAMETERS * 4 * 4 + 4 * 16 * 4
"""Weights, AdamW's two moments and gradients in float32, and a batch of 4 × 16 tokens in int32."""
SCALARS = 100
"""More than the bytes of the step and of the counters of the optimizer."""


@pytest.mark.parametrize(
    ("overrides", "exact_bytes", "is_warned"),
    [
        ([], EXACT_BYTES, True),
        (["train.batch_size=4000"], PARAMETERS * 4 * 4 + 4000 * 16 * 4, True),
        # Evaluation has no gradients, and this one takes more memory than the train step.
        (["eval.batch_size=40000"], PARAMETERS * 4 * 3 + 40000 * 16 * 4, False),
    ],
)
def test_what_cannot_fit_is_refused_and_what_may_fit_is_warned_about(
    overrides: list[str],
    exact_bytes: int,
    is_warned: bool,
    tiny_config: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = configuration.load(tiny_config, overrides)

    def check_with(size: float) -> None:
        monkeypatch.setattr("t5x_lite.parallel.memory.host_memory", lambda: int(size))
        fit_to_devices(config)

    with pytest.raises(UserError, match=f"gradients of {PARAMETERS:,} parameters, and one batch take at least"):
        check_with(exact_bytes - 1)
    with caplog.at_level(logging.WARNING):
        check_with(exact_bytes + SCALARS)
        assert ("a train step takes about" in caplog.text) == is_warned
        caplog.clear()
        check_with(1e12)
    assert not caplog.records


@pytest.mark.parametrize(
    "override",
    [
        "model.embed=1000000",
        "model.layers=1000000000",
        "model.vocab=2000000000",
        "model.feedforward={moe: {experts: 1000000000}}",
        "train.batch_size=2000000000",
        "eval.batch_size=2000000000",
    ],
)
def test_absurd_sizes_are_refused_and_nothing_is_written(
    override: str, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["train", str(tiny_config), override, f"run_dir={tmp_path}/run", f"data.cache_dir={tmp_path}/cache"])
    errors = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(errors) == 1
    assert "of memory; choose a smaller model or batch" in errors[0]
    assert not list(tmp_path.iterdir())
