"""Errors that the user can fix: each is one line without a traceback, and has an exit code."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """An error that the user can fix. Its message says what was given and expected, where it was set and what to do.

    Raised where the user's input enters the program: a config, a file, a run directory, a full disk. The command line
    prints the message alone and exits with `exit_code`. Any other exception that escapes is a bug (see `unexpected`).
    """

    exit_code = 2


class Diverged(UserError):
    """Training cannot continue: the loss is not finite or keeps spiking. The last good checkpoint is intact."""

    exit_code = 3


class ReplicaMismatch(UserError):
    """Replicas of the same values differ between devices. The last checkpoint was saved before they differed."""

    exit_code = 4


class ProcessLost(UserError):
    """A process of the job has died. The others exit so that all can be restarted together (BSD's EX_UNAVAILABLE)."""

    exit_code = 69


STOPPED = 75
"""Exit code of a run that was asked to stop and has saved. The same command resumes it (BSD's EX_TEMPFAIL)."""
LONGEST_REASON = 300
"""Characters of another library's message that an error repeats."""


def one_line(error: BaseException) -> str:
    """Return the beginning of an error's message as one line, or its type if it has no message."""
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__


def suggest(name: str, candidates: Iterable[str], *, prefix: str = "", suffix: str = "", cutoff: float = 0.6) -> str:
    """Return `; did you mean …?` with the candidate nearest to a misspelt name; an empty string if none is near.

    Args:
        name: what was written.
        candidates: what is valid.
        prefix: text before the candidate.
        suffix: text after it.
        cutoff: similarity from which a candidate is near, from 0 to 1 (see `difflib.get_close_matches`).
    """
    nearest = difflib.get_close_matches(name, list(candidates), n=1, cutoff=cutoff)
    if not nearest:
        return ""
    return f"; did you mean {prefix}{nearest[0]}{suffix}?"


def join_first(items: Sequence[str], count: int, separator: str = ", ") -> str:
    """Return the first `count` items, joined, and how many more there are, for a message."""
    joined = separator.join(items[:count])
    remaining = len(items) - count
    return f"{joined} and {remaining:,} more" if remaining > 0 else joined
