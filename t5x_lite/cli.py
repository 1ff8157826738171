"""The command line: one function for each command, which loads the config and calls the library.

JAX, and modules that need it, are imported inside the commands, so that `--help` and config errors are immediate.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeAlias

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite import local_copies, schema
from t5x_lite.arguments import build_parser
from t5x_lite.errors import STOPPED, UserError
from t5x_lite.parallel.config import choose_slices, gpu_count
from t5x_lite.parallel.job_environment import set_job_environment
from t5x_lite.planner import gpu_compiler, libtpu
from t5x_lite.plugins import load_plugins
from t5x_lite.process_output import discard_stdout, is_stdout_closed, silence_libraries
from t5x_lite.retrieval import cli as retrieval
from t5x_lite.retrieval.config import passages_of_arguments
from t5x_lite.run_layout import METRICS_FILE
from t5x_lite.sweep.arguments import parse_words
from t5x_lite.unexpected import DEBUG_VARIABLE, as_user_error, describe_bug

if TYPE_CHECKING:
    from t5x_lite.run_dir import Run

Command: TypeAlias = Callable[[argparse.Namespace, list[str]], int]
"""Maps the options and the overrides of a command to the exit code."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""
BROKEN_PIPE = 141
"""Exit code if the reader of standard output has closed it, as `head` does: 128 + SIGPIPE."""
BUG = 70
"""Exit code after an error that no user can have made (BSD's EX_SOFTWARE)."""
WITHOUT_OVERRIDES = ("import", "export", "report", "watch", "new")
"""Commands without a config to override."""


def main(arguments: Sequence[str] | None = None, commands: Mapping[str, Command] | None = None) -> int:
    """Run a command and return the exit code of the process.

    Args:
        arguments: words of the command line; by default those of the process.
        commands: functions by name of the command; by default `COMMANDS`.
    """
    try:
        try:
            return _run_command(arguments, commands or COMMANDS)
        finally:
            if sys.stdout is not None:  # it is None if the process was started without a standard output
                sys.stdout.flush()  # a closed pipe is noticed here, and not when the interpreter exits
    except BrokenPipeError:
        if not is_stdout_closed():
            raise
        discard_stdout()
        return BROKEN_PIPE
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich exits with code 1 if standard output is closed
            return BROKEN_PIPE
        raise


def _run_command(arguments: Sequence[str] | None, commands: Mapping[str, Command]) -> int:
    try:
        gpu_compiler.skip_cuda_check()
        options, unknown = build_parser().parse_known_args(arguments)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        silence_libraries()
        options.parser.refuse_options(unknown)
        if unknown and options.command in WITHOUT_OVERRIDES:
            raise UserError(f"{options.command}: {unknown[0]} is not an option; see t5x-lite {options.command} --help")
        overrides = [*getattr(options, "overrides", []), *unknown]
        return _run_and_upload(commands[options.command], options, overrides)
    except UserError as error:
        _print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _print_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        user_error = as_user_error(error)
        if user_error is None:
            _print_error(describe_bug(error))
            return BUG
        _print_error(str(user_error))
        return user_error.exit_code


def _run_and_upload(command: Command, options: argparse.Namespace, overrides: list[str]) -> int:
    """Run a command. What it has written to a run directory in an object store is uploaded even if it fails."""
    try:
        exit_code = command(options, overrides)
    except BaseException:
        with suppress(UserError):  # the first error is the one to show
            local_copies.upload_changes()
        raise
    local_copies.upload_changes()
    return exit_code


def _print_error(message: str) -> None:
    """Print an error in one line, whatever line breaks a path or another library's message has."""
    print("t5x-lite: " + " ".join(local_copies.with_urls(message).splitlines()), file=sys.stderr)


