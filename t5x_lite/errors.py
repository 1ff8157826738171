"""The errors that a person can mend: one line, no traceback, exit code 2."""


class UserError(Exception):
    """What was given, what was expected, where it was set, what to do: one line for the person at the terminal.

    Raised where the user's input enters (a config, a file, a run directory, a disk that is full). The command line
    prints it alone and leaves with exit code 2. Anything else that escapes is a bug and keeps its traceback.
    """
