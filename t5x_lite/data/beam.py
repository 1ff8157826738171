"""Tokenise with Apache Beam: the same pieces of text as on one machine, on the workers of a runner (extra `beam`).

The pieces write their shards to the corpus folder themselves, so that all workers must have it mounted; what comes out
is byte for byte what `prepare` writes without Beam, and what an interrupted pipeline has finished is kept.
"""

import importlib.util
import os
import shlex
from collections.abc import Callable, Iterable
from typing import Any

from t5x_lite.errors import UserError


def run(work: Callable[[Any], None], todo: list[Any], runner: str) -> Iterable[None]:
    """Do `work` on all of `todo` under a Beam runner, such as DirectRunner.

    `BEAM_OPTIONS` holds further options, as on Beam's own command line.

    Raises:
        UserError: Apache Beam is not installed, or does not know the runner.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError(
            "prepare --runner needs Apache Beam, in an environment of its own: pip install 't5x_lite[beam]'"
        )
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        options = PipelineOptions([f"--runner={runner}", *shlex.split(os.environ.get("BEAM_OPTIONS", ""))])
        pipeline = beam.Pipeline(options=options)
    except ValueError as error:
        raise UserError(f"prepare --runner={runner}: {error}") from None
    with pipeline:
        # Without a shuffle the pieces would be fused with their list, and run on one worker.
        pipeline | beam.Create(todo) | beam.Reshuffle() | beam.Map(work)
    return [None] * len(todo)
