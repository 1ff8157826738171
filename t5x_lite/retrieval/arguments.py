"""Arguments of the commands `index` and `search`, and the options that put passages before prompts."""

import argparse

from t5x_lite.argument_types import local_path, positive_number

DEFAULT_PASSAGES = 5
"""Passages of each query of `search`."""


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `index` after the run directory."""
    parser.add_argument(
        "file",
        metavar="FILE",
        type=local_path,
        help="passages: JSONL, TSV, CSV or Parquet with `text`, perhaps `title` and `id`, or a .txt file of lines",
    )
    parser.add_argument("folder", metavar="INDEX", type=local_path, help="folder of the index")
    parser.add_argument(
        "--query-run", metavar="RUN", help="run directory of the encoder of queries, if it is another one (as DPR's)"
    )
    parser.add_argument(
        "--shard", type=positive_number, default=2**14, metavar="N", help="passages of a file (default %(default)s)"
    )
    parser.add_argument(
        "--approximate", action="store_true", help="also build a graph for approximate search (extra `retrieval`)"
    )


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `search` after the run directory."""
    parser.add_argument("index", metavar="INDEX", type=local_path, help="folder of an index")
    queries = parser.add_mutually_exclusive_group(required=True)
    queries.add_argument("--query", action="append", help="text to find passages for; may be repeated")
    queries.add_argument(
        "--queries",
        type=local_path,
        metavar="FILE",
        help="JSONL with `query` and the relevant `positive`, `ids` or `answers`, to measure recall on",
    )
    parser.add_argument(
        "-k", type=positive_number, help=f"passages of each query (default {DEFAULT_PASSAGES}, or all of fewer)"
    )
    parser.add_argument(
        "--approximate", action="store_true", help="follow the graph of the index, instead of comparing all vectors"
    )
    parser.add_argument(
        "--to", type=local_path, metavar="FILE", help="JSONL to write the passages of each of --queries to"
    )


def add_passage_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that put retrieved passages before prompts; see `retrieval.prompts.PassageOptions`."""
    parser.add_argument(
        "--index", type=local_path, metavar="INDEX", help="index whose passages are put before each prompt"
    )
    parser.add_argument("--retriever", metavar="RUN", help="run directory of the encoder of queries, for --index")
    parser.add_argument(
        "--passages", type=positive_number, metavar="K", help="passages before a prompt, for --index (default 3)"
    )
    parser.add_argument(
        "--template",
        help="for --index: text with {passages} and {prompt} (default: the passages, a blank line, the prompt)",
    )
