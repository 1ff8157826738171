"""`t5x-lite sweep eval`: evaluate every finished run of a sweep. What is in the caches of the runs is not repeated."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from t5x_lite.errors import UserError
from t5x_lite.evaluate.cached_evaluation import cache_file
from t5x_lite.evaluate.command import EvaluationRequest, choose_evaluators, parse_request
from t5x_lite.evaluate.evaluators import Evaluator
from t5x_lite.local_copies import with_urls
from t5x_lite.locked_folder import lock_dir
from t5x_lite.progress import print_line
from t5x_lite.run_dir import open_run
from t5x_lite.storage import file_exists
from t5x_lite.sweep.config import SweepConfig, load
from t5x_lite.sweep.evaluation_pool import run_evaluations
from t5x_lite.sweep.evaluation_table import print_evaluations
from t5x_lite.sweep.evaluations import SweepEvaluations, read_evaluations, write_evaluations
from t5x_lite.sweep.planned_run import PlannedRun
from t5x_lite.sweep.run_points import finished_runs


@dataclass(frozen=True)
class _Command:
    """The parsed command line.

    Attributes:
        folder: the sweep's.
        jobs: runs at the same time.
        request: the evaluations.
        arguments: words for `t5x-lite eval` behind the run directory.
        overrides: those of the words that override the runs' configs.
    """

    folder: Path
    jobs: int
    request: EvaluationRequest
    arguments: list[str]
    overrides: list[str]


@dataclass
class _Fingerprints:
    """Hashes of the files that evaluators read, which many runs share."""

    by_settings: dict[str, str] = field(default_factory=dict)

    def of(self, evaluator: Evaluator) -> str:
        settings = f"{type(evaluator).__name__} {evaluator.model_dump_json()}"
        if settings not in self.by_settings:
            self.by_settings[settings] = evaluator.fingerprint()
        return self.by_settings[settings]


def evaluate_sweep(
    subject: Path, words: Sequence[str], options: argparse.Namespace, environment: Mapping[str, str]
) -> int:
    """Evaluate the finished runs of a sweep, and write `SWEEP/eval/results.json`.

    Args:
        subject: the sweep's file or folder.
        words: `name=value` arguments: evaluations as of `t5x-lite eval`, settings of the sweep, and overrides of the
            runs' configs.
        options: `include`, `limit` and `json` of the command line.
        environment: environment variables of the processes that evaluate.

    Returns:
        The exit code.

    Raises:
        UserError: no run is finished, an evaluation is not possible, or another process evaluates the sweep.
    """
    command = _parse_command(subject, words, options)
    runs, left_out = finished_runs(command.folder)
    console = Console(stderr=True)
    for name, reason in left_out.items():
        print_line(console, f"left out: {name}: {reason}")
    if not runs:
        raise UserError(f"{command.folder}: no run is complete yet; `t5x-lite sweep` continues the sweep")
    with lock_dir(command.folder / "eval", "another process evaluates this sweep; wait for it"):
        files = _find_files(runs, command)
        missing = [run for run in runs if not all(file_exists(name) for name in files[run.name].values())]
        commands = {run.name: _eval_command(run, command) for run in missing}
        print_line(console, f"{len(runs) - len(missing)} of {len(runs)} runs are evaluated already")
        exit_code = run_evaluations(commands, command.jobs, environment, command.folder / "eval")
        evaluated = [run for run in runs if all(file_exists(name) for name in files[run.name].values())]
        results = read_evaluations(command.folder).updated(files, evaluated)
        path = write_evaluations(command.folder, results)
    _print_results(results, evaluated, files, path, as_json=options.json)
    return exit_code


def _print_results(
    results: SweepEvaluations,
    runs: Sequence[PlannedRun],
    files: Mapping[str, Mapping[str, str]],
    path: Path,
    *,
    as_json: bool,
) -> None:
    labels = list(dict.fromkeys(label for run in runs for label in files[run.name]))
    if as_json:
        print(json.dumps(results.metrics(runs, labels)))
        return
    print_evaluations(results, runs, labels)
    print(with_urls(f"written: {path}"))


def _parse_command(subject: Path, words: Sequence[str], options: argparse.Namespace) -> _Command:
    sweep_words: list[str] = []
    evaluation_words: list[str] = []
    for word in words:
        key = word.removeprefix("--").partition("=")[0]
        is_of_sweep = key.partition(".")[0] in SweepConfig.model_fields
        (sweep_words if is_of_sweep else evaluation_words).append(word)
    request, overrides = parse_request(evaluation_words, options.include, options.limit)
    arguments = list(evaluation_words)
    if options.include is not None:
        arguments += ["--include", str(options.include)]
    if options.limit is not None:
        arguments += ["--limit", str(options.limit)]
    if subject.is_dir():
        if sweep_words:
            raise UserError(f"sweep eval {subject}: {sweep_words[0]} needs the sweep's file instead of its folder")
        return _Command(subject, 1, request, arguments, overrides)
    sweep = load(subject, sweep_words)
    return _Command(sweep.folder, sweep.config.jobs, request, arguments, overrides)


def _find_files(runs: Sequence[PlannedRun], command: _Command) -> dict[str, dict[str, str]]:
    """Return, by run and by label of the evaluation, the file in the run's cache.

    Raises:
        UserError: a run cannot be opened or evaluated in this way.
    """
    fingerprints = _Fingerprints()
    files = {}
    for planned in runs:
        run = open_run(planned.run_dir, command.overrides)
        names = {}
        for evaluator in choose_evaluators(run.config, command.request):
            for problem in evaluator.model_problems(run.config.model):
                raise UserError(f"run {planned.name}: {problem}")
            name = cache_file(run, planned.steps, evaluator, fingerprints.of(evaluator))
            label = _label(evaluator)
            if label in names:
                raise UserError(f"run {planned.name}: has two evaluations {label}; name one on the command line")
            names[label] = name
        files[planned.name] = names
    return files


def _label(evaluator: Evaluator) -> str:
    """Return what distinguishes an evaluation from the others of a sweep: another one of this label replaces it."""
    settings = evaluator.model_dump(mode="json")
    subject = settings.get("tasks") or settings.get("name") or settings.get("text") or ""
    if isinstance(subject, list):
        subject = ",".join(subject)
    return f"{type(evaluator).__name__} {subject}".strip()


def _eval_command(run: PlannedRun, command: _Command) -> list[str]:
    words = [sys.executable, "-m", "t5x_lite", "eval", run.run_dir, *command.arguments]
    return [*words, "--step", str(run.steps), "--cached", "--json"]
