"""Options of the commands `embed` and `probe`."""

import argparse

from t5x_lite.argument_types import local_path, positive_number

DEFAULT_NEIGHBOURS = 5
"""Words that `embed --word` prints."""


def add_embed_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `embed`."""
    parser.add_argument(
        "--to", type=local_path, help="file to write: .npy, or .npz with --pool none (default: named after FILE)"
    )
    parser.add_argument("--text", metavar="COLUMN", help="column of the text, if FILE has records (default: text)")
    parser.add_argument(
        "--pool",
        help="mean, cls or max of a text's tokens; none keeps every token (default: the model's, or mean)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        nargs="+",
        help="layer whose states to use, counted from 1, or from the end as -1; of several, the mean (default: last)",
    )
    parser.add_argument(
        "--word",
        help="instead of vectors, print the nearest words, in context, of each place where this one is",
    )
    parser.add_argument("-k", type=positive_number, help=f"words to print for --word (default {DEFAULT_NEIGHBOURS})")


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `probe`."""
    for name, purpose in (("train", "to fit to"), ("test", "to measure on")):
        parser.add_argument(
            f"--{name}",
            type=local_path,
            required=True,
            metavar="FILE",
            help=f"texts with labels {purpose}: TSV, CSV, JSONL or Parquet",
        )
    parser.add_argument("--text", default="text", help="column of the text (default %(default)s)")
    parser.add_argument("--label", default="label", help="column of the label (default %(default)s)")
    parser.add_argument(
        "--columns", nargs="+", default=[], help="names of the columns of TSV or CSV files without a header"
    )
    parser.add_argument("--pool", default="mean", help="mean, cls or max of a text's tokens (default %(default)s)")
    parser.add_argument(
        "--limit", type=int, default=2000, help="most records of a file, 0 for all (default %(default)s)"
    )
    parser.add_argument(
        "--to", type=local_path, help="picture to write, with a .json beside it (default: RUN/eval/STEP/probe.png)"
    )
