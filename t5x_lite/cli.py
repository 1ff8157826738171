"""The command line: one function per command, which parses, loads the config and calls.

JAX and what needs it are imported inside the commands, so that `--help` and a wrong config answer at once.
"""

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite import schema
from t5x_lite.errors import STOPPED, UserError
from t5x_lite.planner import libtpu
from t5x_lite.tasks import short_name

DECODING = {
    "tokens": (int, "most tokens to add (default 128)"),
    "temperature": (float, "0 is greedy (default 1)"),
    "top_k": (int, "only the k likeliest tokens"),
    "top_p": (float, "only the likeliest tokens that hold this probability"),
    "min_p": (float, "only tokens of this share of the likeliest one's probability"),
    "repetition_penalty": (float, "above 1: tokens that are there already become less likely"),
    "seed": (int, "same seed, same text (default 0)"),
    "beams": (int, "beam search with so many hypotheses, instead of sampling"),
    "length_penalty": (float, "beam search's, of GNMT: 0 is none (default 0.6)"),
}
"""Options of `generate`: settings of `decode.sampling.Sampling` or `decode.beam.Beam`; one left out has its default."""


EVALUATION = {
    "tasks": "names as lm-evaluation-harness has them",
    "num_fewshot": "examples in the prompts of tasks",
    "text": "a file whose perplexity is wanted",
    "window": "tokens read at one time",
    "stride": "tokens of a text scored by each window after the first (default: half the window)",
}
"""What `eval` takes beside overrides of the config."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options, rest = _parser().parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    _quiet_orbax()
    try:
        if rest and options.command in (import_, export, report):
            name = options.command.__name__.strip("_")
            raise UserError(f"{name}: unknown option {rest[0]}; see t5x-lite {name} --help")
        return options.command(options, [*getattr(options, "overrides", []), *rest])
    except UserError as error:
        print(f"t5x-lite: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("t5x-lite: interrupted", file=sys.stderr)
        return 130


def _quiet_orbax() -> None:
    """Orbax raises what goes wrong in its threads, and prints it several times over besides: the first is enough."""
    for name in ("absl", "asyncio", "orbax"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threads, unraisable = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda failed: type(failed.thread).__module__.startswith("orbax") or threads(failed)
    # Writes that end after a failed save report to an event loop that is gone.
    sys.unraisablehook = lambda failed: "Event loop is closed" in str(failed.exc_value) or unraisable(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="t5x-lite", description="Pretrain, resume, evaluate and sample Transformer language models in JAX."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: object, about: str, subjects: Mapping[str, str], *, step: bool = False, json: bool = False
    ) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        for subject, meaning in subjects.items():
            own.add_argument(subject, metavar=subject.upper(), type=Path, help=meaning)
        if subjects:
            own.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the config")
        if step:
            own.add_argument("--step", type=int, help="a checkpoint's step; the newest if left out")
        if json:
            own.add_argument("--json", action="store_true", help="one JSON object on standard output")
        own.set_defaults(command=function)
        return own

    _add_commands(command)
    return parser


def _add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    config, run = {"config": "YAML file of a run"}, {"run": "a run directory"}
    own = command("train", train, "pretrain; a run directory that holds a checkpoint is resumed", config)
    own.add_argument("--help-config", action="store_true", help="list every setting, and end")
    own.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 of a job of several is reached")
    own.add_argument("--num-processes", type=int, help="processes of the job")
    own.add_argument("--process-id", type=int, help="which of them this is, from 0")
    own = command("prepare", prepare, "tokenise the corpora of a config into its token cache", config)
    own.add_argument("--runner", help="tokenise on a runner of Apache Beam, such as DirectRunner or DataflowRunner")
    command("tokenizer", tokenizer, "train the tokenizer of a config", config)
    own = command("plan", plan, "compile the train step for a TPU pod, here, without one", config, json=True)
    own.add_argument("--topology", help="chips and their shape, such as v5p:8x8x16 (default: plan.topology)")
    own.add_argument("--slices", type=int, help="pods of that shape, joined by the data centre's network")
    own.add_argument("--search", action="store_true", help="try meshes and remat policies, and rank those that fit")
    own = command("sweep", sweep, "run a grid of runs, or fit the scaling law to it", {})
    own.add_argument("words", metavar="[fit] SWEEP [key=value …]", nargs="+", help="a sweep's YAML file; fit: or a CSV")
    own.add_argument("--yes", action="store_true", help="start without asking")
    own.add_argument("--budget", type=float, help="fit: FLOPs of the best run to predict (default: ten times the most)")
    own.add_argument("--run", type=float, nargs=2, metavar=("N", "D"), help="fit: a run to predict the loss of")
    own.add_argument("--draws", type=int, default=1000, help="fit: draws of each bootstrap (default %(default)s)")
    own.add_argument("--drop-highest", type=int, default=0, metavar="K", help="fit: leave out the K highest losses")
    own.add_argument("--emit", type=Path, metavar="CONFIG", help="fit: write the config of the predicted best run")
    own.add_argument("--json", action="store_true", help="fit: one JSON object on standard output")
    about = "score a run on tasks=a,b (few-shot), on text=FILE, or on its validation split"
    own = command("eval", evaluate, about, run, step=True, json=True)
    own.epilog = "; ".join(f"{name}= {meaning}" for name, meaning in EVALUATION.items())
    own.add_argument("--include", type=Path, metavar="FOLDER", help="where more YAMLs of tasks are")
    own.add_argument("--limit", type=int, metavar="N", help="documents of each task at most")
    own = command("embed", embed, "write the lines of a file as vectors", {**run, "file": "a text a line"}, step=True)
    own.add_argument("--to", type=Path, help=".npy, or .npz with --pool none (default: named after FILE)")
    own.add_argument("--pool", default="mean", help="mean (default), cls, max, or none for every token")
    own.add_argument("--layer", type=int, help="from 1, or from the last as -1 (default: the last)")
    own = command("generate", generate, "continue prompts, answer them, or fill their masks", run, step=True)
    own.add_argument("--prompt", action="append", required=True, help="text to continue; may be given several times")
    own.add_argument("--stop", action="append", default=argparse.SUPPRESS, help="text that ends one; may be repeated")
    for name, (kind, meaning) in DECODING.items():
        own.add_argument("--" + name.replace("_", "-"), type=kind, default=argparse.SUPPRESS, help=meaning)
    own = command("import", import_, "make a run of weights from elsewhere", {})
    own.add_argument("format", choices=["hf", "t5x"], help="hf: Hugging Face folder; t5x: a native T5X checkpoint")
    own.add_argument("source", metavar="DIR", type=Path, help="what is read")
    own.add_argument("target", metavar="RUN", type=Path, help="what is made")
    own = command("export", export, "write a run's weights for others", {}, step=True)
    own.add_argument("format", choices=["hf"], help="hf: Hugging Face folder")
    own.add_argument("source", metavar="RUN", type=Path, help="what is read")
    own.add_argument("target", metavar="DIR", type=Path, help="what is made")
    own = command("report", report, "draw the curves of runs as one picture", {})
    own.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run directories, drawn together")
    own.add_argument("--to", type=Path, help="the picture's file (default: report.png in the first run)")


def train(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite train CONFIG [k=v …]`."""
    if options.help_config:
        return _explain_config()
    config = configuration.load(options.config, overrides)
    _join(options)
    import jax

    from t5x_lite.parallel import distributed
    from t5x_lite.train.loop import train as run_training

    distributed.initialize(Path(config.data.cache_dir))
    with distributed.abort_together():
        run, complete = run_training(config)
    if not complete:
        return STOPPED
    if jax.process_index() == 0:
        from t5x_lite.evaluate.report import draw_report

        picture = draw_report([run.folder], run.folder / "report.png")
        if config.train.sample_prompt:
            from t5x_lite.decode.fill import print_generation
            from t5x_lite.decode.generate import Sampling

            print("\nsample:")
            print_generation(
                t5x_lite.load(run.folder), [config.train.sample_prompt], Sampling(temperature=0.8, top_p=0.95)
            )
        print(f"run: {run.folder} (metrics.jsonl, {picture.name}, checkpoints/, tokenizer, config.yaml)")
    return 0


