"""Arguments of the command `sweep`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from t5x_lite.argument_types import local_path
from t5x_lite.errors import UserError

ACTIONS = ("fit", "eval", "plot")
"""Words for what the command does with the runs of a sweep; without one of them it trains them."""


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sweep`."""
    parser.usage = "t5x-lite sweep [options] [fit|eval|plot] SWEEP [key=value ...]"
    parser.add_argument(
        "words",
        metavar="[fit|eval|plot] SWEEP [key=value ...]",
        nargs="+",
        help="YAML file of a sweep or name of a shipped one, and overrides; `fit`, `eval` and `plot` also take a "
        "sweep's folder, and `fit` a CSV file of results; `eval` has the key=value arguments of `t5x-lite eval`, and "
        "`plot` has tasks=",
    )
    parser.add_argument("--yes", action="store_true", help="start the runs without asking")
    parser.add_argument(
        "--budget", type=float, help="fit: FLOPs of the best run to predict (default: ten times the largest run's)"
    )
    parser.add_argument(
        "--run",
        type=float,
        nargs=2,
        metavar=("N", "D"),
        help="fit: also predict the loss of a run with N parameters and D tokens",
    )
    parser.add_argument("--draws", type=int, help="fit: samples of each bootstrap (default 1000)")
    parser.add_argument(
        "--drop-highest", type=int, metavar="K", help="fit: leave out the K runs with the highest losses"
    )
    parser.add_argument(
        "--emit", type=local_path, metavar="CONFIG", help="fit: write the config of the predicted best run"
    )
    parser.add_argument(
        "--include", type=local_path, metavar="FOLDER", help="eval: folder with YAML files of further tasks"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="eval: largest number of documents per task, or pairs per set"
    )
    parser.add_argument(
        "--to", type=local_path, metavar="PICTURE", help="plot: .png to write, with a .csv (default: in SWEEP/eval)"
    )
    parser.add_argument("--json", action="store_true", help="fit, eval: print the result as JSON")


def parse_words(options: argparse.Namespace, words: Sequence[str]) -> tuple[str, str, list[str]]:
    """Return the action, or an empty string, the sweep and the overrides that the words of a command line are.

    Raises:
        UserError: a word that is none of these, or an option of another action; names it.
    """
    action, *rest = words if words[0] in ACTIONS else ("", *words)
    _check_options(options, action)
    if not rest:
        expected = "a sweep's YAML file or a CSV file" if action == "fit" else "a sweep's YAML file"
        raise UserError(f"sweep {action}: give {expected}")
    name, *overrides = rest
    unknown = next((word for word in overrides if "=" not in word), None)
    if unknown is None:
        return action, name, overrides
    if action or unknown.startswith("-") or Path(name).suffix:
        raise UserError(f"sweep: unknown option {unknown}; see t5x-lite sweep --help")
    raise UserError(f"sweep: there is no action {name!r}; there are {', '.join(ACTIONS)}")


def _check_options(options: argparse.Namespace, action: str) -> None:
    """Refuse options that are for another action."""
    for option, is_given, actions in (
        ("--yes", options.yes, ("",)),
        ("--budget", options.budget is not None, ("fit",)),
        ("--run", options.run is not None, ("fit",)),
        ("--draws", options.draws is not None, ("fit",)),
        ("--drop-highest", options.drop_highest is not None, ("fit",)),
        ("--emit", options.emit is not None, ("fit",)),
        ("--include", options.include is not None, ("eval",)),
        ("--limit", options.limit is not None, ("eval",)),
        ("--to", options.to is not None, ("plot",)),
        ("--json", options.json, ("fit", "eval")),
    ):
        if is_given and action not in actions:
            command = f"sweep {action}".strip()
            right_commands = " and ".join(f"`{f'sweep {right}'.strip()}`" for right in actions)
            raise UserError(f"{command}: {option} is for {right_commands}")
