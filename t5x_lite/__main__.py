"""Run the command line: `python -m t5x_lite` is the same as `t5x-lite`."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is imported, which takes a second, is one line too."""
    try:
        from t5x_lite.cli import main as run_command
    except KeyboardInterrupt:
        print("t5x-lite: interrupted", file=sys.stderr)
        return 130
    return run_command()


if __name__ == "__main__":
    sys.exit(main())
