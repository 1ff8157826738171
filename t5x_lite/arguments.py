"""The commands of `t5x-lite`, their options, and the descriptions that `--help` prints."""

import argparse
from typing import TypeAlias

import t5x_lite
from t5x_lite.argument_types import local_path as _local_path
from t5x_lite.command_parser import CommandParser
from t5x_lite.decode.options import add_decoding_options
from t5x_lite.evaluate.arguments import describe_arguments
from t5x_lite.evaluate.options import add_embed_options, add_probe_options
from t5x_lite.retrieval.arguments import add_index_arguments, add_passage_options, add_search_arguments
from t5x_lite.sweep.arguments import add_sweep_arguments

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"


def build_parser() -> CommandParser:
    """Return the parser of the command line.

    `command` is the name of the chosen command, `parser` its own parser.
    """
    parser = CommandParser(
        prog="t5x-lite",
        description="Pretrain, resume, evaluate and sample Transformer language models in JAX.",
    )
    parser.add_argument("--version", action="version", version=f"t5x-lite {t5x_lite.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_prepare(commands)
    _add_tokenizer(commands)
    _add_plan(commands)
    _add_sweep(commands)
    _add_eval(commands)
    _add_embed(commands)
    _add_probe(commands)
    _add_index(commands)
    _add_search(commands)
    _add_generate(commands)
    _add_import(commands)
    _add_export(commands)
    _add_report(commands)
    _add_watch(commands)
    _add_new(commands)
    _add_doctor(commands)
    return parser


def _add_train(commands: Commands) -> None:
    parser = _add_command(commands, "train", "pretrain or adapt a model, or resume a run that has checkpoints")
    _add_config_arguments(parser, nargs="?")  # `--help-config` needs none
    parser.add_argument("--help-config", action="store_true", help="list every setting and exit")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 of a job with many processes")
    parser.add_argument("--num-processes", type=int, help="number of processes of the job")
    parser.add_argument("--process-id", type=int, help="number of this process, from 0")


def _add_prepare(commands: Commands) -> None:
    parser = _add_command(commands, "prepare", "tokenise the text of a config into its token cache, and plan its rows")
    _add_config_arguments(parser)
    parser.add_argument(
        "--runner", help="Apache Beam runner that tokenises, such as DirectRunner or DataflowRunner (default: no Beam)"
    )
    _add_json_option(parser)


def _add_tokenizer(commands: Commands) -> None:
    parser = _add_command(commands, "tokenizer", "train the tokenizer of a config")
    _add_config_arguments(parser)


def _add_plan(commands: Commands) -> None:
    parser = _add_command(commands, "plan", "compile the train step for TPUs or GPUs that are not here")
    _add_config_arguments(parser)
    _add_json_option(parser)
    parser.add_argument(
        "--topology", help="chip and shape of the pod, such as v5p:8x8x16 or h100:64 (default: plan.topology)"
    )
    parser.add_argument(
        "--slices",
        type=int,
        help="number of slices of that shape, connected by the data centre's network (default: plan.slices)",
    )
    parser.add_argument(
        "--search", action="store_true", help="try meshes and remat policies, and rank those that fit in memory"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="estimate quickly by formula instead of asking the compiler"
    )
    parser.add_argument(
        "--emit", type=_local_path, metavar="FILE", help="write a config with the policy and the mesh of the best plan"
    )


def _add_sweep(commands: Commands) -> None:
    parser = _add_command(commands, "sweep", "train a grid of runs, fit a scaling law to them, evaluate and draw them")
    add_sweep_arguments(parser)


def _add_eval(commands: Commands) -> None:
    parser = _add_command(commands, "eval", "evaluate a run on tasks, on a text file, or on its validation split")
    _add_run_argument(parser)
    _add_overrides(parser)
    _add_step_option(parser)
    _add_json_option(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.late_epilog = describe_arguments  # it imports the evaluators of other packages
    _add_task_options(parser)
    parser.add_argument(
        "--cached",
        action="store_true",
        help="take results of the same evaluation from RUN/eval/STEP/cache, and write the others there",
    )


def _add_task_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--include", type=_local_path, metavar="FOLDER", help="folder with YAML files of further tasks")
    parser.add_argument("--limit", type=int, metavar="N", help="largest number of documents per task, or pairs per set")
    add_passage_options(parser)


def _add_embed(commands: Commands) -> None:
    parser = _add_command(commands, "embed", "write an embedding vector for each text of a file")
    _add_run_argument(parser)
    parser.add_argument("file", metavar="FILE", type=_local_path, help="lines of text, or JSONL, Parquet, TSV or CSV")
    _add_overrides(parser)
    _add_step_option(parser)
    add_embed_options(parser)


def _add_probe(commands: Commands) -> None:
    parser = _add_command(commands, "probe", "fit a linear classifier to every layer, and measure how contextual it is")
    _add_run_argument(parser)
    _add_overrides(parser)
    _add_step_option(parser)
    _add_json_option(parser)
    add_probe_options(parser)


def _add_index(commands: Commands) -> None:
    parser = _add_command(commands, "index", "embed the passages of a file, to search them")
    _add_run_argument(parser)
    add_index_arguments(parser)
    _add_overrides(parser)
    _add_step_option(parser)


def _add_search(commands: Commands) -> None:
    parser = _add_command(commands, "search", "find the passages of an index for queries, and measure recall")
    _add_run_argument(parser)
    add_search_arguments(parser)
    _add_overrides(parser)
    _add_step_option(parser)
    _add_json_option(parser)


def _add_generate(commands: Commands) -> None:
    parser = _add_command(commands, "generate", "continue prompts, answer them, or fill in their masks")
    _add_run_argument(parser)
    _add_overrides(parser)
    _add_step_option(parser)
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", help="text to continue; may be repeated")
    prompts.add_argument(
        "--chat",
        action="append",
        metavar="TEXT",
        help="message of a user, which the assistant answers by the tokenizer's chat template; may be repeated",
    )
    prompts.add_argument(
        "--chat-file", type=_local_path, metavar="FILE", help="JSONL with a conversation in `messages` on each line"
    )
    add_passage_options(parser)
    parser.add_argument(
        "--recipe",
        type=_local_path,
        metavar="FILE",
        help="YAML file of a reflection, or the name of a shipped one: each prompt is answered, the answer criticised "
        "and revised",
    )
    parser.add_argument(
        "--trace", type=_local_path, metavar="FILE", help="JSONL to write with all answers and critiques of --recipe"
    )
    parser.add_argument(
        "--quantization", choices=["int8"], help="store the matrices of attention and feed-forward layers in int8"
    )
    add_decoding_options(parser)


def _add_import(commands: Commands) -> None:
    parser = _add_command(commands, "import", "create a run directory from the weights of another library")
    parser.add_argument("format", choices=["hf", "t5x"], help="hf: a Hugging Face folder; t5x: a native T5X checkpoint")
    parser.add_argument(
        "source",
        metavar="DIR",
        type=_local_path,
        help="folder to read, or ORG/NAME or ORG/NAME@REVISION of the Hugging Face Hub",
    )
    parser.add_argument("target", metavar="RUN", help="run directory to create")
    parser.add_argument(
        "--without-head", action="store_true", help="import the encoder of a Hugging Face folder without its output"
    )


def _add_export(commands: Commands) -> None:
    parser = _add_command(commands, "export", "write the weights of a run, or a token corpus, for another program")
    _add_step_option(parser)
    parser.add_argument(
        "format",
        choices=["hf", "megatron"],
        help="hf: weights as a Hugging Face folder; megatron: tokens as .bin and .idx",
    )
    parser.add_argument(
        "source",
        metavar="RUN",
        help="run directory to read; megatron: folder of a token corpus, which `prepare` prints",
    )
    parser.add_argument(
        "target",
        metavar="DIR",
        type=_local_path,
        help="folder to create; megatron: beginning of the names of the files",
    )
    parser.add_argument(
        "--push",
        metavar="ORG/NAME",
        help="hf: upload the folder to the Hugging Face Hub, with the token of `hf auth login`",
    )
    parser.add_argument("--private", action="store_true", help="create the model of --push as a private one")


def _add_report(commands: Commands) -> None:
    parser = _add_command(commands, "report", "draw the curves of runs as a picture and as a page that zooms")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories, drawn in one figure")
    parser.add_argument(
        "--to",
        type=_local_path,
        help="picture or .html page to write (default: report.png and report.html in the first run directory)",
    )
    parser.add_argument(
        "--before",
        action="store_true",
        help="also evaluate adapted runs before and after, on their tasks and on the text of the run that they adapt",
    )


def _add_watch(commands: Commands) -> None:
    parser = _add_command(
        commands, "watch", "follow a run from a terminal: step, loss, speed, remaining time, checkpoint and evaluation"
    )
    _add_run_argument(parser)
    parser.add_argument("--once", action="store_true", help="print the state and exit")
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="seconds between two looks (default: 2, in a bucket 30)",
    )
    parser.add_argument("--json", action="store_true", help="print the state as one JSON object, and exit")


def _add_new(commands: Commands) -> None:
    parser = _add_command(
        commands, "new", "write a project with an objective, an evaluator, configs, a task and tests of its own"
    )
    parser.add_argument(
        "name", metavar="NAME", type=_local_path, help="folder to create; its name is that of the Python package"
    )


def _add_doctor(commands: Commands) -> None:
    parser = _add_command(
        commands, "doctor", "print versions, devices, extras and storage, and whatever a config needs and lacks"
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        type=_local_path,
        help="YAML file of a run, or the name of a shipped config (default: check the installation alone)",
    )
    _add_overrides(parser)
    _add_json_option(parser)


def _add_command(commands: Commands, name: str, summary: str) -> CommandParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    parser = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
    parser.set_defaults(parser=parser)
    return parser


def _add_config_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs=nargs,
        type=_local_path,
        help="YAML file of a run, or the name of a shipped config such as quickstart",
    )
    _add_overrides(parser)


def _add_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="overrides of the config, with dotted keys"
    )


def _add_step_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")


def _add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
