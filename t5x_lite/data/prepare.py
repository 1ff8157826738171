"""Prepare the token corpus of a source: tokenise its text once, with many processes, into a folder of the cache.

The name of the folder is a hash of the text's files, the tokenizer and the options. Every unit of text is tokenised
independently, so an interrupted preparation continues with the units that are missing.
"""

import hashlib
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from t5x_lite.child_process import end_with_parent
from t5x_lite.data import beam, sources
from t5x_lite.data.cleaning.clean_unit import (
    COUNTS_SUFFIX,
    CleaningJob,
    CleaningStep,
    clean_unit,
    describe_steps,
)
from t5x_lite.data.cleaning.deduplicate import REPORT_FILE, deduplicate_units, read_report, remove_intermediate_files
from t5x_lite.data.config import DataConfig, MixedSource
from t5x_lite.data.conversations import TRAINING_DATE, ChatEncoder
from t5x_lite.data.corpus_files import UNIT_SUFFIX, CorpusFiles, token_type
from t5x_lite.data.corpus_index import complete_corpus
from t5x_lite.data.corpus_lock import lock_folder
from t5x_lite.data.corpus_of_listing import is_listed, listing_file, read_listing_file, write_listing_file
from t5x_lite.data.corpus_summary import CorpusSummary
from t5x_lite.data.sources import SMALLEST_UNIT
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.unit_writer import Role, TokeniseJob, sentence_border, tokenise_unit, unit_name
from t5x_lite.errors import UserError
from t5x_lite.files import disk_error
from t5x_lite.progress import track_progress
from t5x_lite.storage import delete_folder, expand, file_exists, join, list_names, make_folder

JobT = TypeVar("JobT")
FORMAT = 3
"""Version of the corpus files. It is part of the folder's hash, so corpora of an older version are not read."""


def prepare_corpus(
    source: MixedSource,
    data: DataConfig,
    tokenizer: Tokenizer,
    runner: str | None = None,
    *,
    prefix_tokens: tuple[int, ...] = (),
    smallest_unit: int = SMALLEST_UNIT,
) -> str:
    """Return the folder of a source's token corpus, after tokenising what is not there yet.

    On a disk one process at a time prepares a corpus, and the others wait for it. Jobs that prepare a corpus in a
    bucket at the same time write the same files.

    Args:
        source: the text.
        data: options of the corpus, and the folder of the cache.
        tokenizer: makes token ids.
        runner: a runner of Apache Beam that tokenises, such as DirectRunner; None uses processes of this machine.
        prefix_tokens: ids before each document that is not a conversation.
        smallest_unit: smallest target size of a unit of text, in bytes.

    Raises:
        UserError: no text, a line that cannot be read, a full disk, a store that cannot be used, a process that was
            killed. Finished units are kept, and a rerun continues.
    """
    listed = _listing_file(source, data, tokenizer, prefix_tokens, smallest_unit)
    folder = read_listing_file(listed, expand(data.cache_dir)) if listed else None
    if folder is not None and file_exists(CorpusFiles(folder).summary):
        return folder
    folder = _prepare_units(source, data, tokenizer, runner, prefix_tokens, smallest_unit)
    if listed:
        write_listing_file(listed, folder)
    return folder


def _listing_file(
    source: MixedSource, data: DataConfig, tokenizer: Tokenizer, prefix_tokens: tuple[int, ...], smallest_unit: int
) -> str | None:
    """See `corpus_of_listing.listing_file`; None for text that is not listed."""
    sources_of_text = [source]
    if data.validation_files or data.validation_split:
        sources_of_text.append(_validation_source(source, data))
    if not is_listed(sources_of_text):
        return None
    settings = [str(FORMAT), tokenizer.fingerprint, _describe_options(data, tokenizer, prefix_tokens, source.cleaning)]
    return listing_file(sources_of_text, expand(data.cache_dir), "\n".join([*settings, str(smallest_unit)]))


def _prepare_units(
    source: MixedSource,
    data: DataConfig,
    tokenizer: Tokenizer,
    runner: str | None,
    prefix_tokens: tuple[int, ...],
    smallest_unit: int,
) -> str:
    """Tokenise the units of a source that are not tokenised yet, and return the folder of the corpus."""
    jobs = _list_jobs(source, data, smallest_unit)
    _warn_of_shared_files(jobs)
    files = CorpusFiles(_folder(source, jobs, data, tokenizer, prefix_tokens, FORMAT))
    if file_exists(files.summary):
        return files.folder
    processes = data.prepare_processes or os.cpu_count() or 1
    tokenise = partial(tokenise_unit, files=files, data=data, tokenizer=tokenizer, prefix_tokens=prefix_tokens)
    try:
        make_folder(files.folder)
        with lock_folder(files.folder):
            if not file_exists(files.summary):
                _announce_old_format(_folder(source, jobs, data, tokenizer, prefix_tokens, FORMAT - 1))
                _clean_missing(files.folder, jobs, runner, processes)
                _tokenise_missing(files, jobs, tokenise, runner, processes)
                units = [job.name for job in jobs]
                summary = complete_corpus(files, units, token_type(tokenizer.vocab), has_parts=data.parts != "none")
                _report(files, jobs, summary)
    except OSError as error:
        raise disk_error(files.folder, error, "finished pieces are kept: run the same command again") from error
    return files.folder


