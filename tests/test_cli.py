"""The command line as scripts and people use it."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.cli import main
from t5x_lite.errors import one_line
from tests.conftest import REPOSITORY, Shell


def test_eval_prints_one_json_object_and_nothing_else(tiny_run: Path, t5x_lite: Shell, tmp_path: Path) -> None:
    done = t5x_lite("eval", tiny_run, "--json", f"data.cache_dir={tmp_path}")  # an empty cache: it tokenises again
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["step"] == 12
    assert {"eval/loss", "eval/perplexity", "eval/bits_per_byte"} <= results.keys()


def test_eval_accepts_overrides_and_a_step(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tiny_run), "eval.batches=1", "--step=8", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["step"] == 8
    assert results["eval/tokens"] <= 4 * 16


def test_eval_rejects_numbers_and_options_that_it_cannot_use(tiny_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (
            [f"text={__file__}", "window=many", "stride=1.5"],
            "`window` is 'many': input should be a valid integer; "
            "command line: `stride` is 1.5: input should be a valid integer",
        ),
        (["--limit=3"], "--limit is for tasks=, blimp= or cloze=; add that, or remove --limit"),
        (["window=8"], "window= is for text= or tasks="),
        (["tasks=sst2", "stride=8"], "stride= is for text="),
        (["--include=folder"], "--include is for tasks="),
        (["blimp=a", "--limit=3", "limit=4"], "--limit and limit= are the same; remove one of them"),
        (["blimp=a", "files=b"], "files= is for cloze="),  # the files of blimp= are its value,
        (["tokens=4"], "tokens= is for memorisation="),
    ):
        assert main(["eval", str(tiny_run), *words]) == 2
        assert message in capfd.readouterr().err


def test_wrong_input_is_reported_in_one_line(
    tiny_run: Path, tiny_config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["train", str(tiny_config), "train.stpes=3"],
        ["train", str(tiny_config), "--stpes=3"],
        ["eval", str(tiny_run), "train.stpes=3"],
        ["eval", str(tiny_run.parent)],
        ["report", str(tiny_run), "x=1"],
        ["report", str(tiny_run.parent)],
    ):
        assert main(arguments) == 2
        errors = capfd.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert errors[0].startswith("t5x-lite: ")


def test_plan_refuses_slices_that_the_devices_do_not_have(capfd: pytest.CaptureFixture[str]) -> None:
    config = str(REPOSITORY / "configs/pods/gpt3_13b_two_slices.yaml")
    for topology, slices, message in (
        ("v5p:4x4x4", "0", "--slices 0: expected a number of slices from 1 on"),
        ("v5p:4x4x4", "-2", "--slices -2: expected a number of slices from 1 on"),
        ("h100:128", "2", "--slices 2: h100:128 names all GPUs; slices are for TPUs"),
    ):
        assert main(["plan", config, "--topology", topology, "--slices", slices]) == 2
        assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "quickstart"], "; did you mean train?"),
        (["train", "quickstart", "--help-confg"], "train: unknown option --help-confg; did you mean --help-config?"),
        (["generate", "run", "--prompt", "a", "--temp", "1"], "did you mean --template or --temperature?"),
        (
            ["generate", "run", "--prompt", "a", "--max-tokens", "1"],
            "unknown option --max-tokens; did you mean --tokens?",
        ),
        (["eval", "runs/a", "--xyz"], "eval: unknown option --xyz; see t5x-lite eval --help"),
        (["eval", "runs/a", "--step", "last"], "eval: argument --step: invalid int value: 'last'"),
        (["export", "hf", "a", "b", "c"], "export: c is not an option; see t5x-lite export --help"),
        (["generate", "runs/a", "--prompt", "a", "--quantization", "int4"], "'int4' is none of int8"),
        (["generate", "runs/a"], "generate: one of the arguments --prompt --chat --chat-file is required"),
        (["train"], "train: CONFIG is missing; give a YAML file, or the name of a shipped config"),
        (["eval", "runs/a", "text=a", "text=b"], "eval: text= is given twice; remove one of them"),
        (["eval", "runs/a", "memorisation="], "eval: memorisation= is empty"),
        (["eval", "runs/a", "text=missing.txt"], "eval: text=missing.txt: there is no such file"),
        (
            ["eval", "runs/a", "tasks=x", "seed=99999999999"],
            "`seed` is 99999999999: input should be less than or equal to 2147483647",
        ),
        (["generate", "runs/a", "--chat-file", "no.jsonl"], "--chat-file no.jsonl: there is no such file"),
        (
            ["plan", "quickstart", "--topology", "h101:8", "--no-compile"],
            "--topology h101:8: there is no chip h101; did you mean h100?",
        ),
        (["plan"], "plan: the following arguments are required: CONFIG; see t5x-lite plan --help"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        exit_code = main(arguments)
    except SystemExit as stop:
        exit_code = stop.code
    error = capsys.readouterr().err
    assert exit_code == 2
    assert error.startswith("t5x-lite: ")
    assert error.count("\n") == 1
    assert message in error


def test_help_config_needs_no_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (rank,) = [line for line in lines if line.startswith("adapt.method.lora.rank ")]
    (family,) = [line for line in lines if line.startswith("model.family ")]
    assert rank.split()[1] == "int"
    assert family.split()[1:3] == ["choice", "decoder"]
    assert family.endswith(": decoder | encoder | encoder_decoder | electra")


def test_help_config_lists_every_setting(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_config), "--help-config"]) == 0
    output = capsys.readouterr().out
    for key in ("data.files", "model.layers", "train.batch_size", "optimizer.schedule.wsd.decay", "mesh.pipeline"):
        assert f"\n{key} " in output
    assert "(sequences)" in output


def test_train_uses_the_tokenizer_and_tokens_that_were_made_before(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"data.cache_dir={tmp_path}/cache"
    assert main(["tokenizer", str(tiny_config), cache, f"run_dir={tmp_path}/run"]) == 0
    assert (tmp_path / "run/tokenizer.model").is_file()
    assert main(["prepare", str(tiny_config), cache]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    assert (folder / "corpus.json").is_file()
    assert main(["train", str(tiny_config), cache, f"run_dir={tmp_path}/run", "train.steps=2"]) == 0
    assert "tokenising" not in capsys.readouterr().err


def test_a_report_of_several_runs_is_a_picture(tiny_run: Path, tmp_path: Path) -> None:
    assert main(["report", str(tiny_run), str(tiny_run), "--to", str(tmp_path / "both.png")]) == 0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_the_module_runs_the_command_line(t5x_lite: Shell) -> None:
    done = t5x_lite("--help")
    assert done.returncode == 0
    for command in ("train", "prepare", "tokenizer", "eval", "generate", "report"):
        assert command in done.stdout


def test_output_can_be_piped_into_head(tiny_config: Path) -> None:
    command = f"'{sys.executable}' -m t5x_lite train '{tiny_config}' --help-config | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("run_dir ")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    assert done.returncode in {0, 141}  # 0 if everything was written before `head` ended


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "CONFIG", "--help-config"], {141}),
        (["plan", "--help"], {0, 141}),  # argparse ignores that an unbuffered write fails
        (["eval", "nowhere"], {2}),  # nothing is written to standard output
    ],
)
def test_a_closed_standard_output_ends_a_command_quietly(
    tiny_config: Path, arguments: list[str], expected: set[int], unbuffered: str
) -> None:
    done = run_with_closed_stdout(*arguments, config=tiny_config, unbuffered=unbuffered)
    assert done.returncode in expected
    assert "Traceback" not in done.stderr
    assert "BrokenPipeError" not in done.stderr


def test_a_closed_standard_output_is_not_a_plan_that_does_not_fit(tiny_config: Path) -> None:
    """Rich, which prints plans, exits with code 1 by itself; of `plan` that would mean that nothing fits."""
    words = ("plan", "CONFIG", "--topology", "h100:1", "--no-compile", "model.vocab=300")
    done = run_with_closed_stdout(*words, config=tiny_config)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr


def run_with_closed_stdout(*arguments: str, config: Path, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line with a standard output whose reader is gone; CONFIG stands for the config."""
    words = [str(config) if word == "CONFIG" else word for word in arguments]
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        return subprocess.run(
            [sys.executable, "-m", "t5x_lite", *words],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(write_end)


def test_an_unexpected_error_is_one_line_that_names_the_file_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError("division\nby zero")

    assert main(["report", "run"], {"report": fail}) == 70
    (message,) = capsys.readouterr().err.splitlines()
    assert "this is a bug: ZeroDivisionError: division by zero" in message
    traceback_file = re.search(r"its traceback is in (\S+): please report it", message)
    assert traceback_file is not None
    assert "Traceback" in Path(traceback_file[1]).read_text()
    monkeypatch.setenv("T5X_LITE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["report", "run"], {"report": fail})


def test_a_message_of_another_library_becomes_one_short_line() -> None:
    assert one_line(ValueError("first\n  second\n")) == "first second"
    assert one_line(ValueError("x" * 1000)) == "x" * 300
    assert one_line(TimeoutError()) == "TimeoutError"


def test_lack_of_memory_of_packages_and_of_space_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for error, message in (
        (
            MemoryError("Unable to allocate 1 TiB"),
            "memory (Unable to allocate 1 TiB); lower train.batch_size",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
            "not enough memory (RESOURCE_EXHAUSTED",
        ),
        (ModuleNotFoundError("No module named 'gcsfs'", name="gcsfs"), "the Python package gcsfs is not installed"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room on the disk"),
    ):

        def fail(*_: object, error: Exception = error) -> int:
            raise error

        assert main(["report", "run"], {"report": fail}) == 2
        assert message in capsys.readouterr().err


def test_paths_that_cannot_be_read_end_in_one_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "config.json")
    for words in (
        ["train", str(tmp_path / "pipe.yaml")],
        ["train", str(tmp_path / "folder.yaml")],
        ["train", "/dev/zero"],
        ["train", "x" * 5000 + ".yaml"],
        ["eval", "y" * 5000],
        ["eval", str(tiny_run), "text=" + "z" * 5000],
        ["import", "hf", str(tmp_path), str(tmp_path / "run")],
        ["report", str(tmp_path / "folder.yaml")],
    ):
        assert main(words) == 2, words
        assert len(capsys.readouterr().err.splitlines()) == 1, words


def test_a_path_with_a_line_break_stays_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "two\nlines.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("words", [["--prompt=a\udcff"], ["--prompt=a", "--stop=\udcff"]])
def test_a_prompt_that_is_not_utf8_is_refused(
    words: list[str], tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(tiny_run), *words, "--tokens=2"]) == 2
    assert r"\udcff' is not valid UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["", "0", "-1", "²", "٣", "99999999999", "8x8"])
def test_a_number_of_gpus_that_is_none_is_refused(
    count: str, tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tiny_config), "--topology", f"h100:{count}"]) == 2
    assert "write the number of GPUs, at most 100,000, as in h100:8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["picture", "picture.unknown", "folder/"])
def test_a_report_of_an_unknown_kind_is_refused(
    name: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tiny_run), "--to", str(tmp_path / name)]) == 2
    assert "is not the name of a picture; it ends in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pipes_are_not_waited_for(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    for words in (["embed", str(tiny_run), str(pipe)], ["sweep", "fit", str(pipe)]):
        assert main(words) == 2
        assert f"{pipe}: is not a file" in capsys.readouterr().err


INTERRUPTED_IMPORT = """
import sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "pydantic":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
import runpy
runpy.run_module("t5x_lite", run_name="__main__")
"""


def test_an_interrupt_while_modules_are_imported_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert (done.returncode, done.stderr) == (130, "t5x-lite: interrupted\n")
