"""Prepare the token corpus of a source: tokenise its text once, with many processes, into a folder of the cache.

The name of the folder is a hash of the text's files, the tokenizer and the options. Every unit of text is tokenised
independently, so an interrupted preparation continues with the units that are missing.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from t5x_lite.data import beam, sources
from t5x_lite.data.config import DataConfig, MixedSource
from t5x_lite.data.conversations import ChatEncoder
from t5x_lite.data.corpus import CORPUS_FILE
from t5x_lite.data.corpus_index import has_index, is_intact, write_index
from t5x_lite.data.corpus_lock import CorpusLock
from t5x_lite.data.shard_writer import (
    COUNTS,
    RECORD_TOKENS,
    Role,
    TokeniseJob,
    sentence_border,
    tokenise_unit,
    unit_marker,
)
from t5x_lite.data.shards import SPLITS, Split
from t5x_lite.data.sources import SMALLEST_UNIT
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.files import disk_error, replace_file
from t5x_lite.progress import track_progress

FORMAT = 1
"""Version of the corpus files. It is part of the folder's hash, so corpora of an older version are not read."""


def prepare_corpus(
    source: MixedSource,
    data: DataConfig,
    tokenizer: Tokenizer,
    runner: str | None = None,
    *,
    smallest_unit: int = SMALLEST_UNIT,
    record_tokens: int = RECORD_TOKENS,
) -> Path:
    """Return the folder of a source's token corpus, after tokenising what is not there yet.

    The first process of a job verifies the checksums of an index that is there.

    Args:
        source: the text.
        data: options of the corpus, and the folder of the cache.
        tokenizer: makes token ids.
        runner: a runner of Apache Beam that tokenises, such as DirectRunner; None uses processes of this machine.
        smallest_unit: smallest target size of a unit of text, in bytes.
        record_tokens: largest number of tokens in a record.

    Raises:
        UserError: no text, a line that cannot be read, a full disk. Finished units are kept, and a rerun continues.
    """
    jobs = _list_jobs(source, data, smallest_unit)
    folder = Path(data.cache_dir) / f"{source.name}-{_hash_settings(jobs, data, tokenizer)}"
    processes = data.prepare_processes or os.cpu_count() or 1
    tokenise = partial(tokenise_unit, folder=folder, data=data, tokenizer=tokenizer, record_tokens=record_tokens)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with CorpusLock(folder) as lock:
            if not (folder / CORPUS_FILE).is_file():
                _tokenise_missing(folder, jobs, tokenise, runner, processes)
                _complete_corpus(folder, jobs)
            if not (has_index(folder) and lock.is_verified("index")):
                _verify_index(folder, jobs, has_parts=data.parts != "none")
                lock.mark_verified("index")
    except OSError as error:
        raise disk_error(folder, error, "finished pieces are kept: run the same command again") from error
    return folder


def _verify_index(folder: Path, jobs: Sequence[TokeniseJob], *, has_parts: bool) -> None:
    """Read the index and compare it with its checksums. If it is not intact, write it from the shards."""
    if is_intact(folder, has_parts=has_parts):
        return
    if has_index(folder):
        message = f"corpus: the index in {folder} is damaged or of an older version, and is written again"
        print(message, file=sys.stderr, flush=True)
    write_index(folder, [job.name for job in jobs], has_parts=has_parts)


def _list_jobs(source: MixedSource, data: DataConfig, smallest_unit: int) -> list[TokeniseJob]:
    """Return every unit of the source and of its validation text."""
    has_validation_text = bool(data.validation_files or data.validation_split)
    whole_files = data.validation_by == "position"
    role: Role = "train" if has_validation_text else "split"
    units = sources.units(source, whole_files=whole_files, smallest_unit=smallest_unit)
    jobs = [TokeniseJob(_unit_name(number), role, unit) for number, unit in enumerate(units)]
    if has_validation_text:
        validation_units = sources.units(_validation_source(source, data), smallest_unit=smallest_unit)
        for number, unit in enumerate(validation_units, start=len(jobs)):
            jobs.append(TokeniseJob(_unit_name(number), "validation", unit))
    return jobs


def _unit_name(number: int) -> str:
    return f"{number:06d}"


