"""The commands `index` and `search`. JAX is imported inside them."""

import argparse

import t5x_lite
from t5x_lite.errors import UserError
from t5x_lite.files import check_not_input
from t5x_lite.progress import print_metrics
from t5x_lite.retrieval.arguments import DEFAULT_PASSAGES


def index(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite index RUN FILE INDEX [key=value …]`."""
    from t5x_lite.retrieval.command import IndexRequest, index_collection

    model = t5x_lite.load(options.run, step=options.step, overrides=overrides)
    query_model = t5x_lite.load(options.query_run, overrides=overrides) if options.query_run else None
    request = IndexRequest(options.file, options.folder, options.shard, options.approximate)
    print(index_collection(model, request, query_model))
    return 0


def search(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `t5x-lite search RUN INDEX --query TEXT …` or `t5x-lite search RUN INDEX --queries FILE`."""
    from t5x_lite.argument_types import check_utf8
    from t5x_lite.retrieval.command import measure_recall, search_queries
    from t5x_lite.retrieval.retriever import Retriever

    if options.to and not options.queries:
        raise UserError("search: --to is for --queries")
    if options.to:
        check_not_input(options.to, options.queries)
    for text in options.query or []:
        check_utf8(text)
        if not text.strip():
            raise UserError("search: --query is empty")
    model = t5x_lite.load(options.run, step=options.step, overrides=overrides)
    retriever = Retriever(model, options.index, is_approximate=options.approximate)
    count = options.k or min(DEFAULT_PASSAGES, len(retriever.index))
    retriever.check_depth(count, "-k")
    if options.query:
        print(search_queries(retriever, options.query, count, as_json=options.json))
    else:
        print_metrics(measure_recall(retriever, options.queries, count, options.to), as_json=options.json)
    return 0
