"""`sweep eval` and `sweep plot`: results of finished runs, taken from their caches or computed by processes."""

import csv
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from t5x_lite.cli import main
from t5x_lite.errors import STOPPED
from t5x_lite.sweep.evaluation_pool import run_evaluations
from t5x_lite.sweep.planned_run import PlannedRun
from tests.conftest import Shell

pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")

SIZES = {"small": 1e12, "large": 4e12}


@pytest.fixture
def sweep_folder(tiny_run: Path, tmp_path: Path) -> Path:
    """A sweep of two runs that are complete, and of a third that has not begun."""
    runs = []
    for name, flops in SIZES.items():
        shutil.copytree(tiny_run, tmp_path / "runs" / name, ignore=shutil.ignore_patterns("eval", "tensorboard"))
        run = PlannedRun(name, "", {}, str(tmp_path / "runs" / name), 1e5 * flops / 1e12, 1e6, flops, 0, 1, 12, 12, 1e9)
        runs.append(run)
    runs.append(replace(runs[0], name="missing", run_dir=str(tmp_path / "runs/missing")))
    plan = {"sweep": "grid", "settings": {}, "runs": [asdict(run) for run in runs]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return tmp_path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task with choices, and a task of texts that are to follow."""
    folder = tmp_path_factory.mktemp("tasks")
    records = []
    for number in range(6):
        record = {"question": "the quick" + " jumps over" * number, "choices": ["brown fox", "lazy dog", "jumps"]}
        records.append(json.dumps({**record, "answer": number % 3, "completion": "brown fox"}) + "\n")
    (folder / "records.jsonl").write_text("".join(records))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "records.jsonl")}}}
    common = {**source, "test_split": "test", "doc_to_text": "{{question}}"}
    choices = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
    metrics = [{"metric": "acc"}, {"metric": "brier_score"}]
    (folder / "pick.yaml").write_text(json.dumps({"task": "pick", **common, **choices, "metric_list": metrics}))
    texts = {"output_type": "loglikelihood", "doc_to_target": " {{completion}}", "metric_list": [{"metric": "acc"}]}
    (folder / "follow.yaml").write_text(json.dumps({"task": "follow", **common, **texts}))
    generated = {
        "output_type": "generate_until",
        "doc_to_target": "{{completion}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "write.yaml").write_text(json.dumps({"task": "write", **common, **generated}))
    return folder


def records_of(run: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "eval/12" / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_results_that_eval_has_cached_are_collected_and_drawn(
    sweep_folder: Path, tasks: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["tasks=pick,follow,write", "--include", str(tasks)]
    for name in SIZES:
        assert main(["eval", str(sweep_folder / "runs" / name), *words, "--cached", "--json"]) == 0
    scores = json.loads(capfd.readouterr().out.splitlines()[-1])
    # The harness computes the same Brier score and accuracy.
    assert scores["eval/pick/brier"] == pytest.approx(scores["eval/pick/brier_score"])
    assert scores["eval/pick/accuracy"] == scores["eval/pick/acc"]
    assert scores["eval/follow/accuracy"] == scores["eval/follow/acc"]
    assert scores["eval/write/accuracy"] == scores["eval/write/exact_match"]
    # The right answer is the same text after the same prompt.
    assert scores["eval/write/log_likelihood"] == pytest.approx(scores["eval/follow/log_likelihood"], abs=1e-4)
    for record in records_of(sweep_folder / "runs/large", "pick"):
        log_likelihoods = [response[0] for response in record["filtered_resps"]]
        assert record["scores"]["log_likelihood"] == log_likelihoods[record["doc"]["answer"]]

    monkeypatch.setattr("t5x_lite.sweep.device_share.subprocess.Popen", None)  # no process is needed
    assert main(["sweep", "eval", str(sweep_folder), *words, "--json"]) == 0
    output = capfd.readouterr()
    assert "left out: missing: not complete: step 0 of 12" in output.err
    assert "2 of 2 runs are evaluated already" in output.err
    collected = json.loads(output.out)
    assert collected["large"] == {name: value for name, value in scores.items() if name != "step"}

    assert main(["sweep", "plot", str(sweep_folder)]) == 0
    with (sweep_folder / "eval/abilities.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [row for row in rows if (row["run"], row["task"], row["metric"]) == ("large", "pick", "brier")]
    assert float(row["value"]) == pytest.approx(scores["eval/pick/brier_score"])
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    assert (float(row["flops"]), row["examples"]) == (4e12, "6")
    assert (sweep_folder / "eval/abilities.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((sweep_folder / "eval/abilities.json").read_text())["inverse_scaling"] == []


def test_a_change_of_settings_weights_or_documents_is_another_evaluation(
    sweep_folder: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = sweep_folder / "runs/small"
    folder = tmp_path / "changed"
    shutil.copytree(tasks, folder)
    task = (folder / "follow.yaml").read_text().replace(str(tasks), str(folder))
    (folder / "follow.yaml").write_text(task)
    command = ["eval", str(run), "tasks=follow", "--include", str(folder), "--cached", "--json"]

    def count_results() -> int:
        assert main(command) == 0
        return len(list((run / "eval/12/cache").glob("*.json")))

    assert [count_results(), count_results()] == [1, 1]
    command.append("--limit=3")
    assert count_results() == 2
    lines = (folder / "records.jsonl").read_text().splitlines()
    (folder / "records.jsonl").write_text("".join(f"{line}\n" for line in reversed(lines)))
    assert count_results() == 3
    manifest = run / "checkpoints/12/manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    assert count_results() == 4
    damaged = min((run / "eval/12/cache").glob("*.json"), key=lambda path: path.stat().st_mtime)
    damaged.write_text("{}")
    (folder / "records.jsonl").write_text("".join(f"{line}\n" for line in lines))
    manifest.write_text(manifest.read_text().removesuffix(" "))
    capfd.readouterr()
    assert main(command[:-1]) == 2
    assert f"{damaged}: is damaged" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "{folder}", "tasks=follow", "--include", "{folder}/none"], "none: is not a folder"),
        (["eval", "{folder}", "seeds=[1]"], "seeds=[1] needs the sweep's file instead of its folder"),
        (["eval", "{folder}", "cloze=none.yaml"], "none.yaml"),
        (["eval", "{tasks}"], "is not the folder of a sweep that was started"),
        (["eval"], "give a sweep's YAML file"),
        (["plot", "{folder}"], "no task was evaluated yet; run t5x-lite sweep eval first"),
        (["plot", "{folder}", "--to", "a.pdf"], "expected a name that ends in .png"),
        (["plot", "{folder}", "--limit", "3"], "--limit is for `sweep eval`"),
        (["{folder}", "--to", "a.png"], "sweep: --to is for `sweep plot`"),
        (["{folder}", "--budget", "1e21"], "sweep: --budget is for `sweep fit`"),
        (["{folder}", "--json"], "sweep: --json is for `sweep fit` and `sweep eval`"),
        (["fit", "{folder}", "--yes"], "sweep fit: --yes is for `sweep`"),
    ],
)
def test_invalid_commands_are_one_line_of_error(
    words: list[str], message: str, sweep_folder: Path, tasks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [word.format(folder=sweep_folder, tasks=tasks) for word in words]
    assert main(["sweep", *command]) == 2
    last_line = capfd.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith("t5x-lite: ")
    assert message in last_line


def test_a_process_that_fails_is_named_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = {"bad": ["sh", "-c", "echo no memory >&2; exit 3"], "good": ["touch", str(tmp_path / "done")]}
    assert run_evaluations(commands, 1, dict(os.environ), tmp_path) == 1
    assert "bad: failed: no memory" in capfd.readouterr().err
    assert (tmp_path / "done").exists()


def test_a_request_to_stop_ends_the_processes_and_starts_no_more(tmp_path: Path) -> None:
    interrupt = ["sh", "-c", f"kill -INT {os.getpid()}; sleep 60"]
    commands = {"first": interrupt, "second": ["touch", str(tmp_path / "second")]}
    assert run_evaluations(commands, 1, dict(os.environ), tmp_path) == STOPPED
    assert not (tmp_path / "second").exists()


@pytest.mark.slow
def test_only_what_is_missing_is_evaluated_again(sweep_folder: Path, tasks: Path, t5x_lite: Shell) -> None:
    command = ["sweep", "eval", sweep_folder, "tasks=follow", "--include", tasks]
    first = t5x_lite(*command)
    assert first.returncode == 0, first.stderr
    assert "0 of 2 runs are evaluated already" in first.stderr
    assert "follow: 6 examples" in first.stdout
    caches = {name: sweep_folder / "runs" / name / "eval/12/cache" for name in SIZES}
    (lost,) = caches["small"].iterdir()
    (retained,) = caches["large"].iterdir()
    time_written = retained.stat().st_mtime_ns
    content = json.loads(lost.read_text())
    lost.unlink()
    second = t5x_lite(*command)
    assert "1 of 2 runs are evaluated already" in second.stderr
    assert json.loads(lost.read_text())["examples"] == content["examples"]
    assert retained.stat().st_mtime_ns == time_written
