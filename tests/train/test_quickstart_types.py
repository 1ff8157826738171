"""Settings of types and precision: each reaches the loss of the quickstart in bfloat16, within 1 %."""

import json
from pathlib import Path

import pytest

from t5x_lite.cli import main
from tests.conftest import REPOSITORY, lines

SETTINGS = {
    "int8": {"train.quantization": "int8"},
    "fp8": {"train.quantization": "fp8"},
    "moments": {"optimizer.moment_dtype": "bfloat16"},
    "parameters": {"train.param_dtype": "bfloat16"},
    "parameters with a copy": {"train.param_dtype": "bfloat16", "optimizer.master_weights": True},
    "gradients": {"train.gradient_dtype": "bfloat16", "train.microbatches": 4},
    "reduction": {"train.reduction_dtype": "float32"},
    "float32": {"model.compute": "float32"},
}


def train_quickstart(run: Path, prose: Path, **settings: object) -> float:
    """Return the validation loss of a quickstart with a vocabulary of 300 after 120 steps on little text."""
    sizes = {"train.steps": 120, "tokenizer.unigram.vocab": 300, "train.seq_len": 128, "model.compute": "bfloat16"}
    data = {"data.files": f"{prose}/*.txt", "data.cache_dir": f"{run.parent}/cache", "data.validation_fraction": 0.2}
    words = [f"{key}={json.dumps(value)}" for key, value in {**sizes, **data, **settings}.items()]
    assert main(["train", str(REPOSITORY / "configs/quickstart.yaml"), f"run_dir={run}", *words]) == 0
    return float(lines(run)[-1]["eval/loss"])


@pytest.fixture(scope="module")
def expected(prose: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    return train_quickstart(tmp_path_factory.mktemp("expected") / "run", prose)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_quickstart_learns_as_well_with_other_types(
    name: str, expected: float, prose: Path, tmp_path: Path
) -> None:
    if "train.quantization" in SETTINGS[name]:
        pytest.importorskip("qwix", reason="pip install -e '.[quantization]'")
    assert train_quickstart(tmp_path / "run", prose, **SETTINGS[name]) == pytest.approx(expected, rel=0.01)
