"""Tokenisation by the workers of an Apache Beam runner (extra `beam`).

The workers write their tokens into the corpus folder themselves, so that it must be in a bucket, or mounted by all. The
files are byte for byte those that `prepare` writes without Beam. Units that an interrupted pipeline finished are not
repeated.
"""

import importlib.util
import os
import shlex
from collections.abc import Callable, Sequence
from typing import TypeVar

from t5x_lite.errors import UserError

JobT = TypeVar("JobT")


def run_jobs(process_job: Callable[[JobT], None], jobs: Sequence[JobT], runner: str) -> None:
    """Process all jobs under a Beam runner, such as DirectRunner.

    The environment variable `BEAM_OPTIONS` holds further options, written as on Beam's own command line.

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
        # Without a shuffle Beam would fuse the jobs with their list and run all of them on one worker.
        pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(process_job)
