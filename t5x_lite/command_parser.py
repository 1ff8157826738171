"""A parser of command lines whose errors are one line."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from t5x_lite.errors import UserError, suggest


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest valid spelling of a misspelt command, choice or option.

    Attributes:
        late_epilog: returns the end of the help, which is made only when the help is printed.
    """

    late_epilog: Callable[[], str] | None = None

    def format_help(self) -> str:
        """Return the help."""
        if self.late_epilog is not None:
            self.epilog = self.late_epilog()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print an error and exit with code 2."""
        program, _, command = self.prog.partition(" ")
        where = f"{command}: " if command else ""
        hint = f"; see {self.prog} --help"
        refused = re.search(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if refused is not None:
            argument, value, listed = refused.groups()
            choices = [choice.strip("' ") for choice in listed.split(",")]
            hint = suggest(value, choices) or hint
            message = f"{argument} '{value}' is none of {', '.join(choices)}"
        self.exit(2, f"{program}: {where}{message}{hint}\n")

    def refuse_options(self, words: Sequence[str]) -> None:
        """Refuse words that have the form of an option, which the parser has not recognised.

        Raises:
            UserError: with the first of them.
        """
        for word in words:
            if not word.startswith("-") or "=" in word or "." in word:
                continue  # an override of a config, which may begin with two dashes
            options = re.findall(r"--[a-z][a-z-]+", self.format_help())
            _, _, command = self.prog.partition(" ")
            hint = _suggest_option(word, options) or f"; see {self.prog} --help"
            raise UserError(f"{command}: unknown option {word}{hint}")


def _suggest_option(word: str, options: Sequence[str]) -> str:
    """Return `; did you mean …?` with the options that a word begins, or with which it ends, or one spelt like it."""
    related = [option for option in options if option.startswith(word) or word.endswith(option.removeprefix("-"))]
    if related:
        return f"; did you mean {' or '.join(dict.fromkeys(related))}?"
    return suggest(word, options)
