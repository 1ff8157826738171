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


def train_quickstart(run: Path, cache: Path, **settings: object) -> float:
    """Return the validation loss of the quickstart after 60 steps on the sources of this package."""
    sizes = {"train.steps": 60, "tokenizer.unigram.vocab": 1024, "train.seq_len": 128, "model.compute": "bfloat16"}
    data = {"data.files": f"{REPOSITORY}/t5x_lite/*/*.py", "data.cache_dir": str(cache), "eval.batches": 8}
    words = [f"{key}={json.dumps(value)}" for key, value in {**sizes, **data, **settings}.items()]
    assert main(["train", str(REPOSITORY / "configs/quickstart.yaml"), f"run_dir={run}", *words]) == 0
    return float(lines(run)[-1]["eval/loss"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    return train_quickstart(tmp_path_factory.mktemp("expected") / "run", cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_quickstart_learns_as_well_with_other_types(
    name: str, expected: float, cache: Path, tmp_path: Path
) -> None:
    if "train.quantization" in SETTINGS[name]:
        pytest.importorskip("qwix", reason="pip install -e '.[quantization]'")
    assert train_quickstart(tmp_path / "run", cache, **SETTINGS[name]) == pytest.approx(expected, rel=0.01)