def train(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite train CONFIG [key=value …]`."""
    if options.help_config:
        load_plugins()
        schema.print_explained(configuration.RunConfig)
        return 0
    if options.config is None:
        raise UserError(
            "train: CONFIG is missing; give a YAML file, or the name of a shipped config such as quickstart"
        )
    config = configuration.load(options.config, overrides)
    set_job_environment(options.coordinator, options.num_processes, options.process_id)
    import jax

    from t5x_lite.parallel import distributed
    from t5x_lite.planner.capacity import fit_to_devices
    from t5x_lite.train.loop import train as run_training

    distributed.initialize(config.data.cache_dir)
    with distributed.abort_together():
        run, is_complete = run_training(fit_to_devices(config))
    if not is_complete:
        return STOPPED
    if jax.process_index() == 0:
        _report_run(run)
    return 0


def _report_run(run: "Run") -> None:
    """Draw the curves of a complete run, print a sample, and say where everything is."""
    from t5x_lite.evaluate.write_reports import write_reports

    is_lost = not (run.folder / METRICS_FILE).exists()  # a run directory that is new, whose checkpoints are elsewhere
    files = [] if is_lost else [METRICS_FILE, *[path.name for path in write_reports([run.folder])]]
    prompt = run.config.train.sample_prompt
    if prompt:
        from t5x_lite.decode.fill import print_generation
        from t5x_lite.decode.sampling import Sampling, default_tokens

        print("\nsample:")
        sampling = Sampling(default_tokens(run.config.model.max_length), temperature=0.8, top_p=0.95)
        print_generation(t5x_lite.load(str(run.config.run_dir)), [prompt], sampling)
    checkpoints = run.config.checkpoint.folder or "checkpoints/"
    print(f"run: {run.config.run_dir} ({', '.join([*files, checkpoints, 'tokenizer', 'config.yaml'])})")


def prepare(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite prepare CONFIG [key=value …]`."""
    config = configuration.load(options.config, overrides)
    if config.tasks:
        raise UserError(
            "prepare: the records of `tasks` are tokenised while they are read; there is nothing to prepare"
        )
    from t5x_lite.data.open_data import prepare_sources
    from t5x_lite.data.prepare_report import empty_splits, prepared_as_json, print_prepared
    from t5x_lite.run_data import open_tokenizer, pipeline_settings

    trained_tokenizer = open_tokenizer(config)
    prepared = prepare_sources(pipeline_settings(config, trained_tokenizer), trained_tokenizer, options.runner)
    if options.json:
        print(json.dumps(prepared_as_json(prepared)))
    else:
        print_prepared(prepared)
    for line in empty_splits(prepared):
        print(line, file=sys.stderr)
    return 0


def tokenizer(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite tokenizer CONFIG [key=value …]`."""
    config = configuration.load(options.config, overrides)
    from t5x_lite.run_data import open_tokenizer

    trained_tokenizer = open_tokenizer(config)
    path = trained_tokenizer.save(local_copies.local_path(str(config.run_dir)))
    print(f"{trained_tokenizer.vocab} tokens; saved as {local_copies.with_urls(str(path))}")
    return 0


def plan(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite plan CONFIG --topology NAME [key=value …]`. The exit code is 1 if nothing fits in memory."""
    config = configuration.load(options.config, overrides)
    topology = options.topology or config.plan.topology
    if not topology:
        raise UserError("plan needs --topology (or plan.topology in the config), such as v5p:4x4x4")
    gpus = gpu_count(topology)
    slices = choose_slices(options.slices, config.plan.slices, topology)
    can_compile = not options.no_compile
    if gpus is None:
        libtpu.prepare()
    else:
        gpu_compiler.prepare(gpus, can_compile=can_compile)
    from t5x_lite.planner.config import PlanConfig
    from t5x_lite.planner.plan import make_plan
    from t5x_lite.planner.planned_config import write_planned_config
    from t5x_lite.planner.report import print_plan, print_search
    from t5x_lite.planner.search import search
    from t5x_lite.planner.topology import find_pod

    pod = find_pod(topology, slices, can_compile=can_compile)
    if options.search:
        plans = search(config, topology, slices, pod)
        if options.json:
            print(json.dumps({"candidates": [asdict(candidate) for candidate in plans]}))
        else:
            print_search(plans)
    else:
        plans = [make_plan(config, topology, slices, pod)]
        if options.json:
            print(json.dumps(asdict(plans[0])))
        else:
            print_plan(plans[0])
    best = plans[0]  # a search returns those that fit first
    if options.emit:
        planned_for = PlanConfig(topology=topology, slices=slices)
        write_planned_config(options.config, overrides, best, planned_for, options.emit)
    return 0 if best.fits else 1


def sweep(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite sweep [fit|eval|plot] SWEEP [key=value …]`."""
    action, name, sweep_overrides = parse_words(options, [*options.words, *overrides])
    subject = local_copies.local_path(name)
    environment = dict(os.environ)
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process only counts shapes; the devices are for the runs
    match action:
        case "fit":
            from t5x_lite.sweep.fit_command import fit

            return fit(subject, sweep_overrides, options)
        case "eval":
            from t5x_lite.sweep.evaluate_command import evaluate_sweep

            return evaluate_sweep(subject, sweep_overrides, options, environment)
        case "plot":
            from t5x_lite.sweep.plot_command import plot_sweep

            return plot_sweep(subject, sweep_overrides, options)
    from t5x_lite.sweep import config, launch

    return launch.start(config.load(subject, sweep_overrides), yes=options.yes, environment=environment)


def evaluate(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite eval RUN [tasks=a,b] [text=FILE] [key=value …]`."""
    from t5x_lite.evaluate.command import evaluate_model, parse_request
    from t5x_lite.progress import print_metrics

    request, config_overrides = parse_request(overrides, options.include, options.limit, passages_of_arguments(options))
    model = t5x_lite.load(options.run, step=options.step, overrides=config_overrides)
    results = {"step": model.step, **evaluate_model(model, request, cached=options.cached)}
    print_metrics(results, as_json=options.json)
    return 0


def embed(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite embed RUN FILE [key=value …]`."""
    from t5x_lite.evaluate.embed_command import parse_request, print_result

    request = parse_request(options)
    print_result(t5x_lite.load(options.run, step=options.step, overrides=overrides), request)
    return 0


def probe(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite probe RUN --train FILE --test FILE …`."""
    from t5x_lite.evaluate.probe import ProbeSettings, probe_layers
    from t5x_lite.evaluate.probe_report import check_picture, print_probe, write_probe

    if options.to:
        check_picture(options.to)
    model = t5x_lite.load(options.run, step=options.step, overrides=overrides)
    settings = ProbeSettings(options.text, options.label, options.columns, options.pool, options.limit)
    report = probe_layers(model, options.train, options.test, settings)
    picture = options.to or model.run.results_folder(model.step) / "probe.png"
    write_probe(report, picture)
    print_probe(report, as_json=options.json)
    return 0


def generate(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite generate RUN --prompt TEXT …`."""
    from t5x_lite.decode.command import parse_request, print_results

    request = parse_request(options)
    model = t5x_lite.load(options.run, step=options.step, overrides=overrides, quantization=options.quantization)
    print_results(model, request)
    return 0


def import_(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite import hf DIR RUN` or `t5x-lite import t5x CHECKPOINT RUN`."""
    from t5x_lite.convert import hub, huggingface, t5x

    if options.format == "hf":
        run = huggingface.import_hf(hub.find_model(options.source), options.target, without_head=options.without_head)
    elif options.without_head:
        raise UserError("import t5x: --without-head is for the encoders of Hugging Face folders")
    else:
        run = t5x.import_t5x(options.source, options.target)
    print(f"run: {run.config.run_dir} ({run.spec.parameters:,} parameters, {run.config.model.family})")
    if run.stored_tokenizer is None:
        print("no tokenizer came with it: put tokenizer.json or tokenizer.model there before it reads text")
    return 0


def export(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite export hf RUN DIR [--push ORG/NAME]` or `t5x-lite export megatron CORPUS PREFIX`."""
    if options.format == "megatron":
        if options.push or options.private or options.step is not None:
            raise UserError("export megatron: --push, --private and --step are for models (export hf)")
        from t5x_lite.data.export_corpus import export_megatron

        print(export_megatron(options.source, options.target))
        return 0
    from t5x_lite.convert.command import export_model

    export_model(options.source, options.target, options.step, options.push, private=options.private)
    return 0


def report(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite report RUN …`."""
    from t5x_lite.evaluate.write_reports import print_comparison, write_reports

    runs = [local_copies.local_path(run) for run in options.runs]
    if options.before:
        print_comparison(runs)
    for path in write_reports(runs, options.to):
        print(local_copies.with_urls(str(path)))
    return 0


def watch(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite watch RUN`."""
    from t5x_lite.watch.command import watch as watch_run

    watch_run(options.run, options.every, once=options.once, as_json=options.json)
    return 0


def new(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite new NAME`."""
    from t5x_lite.new_project.create import create_project

    for path in create_project(options.name):
        print(options.name / path)
    print(f"next: cd {options.name} && pip install -e '.[test]' && t5x-lite train configs/pretrain.yaml")
    return 0


def doctor(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite doctor [CONFIG] [key=value …]`. The exit code is 2 if something is wrong or missing."""
    from t5x_lite.doctor.diagnosis import diagnose, format_diagnosis

    diagnosis = diagnose(options.config, overrides)
    if options.json:
        print(json.dumps(diagnosis.as_json()))
    else:
        print(format_diagnosis(diagnosis))
    return UserError.exit_code if diagnosis.problems else 0


COMMANDS: dict[str, Command] = {
    "train": train,
    "prepare": prepare,
    "tokenizer": tokenizer,
    "plan": plan,
    "sweep": sweep,
    "eval": evaluate,
    "embed": embed,
    "probe": probe,
    "index": retrieval.index,
    "search": retrieval.search,
    "generate": generate,
    "import": import_,
    "export": export,
    "report": report,
    "watch": watch,
    "new": new,
    "doctor": doctor,
}
