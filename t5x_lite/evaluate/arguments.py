"""Arguments `NAME=VALUE` of `t5x-lite eval` that are not overrides of the config.

An evaluator says its own (see `Evaluator.argument`). The others set fields of the evaluators that are named this way.
Nothing here imports JAX.
"""

import textwrap
from collections.abc import Iterator

from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluators import EVALUATORS, Evaluator
from t5x_lite.plugins import load_plugins
from t5x_lite.schema.settings import Declaration, declarations

NAME_WIDTH = 25
"""Characters of a name in the help, with its indentation."""
LINE_WIDTH = 80
"""Characters of a line of the help."""


def named_evaluators() -> dict[str, type[Evaluator]]:
    """Return the evaluators that have an argument, by its name.

    Raises:
        UserError: two evaluators have the same one, nothing says what its value is, or a plugin is broken.
    """
    load_plugins()
    named: dict[str, type[Evaluator]] = {}
    for kind in EVALUATORS.values():
        if kind.argument is None:
            continue
        name = kind.argument.name
        if name in named:
            classes = f"{_class_name(named[name])} and {_class_name(kind)}"
            raise UserError(f"eval: {name}= is the argument of {classes}; change the `argument` of one of them")
        reader = next(base for base in kind.__mro__ if "from_argument" in vars(base))
        if kind.argument.field is None and reader is Evaluator:
            raise UserError(f"eval: {name}= of {_class_name(kind)} needs a `field` of its Argument, or `from_argument`")
        named[name] = kind
    return named


def option_fields(kind: type[Evaluator]) -> Iterator[Declaration]:
    """Yield the fields of an evaluator that options set: all but that of its argument, and those of training."""
    for declaration in declarations(kind):
        is_argument = kind.argument is not None and declaration.key == kind.argument.field
        if not is_argument and declaration.key not in Evaluator.model_fields:
            yield declaration


def option_owners() -> dict[str, list[str]]:
    """Return the names of the arguments that each option is for, by the option's name."""
    owners: dict[str, list[str]] = {}
    for name, kind in named_evaluators().items():
        for declaration in option_fields(kind):
            owners.setdefault(declaration.key, []).append(name)
    return owners


def describe_arguments() -> str:
    """Return the arguments of all evaluators for the help, each with its options below it."""
    lines = ["key=value arguments that choose evaluations, and below each those that set its options:"]
    for name, kind in named_evaluators().items():
        if kind.argument is not None:
            lines += _wrap(f"  {name}=", kind.argument.description)
        for declaration in option_fields(kind):
            description = declaration.field.description or ""
            if declaration.one_of is not None:
                description += f": {' | '.join(declaration.one_of.kinds)}"
            lines += _wrap(f"    {declaration.key}=", description)
    return "\n".join([*lines, "Other key=value arguments are overrides of the config."])


def _wrap(name: str, description: str) -> list[str]:
    return textwrap.wrap(
        description, LINE_WIDTH, initial_indent=name.ljust(NAME_WIDTH), subsequent_indent=" " * NAME_WIDTH
    )


def _class_name(kind: type[Evaluator]) -> str:
    return f"{kind.__module__}.{kind.__name__}"