def _folder(
    source: MixedSource,
    jobs: Sequence[TokeniseJob],
    data: DataConfig,
    tokenizer: Tokenizer,
    prefix_tokens: tuple[int, ...],
    version: int,
) -> str:
    """Return the folder of a corpus of some version of the format."""
    return join(
        expand(data.cache_dir), f"{source.name}-{_hash_settings(jobs, data, tokenizer, prefix_tokens, version)}"
    )


def _warn_of_shared_files(jobs: Sequence[TokeniseJob]) -> None:
    """Warn of a file that is trained and validated on."""
    paths: dict[Role, set[str]] = defaultdict(set)
    for job in jobs:
        paths[job.role].update(job.unit.paths)
    shared = sorted(paths["train"] & paths["validation"])
    if shared:
        more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
        message = (
            f"data.validation_files: {shared[0]}{more} is training text too (data.files), so that its loss is that of "
            "text that was learnt; leave it out of one of them"
        )
        print(message, file=sys.stderr, flush=True)


def _announce_old_format(old_folder: str) -> None:
    if file_exists(join(old_folder, "corpus.json")):
        message = f"corpus: {old_folder} is of an older version, is not read any more and can be deleted"
        print(message, file=sys.stderr, flush=True)


def _list_jobs(source: MixedSource, data: DataConfig, smallest_unit: int) -> list[TokeniseJob]:
    """Return every unit of the source and of its validation text."""
    has_validation_text = bool(data.validation_files or data.validation_split)
    whole_files = data.validation_by == "position"
    role: Role = "train" if has_validation_text else "split"
    units = sources.units(source, whole_files=whole_files, smallest_unit=smallest_unit)
    jobs: list[TokeniseJob] = []
    for number, unit in enumerate(units):
        cleaning = CleaningJob(unit_name(number), unit, source.cleaning) if source.cleaning else None
        jobs.append(TokeniseJob(number, role, unit, cleaning))
    if has_validation_text:
        validation_source = _validation_source(source, data)
        key = "data.validation_files" if data.validation_files else "data.files"
        validation_units = sources.units(validation_source, smallest_unit=smallest_unit, key=key)
        for number, unit in enumerate(validation_units, start=len(jobs)):
            jobs.append(TokeniseJob(number, "validation", unit))
    return jobs


def _validation_source(source: MixedSource, data: DataConfig) -> MixedSource:
    changes: dict[str, object] = {}
    if data.validation_files:
        changes["files"] = data.validation_files
    if data.validation_split:
        changes["split"] = data.validation_split
    return source.model_copy(update=changes)


def _hash_settings(
    jobs: Sequence[TokeniseJob], data: DataConfig, tokenizer: Tokenizer, prefix_tokens: tuple[int, ...], version: int
) -> str:
    """Return a hash of all that decides which tokens are written, and into which split."""
    cleaning = next((job.cleaning.steps for job in jobs if job.cleaning), ())
    lines = [str(version), tokenizer.fingerprint, _describe_options(data, tokenizer, prefix_tokens, cleaning)]
    for job in jobs:
        lines.append(f"{job.role} {job.unit.identity}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _describe_options(
    data: DataConfig, tokenizer: Tokenizer, prefix_tokens: tuple[int, ...], cleaning: Sequence[CleaningStep]
) -> str:
    """Return a text of the settings that decide which tokens are written, and into which split."""
    options = f"{data.end_of_document} {data.validation_fraction} {data.validation_by}"
    if data.parts != "none":
        options += f" {data.parts}"
    if data.parts == "turns":
        options += f" {ChatEncoder(tokenizer, TRAINING_DATE).template.fingerprint}"
    if sentence_border(tokenizer, data):
        options += " with the space between sentences"
    if data.end_of_document and tokenizer.eos != tokenizer.usual_eos:
        options += f" end of document {tokenizer.eos}"
    if prefix_tokens and data.parts != "turns":
        options += f" beginning of document {prefix_tokens}"
    if cleaning:
        options += f" cleaning {describe_steps(cleaning)}"
    return options