def _join(options: argparse.Namespace) -> None:
    """Say to JAX, by the names that it knows, which process of which job this is."""
    given = (options.coordinator, options.num_processes, options.process_id)
    if given == (None, None, None):
        return
    if None in given or not 0 <= options.process_id < options.num_processes:
        raise UserError(
            "--coordinator, --num-processes and --process-id belong together, and process ids are 0 to one less than "
            f"their number; found {given[0]}, {given[1]} and {given[2]}"
        )
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    os.environ.update(zip(names, map(str, given), strict=True))


def prepare(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite prepare CONFIG [k=v …]`."""
    config = configuration.load(options.config, overrides)
    from t5x_lite.data import corpus
    from t5x_lite.data.vocabulary import load_or_train_tokenizer

    trained = load_or_train_tokenizer(config)
    for source in config.data.sources:
        print(f"{source.name}: {corpus.prepare_corpus(source, config.data, trained, options.runner)}")
    return 0


def tokenizer(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite tokenizer CONFIG [k=v …]`."""
    config = configuration.load(options.config, overrides)
    from t5x_lite.data.vocabulary import load_or_train_tokenizer

    trained = load_or_train_tokenizer(config)
    print(f"{trained.vocab} tokens; saved as {trained.save(Path(str(config.run_dir)))}")
    return 0


def evaluate(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite eval RUN [tasks=a,b] [text=FILE] [k=v …]`."""
    from t5x_lite.evaluate import harness, perplexity

    split = {override: override.removeprefix("--").partition("=") for override in overrides}
    own = {name: value for name, _, value in split.values() if name in EVALUATION}
    sizes = {name: value for name, value in own.items() if name not in {"tasks", "text"}}
    wrong = [f"{name}={value}: expected a whole number" for name, value in sizes.items() if not value.isdecimal()]
    if wrong:
        raise UserError("; ".join(wrong))
    shots, window, stride = (int(sizes[n]) if n in sizes else None for n in ("num_fewshot", "window", "stride"))
    if "tasks" not in own and (options.include or options.limit is not None):
        raise UserError("eval: --include and --limit are for tasks=")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: expected a number of documents")
    rest = [override for override, (name, _, _) in split.items() if name not in EVALUATION]
    model = t5x_lite.load(options.run, step=options.step, overrides=rest)
    found: dict[str, float] = {}
    if "tasks" in own:
        names = own["tasks"].split(",")
        learnt = {short_name(name) for name in model.config.tasks}.intersection(names)
        every = model.evaluate() if learnt else {}
        scores = {key: value for key, value in every.items() if key.partition("/")[0] in learnt}
        records: dict[str, Any] = {}
        if others := [name for name in names if name not in learnt]:
            theirs, records = harness.evaluate_tasks(
                model, others, num_fewshot=shots, window=window, include=options.include, limit=options.limit
            )
            scores |= theirs
        found = {f"eval/{name}": value for name, value in scores.items()}
        harness.save(model.run.folder / "eval" / str(model.step), found, records)
    if "text" in own:
        scores = perplexity.score_file(model, Path(own["text"]), window, stride)
        found |= {f"eval/text/{name}": value for name, value in scores.items()}
    if not found:
        found = {f"eval/{name}": value for name, value in model.evaluate().items()}
    found = {"step": model.step, **found}
    if options.json:
        print(json.dumps(found))
    else:
        width = max(map(len, found))
        print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in found.items()))
    return 0