def _validation_source(source: MixedSource, data: DataConfig) -> MixedSource:
    changes: dict[str, object] = {}
    if data.validation_files:
        changes["files"] = data.validation_files
    if data.validation_split:
        changes["split"] = data.validation_split
    return source.model_copy(update=changes)


def _hash_settings(jobs: Sequence[TokeniseJob], data: DataConfig, tokenizer: Tokenizer) -> str:
    """Return a hash of all that decides which tokens are written, and into which split."""
    options = f"{data.end_of_document} {data.validation_fraction} {data.validation_by}"
    if data.parts != "none":
        options += f" {data.parts}"
    if data.parts == "turns":
        options += f" {ChatEncoder(tokenizer).template.fingerprint}"
    if sentence_border(tokenizer, data):
        options += " with the space between sentences"
    if data.end_of_document and tokenizer.eos != tokenizer.usual_eos:
        options += f" end of document {tokenizer.eos}"
    lines = [str(FORMAT), tokenizer.fingerprint, options]
    for job in jobs:
        lines.append(f"{job.role} {job.unit.identity}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _tokenise_missing(
    folder: Path,
    jobs: Sequence[TokeniseJob],
    tokenise: Callable[[TokeniseJob], None],
    runner: str | None,
    max_processes: int,
) -> None:
    """Tokenise the units that are not complete yet."""
    missing = [job for job in jobs if not unit_marker(folder, job.name).is_file()]
    if not sys.stderr.isatty():
        message = f"corpus: tokenising {len(missing)} of {len(jobs)} pieces of text into {folder}"
        print(message, file=sys.stderr, flush=True)
    with track_progress("tokenising") as advance:
        done = len(jobs) - len(missing)
        advance("", done, len(jobs))
        if runner is not None:
            beam.run_jobs(tokenise, missing, runner)
            advance("", len(jobs), len(jobs))
            return
        for _ in _run_processes(tokenise, missing, min(max_processes, len(missing))):
            done += 1
            advance("", done, len(jobs))


def _run_processes(
    tokenise: Callable[[TokeniseJob], None], jobs: Sequence[TokeniseJob], processes: int
) -> Iterator[None]:
    """Tokenise units with several processes, of which this is one. Yields after each unit."""
    if processes <= 1:
        for job in jobs:
            tokenise(job)
            yield
        return
    with ProcessPoolExecutor(processes - 1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(tokenise, job): job for job in jobs}
        try:
            # The other processes need a second to start, so this one takes jobs from the end of the queue.
            for queued in reversed(list(pending)):
                if queued.cancel():
                    tokenise(pending.pop(queued))
                    yield
                finished = [future for future in pending if future.done()]
                for future in finished:
                    del pending[future]
                    future.result()  # raises the error of a unit that failed
                    yield
            for future in as_completed(pending):
                future.result()
                yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _complete_corpus(folder: Path, jobs: Sequence[TokeniseJob]) -> None:
    """Add up the counts of all units and write the file that marks the corpus as complete.

    Raises:
        UserError: there is no token.
    """
    counts: dict[Split, Counter[str]] = {split: Counter(dict.fromkeys(COUNTS, 0)) for split in SPLITS}
    for job in jobs:
        unit_counts = json.loads(unit_marker(folder, job.name).read_text())
        for split in SPLITS:
            counts[split].update(unit_counts[split])
    total = counts["train"] + counts["validation"]
    if not total["tokens"]:
        shutil.rmtree(folder, ignore_errors=True)
        example = f" ({jobs[0].unit.path}, …)" if jobs else ""
        raise UserError(f"the corpus is empty: {len(jobs)} files hold no text{example}; set data.files")
    summary = {"shards": [job.name for job in jobs], "splits": counts}
    replace_file(folder / CORPUS_FILE, json.dumps(summary))
    message = (
        f"corpus: {counts['train']['tokens']:,} training and {counts['validation']['tokens']:,} validation tokens of "
        f"{total['documents']:,} documents in {folder}"
    )
    if total["replaced"]:
        message += f"; {total['replaced']:,} documents held invalid UTF-8, replaced by U+FFFD"
    print(message, file=sys.stderr, flush=True)