def _clean_missing(folder: str, jobs: Sequence[TokeniseJob], runner: str | None, max_processes: int) -> None:
    """Clean the text of all units that are to be cleaned, unless that is complete."""
    cleaning_jobs = [job.cleaning for job in jobs if job.cleaning is not None]
    if not cleaning_jobs:
        return
    if not file_exists(join(folder, REPORT_FILE)):
        for step in cleaning_jobs[0].steps:
            step.check()
        names = set(list_names(folder))
        missing = [job for job in cleaning_jobs if f"{job.name}{COUNTS_SUFFIX}" not in names]
        clean = partial(clean_unit, folder=folder)
        _run_jobs("cleaning", clean, missing, runner, max_processes)
        deduplicate_units(cleaning_jobs, folder)
    remove_intermediate_files(cleaning_jobs, folder)


def _tokenise_missing(
    files: CorpusFiles,
    jobs: Sequence[TokeniseJob],
    tokenise: Callable[[TokeniseJob], None],
    runner: str | None,
    max_processes: int,
) -> None:
    """Tokenise the units that are not complete yet."""
    names = set(list_names(files.folder))
    missing = [job for job in jobs if f"{job.name}{UNIT_SUFFIX}" not in names]
    if not sys.stderr.isatty():
        message = f"corpus: tokenising {len(missing)} of {len(jobs)} pieces of text into {files.folder}"
        print(message, file=sys.stderr, flush=True)
    _run_jobs("tokenising", tokenise, missing, runner, max_processes)


def _run_jobs(
    verb: str, process_job: Callable[[JobT], None], jobs: Sequence[JobT], runner: str | None, max_processes: int
) -> None:
    """Process jobs with a Beam runner or with processes of this machine, and show the progress.

    Raises:
        UserError: a process was killed, or an error of a job.
    """
    with track_progress(verb) as advance:
        advance("", 0, len(jobs))
        if runner is not None:
            beam.run_jobs(process_job, jobs, runner)
            advance("", len(jobs), len(jobs))
            return
        processes = min(max_processes, len(jobs))
        try:
            for done, _ in enumerate(_run_processes(process_job, jobs, processes), start=1):
                advance("", done, len(jobs))
        except BrokenProcessPool:
            raise UserError(
                f"{verb}: one of {processes} processes was killed, probably for lack of memory; lower "
                "data.prepare_processes; finished pieces are kept: run the same command again"
            ) from None


def _run_processes(process_job: Callable[[JobT], None], jobs: Sequence[JobT], processes: int) -> Iterator[None]:
    """Process units with several processes, of which this is one. Yields after each unit."""
    if processes <= 1:
        for job in jobs:
            process_job(job)
            yield
        return
    spawn = multiprocessing.get_context("spawn")
    others = processes - 1
    with ProcessPoolExecutor(others, spawn, initializer=end_with_parent) as pool, ThreadPoolExecutor(others) as threads:
        # A thread waits for each process, and the jobs of threads are cancelled: after a job of processes is cancelled,
        # Python 3.11 never ends if one of the processes is killed.
        pending = {threads.submit(lambda job: pool.submit(process_job, job).result(), job): job for job in jobs}
        try:
            # The other processes need a second to start, so this one takes jobs from the end of the queue.
            for queued in reversed(list(pending)):
                if queued.cancel():
                    process_job(pending.pop(queued))
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
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _report(files: CorpusFiles, jobs: Sequence[TokeniseJob], summary: CorpusSummary | None) -> None:
    """Print the counts of a corpus that is complete now.

    Raises:
        UserError: there is no token. The folder is deleted.
    """
    cleaning = read_report(files.folder)
    if summary is None:
        delete_folder(files.folder)
        if cleaning is not None and cleaning.documents:
            drops = ", ".join(f"{count:,} by {rule}" for rule, count in cleaning.dropped.items())
            raise UserError(f"the corpus is empty: data.cleaning drops all documents, {drops}")
        names = sources.name_files([job.unit for job in jobs])
        raise UserError(f"the corpus is empty: no text in {names}; set data.files")
    train = summary.splits["train"]
    validation = summary.splits["validation"]
    message = (
        f"corpus: {train.tokens:,} training and {validation.tokens:,} validation tokens of "
        f"{train.documents + validation.documents:,} documents in {files.folder}"
    )
    replaced = train.replaced + validation.replaced
    if replaced:
        message += f"; {replaced:,} documents held invalid UTF-8, replaced by U+FFFD"
    if cleaning is not None:
        message += f"; cleaning dropped {sum(cleaning.dropped.values()):,} documents, see {REPORT_FILE}"
    print(message, file=sys.stderr, flush=True)