def embed(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite embed RUN FILE [k=v …]`."""
    from t5x_lite.evaluate.embed import embed_file

    to = options.to or options.file.with_suffix(".npz" if options.pool == "none" else ".npy")
    model = t5x_lite.load(options.run, step=options.step, overrides=overrides)
    shape = embed_file(model, options.file, to, options.pool, options.layer)
    print(f"{to}: {' × '.join(map(str, shape))}")
    return 0


def plan(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite plan CONFIG --topology NAME [k=v …]`; 1 if nothing fits."""
    config = configuration.load(options.config, overrides)
    topology, slices = options.topology or config.plan.topology, options.slices or config.plan.slices
    if not topology:
        raise UserError("plan needs --topology (or plan.topology in the config), such as v5p:4x4x4")
    if topology.partition(":")[0].lower() in configuration.GPUS:
        # Devices that are not here are stood in for.
        simulated = f"--xla_force_host_platform_device_count={topology.partition(':')[2]}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {simulated}".strip()
    else:
        libtpu.prepare()
    from t5x_lite.planner import plan as planning

    found = planning.search(config, topology, slices) if options.search else [planning.plan(config, topology, slices)]
    if options.json:
        every = [asdict(one) for one in found]
        print(json.dumps(every if options.search else every[0]))
    elif options.search:
        planning.show_search(found)
    else:
        planning.show(found[0])
    return 0 if any(one.fits for one in found) else 1


def generate(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite generate RUN --prompt TEXT …`."""
    from t5x_lite.decode.fill import print_generation
    from t5x_lite.decode.generate import decoding_settings

    chosen = decoding_settings(
        **{name: getattr(options, name) for name in (*DECODING, "stop") if hasattr(options, name)}
    )
    print_generation(t5x_lite.load(options.run, step=options.step, overrides=overrides), options.prompt, chosen)
    return 0


def import_(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite import hf DIR RUN`, `t5x-lite import t5x CHECKPOINT RUN`."""
    from t5x_lite.convert import huggingface, t5x

    read = {"hf": huggingface.import_hf, "t5x": t5x.import_t5x}[options.format]
    run = read(options.source, options.target)
    print(f"run: {run.folder} ({run.blueprint.parameters:,} parameters, {run.config.model.family})")
    if run.own_tokenizer is None:
        print("no tokenizer came with it: put tokenizer.json or tokenizer.model there before it reads text")
    return 0


def export(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite export hf RUN DIR`."""
    from t5x_lite.convert.huggingface import export_hf

    print(export_hf(options.source, options.target, options.step))
    return 0


def sweep(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite sweep SWEEP [k=v …]`, `t5x-lite sweep fit SWEEP|FILE.csv`."""
    fitting = options.words[0] == "fit"
    subject, *words = [*options.words, *overrides][int(fitting) :] or [None]
    if subject is None:
        raise UserError("sweep fit: give a sweep's YAML file or a CSV file")
    unknown = [word for word in words if "=" not in word]
    if unknown:
        raise UserError(f"sweep: unknown option {unknown[0]}; see t5x-lite sweep --help")
    environment = dict(os.environ)
    os.environ["JAX_PLATFORMS"] = "cpu"  # shapes are counted here; the devices are for the runs
    if fitting:
        from t5x_lite.sweep.fit_command import fit

        return fit(Path(subject), words, options)
    from t5x_lite.sweep import config, launch

    return launch.start(config.load(Path(subject), words), yes=options.yes, environment=environment)


def report(options: argparse.Namespace, overrides: list[str]) -> int:
    """`t5x-lite report RUN …`."""
    from t5x_lite.evaluate.report import draw_report

    print(draw_report(options.runs, options.to or options.runs[0] / "report.png"))
    return 0


def _explain_config() -> int:
    settings = list(schema.explain(configuration.RunConfig))
    width = max(len(s.key) for s in settings)
    for s in settings:
        unit = f" ({s.unit})" if s.unit else ""
        print(f"{s.key:<{width}}  {s.type:<24}  {s.default:<12}  {s.description}{unit}")
    return 0
