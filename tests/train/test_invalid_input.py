"""Invalid input to a run: one line of error, exit code 2, and no run directory."""

import subprocess
from pathlib import Path

import pytest

from tests.simulated_devices import simulated
from tests.train.whole_runs import train, train_command

INVALID_INPUT = {
    "no such file": (["data.files=/nowhere/*.txt"], "no file matches '/nowhere/*.txt'"),
    "empty corpus": (["data.files={empty}"], "no text to train a tokenizer on in {empty}; set data.files"),
    "mesh": (["mesh.data=3"], "does not fill 1 devices"),
    "long context": (["train.seq_len=64"], "train.seq_len 64 is longer than model.positions.learned.length 32"),
    "heads": (["model.heads=5"], "embed 32 is not a multiple of heads 5"),
    "short text": (["model.positions=rotary", "train.seq_len=100000"], "but the training text has"),
    "no validation": (["data.validation_fraction=0"], "raise data.validation_fraction"),
    "cache_dir is a file": (["data.cache_dir={empty}"], "data.cache_dir"),
    "vocabulary": (["model.vocab=100"], "model.vocab 100 is below the tokenizer's 300"),
    "run_dir is a file": (["run_dir={empty}"], "empty.txt"),
}
"""By name of the case: overrides of the config, and a part of the error."""


@pytest.mark.parametrize("case", INVALID_INPUT)
def test_invalid_input_is_one_line_of_error_and_exit_code_2(
    case: str, tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    empty_file = tmp_path / "empty.txt"
    empty_file.write_text("")
    templates, expected_message = INVALID_INPUT[case]
    overrides = [template.format(empty=empty_file) for template in templates]
    assert train(tiny_config, tmp_path / "run", *overrides) == 2
    messages = [line for line in capfd.readouterr().err.splitlines() if line.startswith("t5x-lite: ")]
    assert len(messages) == 1
    assert expected_message.format(empty=empty_file) in messages[0]
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    environment = simulated(8)
    command = train_command(tiny_config, tmp_path / "run")
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "train.batch_size 4 does not divide over the 8 devices" in process.stderr
