"""The input pipeline: text to tokens compared with bare SentencePiece, and tokens to features on one core."""

import itertools
import json
import os
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from benchmarks.step import CONFIGS, MASKED_TOKENS_ONLY, PLAIN
from benchmarks.timing import median_seconds
from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.data.config import STANDARD_LIBRARY, SourceConfig
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_files import SPLITS
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.sources import units
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.training_data import ExampleSequence
from t5x_lite.data.unit_readers import documents
from t5x_lite.data.vocabulary import load_or_train_tokenizer
from t5x_lite.run_data import open_run_data

MEGABYTES = 96
MEGABYTES_IF_QUICK = 24
ROWS = 256
OBJECTIVES: dict[str, tuple[str, tuple[str, ...]]] = {
    "causal, documents packed": ("gpt2/117m.yaml", ("data.packing=documents",)),
    "span corruption": ("t5/small.yaml", ("data.packing=documents",)),
    "masked tokens": ("bert/base.yaml", (*MASKED_TOKENS_ONLY, "tokenizer.unigram.controls=['[CLS]','[SEP]','[MASK]']")),
}
"""Our config of an objective, and overrides."""


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure tokens per second, and the ratio to SentencePiece's own encoding on the same number of threads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = write_standard_library(folder / "text.jsonl", MEGABYTES_IF_QUICK if quick else MEGABYTES)
        table = [_measure_tokenising(text, folder, rounds)]
        for objective, (path, overrides) in OBJECTIVES.items():
            config = _load_config(path, text, folder, *overrides)
            table.append(_measure_features(objective, config, rounds))
    return table


def _measure_features(objective: str, config: RunConfig, rounds: int) -> dict[str, Any]:
    """Measure tokens to features: reading, packing and the objective."""
    rows = open_run_data(config, load_or_train_tokenizer(config.tokenizer, config.data)).rows()
    seconds = median_seconds({objective: partial(_build_rows, rows)}, rounds)[objective]
    return {"input": objective, "tokens/s": ROWS * config.train.seq_len / seconds, "of sentencepiece": None}


def _build_rows(rows: ExampleSequence) -> list[Mapping[str, np.ndarray]]:
    return [rows[number] for number in range(ROWS)]


def _measure_tokenising(text: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure text to tokens in shards on disk, and the bare encoding of the same texts in memory."""
    config = _load_config("gpt2/117m.yaml", text, folder)
    tokenizer = load_or_train_tokenizer(config.tokenizer, config.data)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(next(folder.rglob("*.model"))))
    texts = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    threads = os.cpu_count() or 1
    our_times = []
    bare_times = []
    for number in range(max(rounds // 2, 3)):
        start = time.perf_counter()
        token_count = _tokenise(config, tokenizer, folder / f"cache{number}")
        our_times.append(time.perf_counter() - start)
        start = time.perf_counter()
        processor.encode(texts, num_threads=threads)
        bare_times.append(time.perf_counter() - start)
    our_seconds = float(np.median(our_times))
    bare_seconds = float(np.median(bare_times))
    return {
        "input": f"text to tokens, {threads} threads",
        "tokens/s": token_count / our_seconds,
        "of sentencepiece": bare_seconds / our_seconds,
    }


def _tokenise(config: RunConfig, tokenizer: Tokenizer, cache_dir: Path) -> int:
    """Tokenise the text of a config into an empty token cache and return the number of tokens."""
    data = config.data.model_copy(update={"cache_dir": str(cache_dir)})
    corpus_dir = prepare_corpus(data.sources[0], data, tokenizer)
    return sum(Corpus(corpus_dir, split).tokens for split in SPLITS)


def _load_config(path: str, text: Path, folder: Path, *overrides: str) -> RunConfig:
    plain = [override for override in PLAIN if not override.startswith("optimizer")]
    settings = [
        f"data.files={text}",
        f"data.cache_dir={folder / 'cache'}",
        "model.vocab=null",
        "tokenizer.unigram.vocab=8192",
        "tokenizer.unigram.sample_megabytes=4",
        "train.seq_len=512",
    ]
    return configuration.load(CONFIGS / path, [*plain, *settings, *overrides])


def write_standard_library(file: Path, megabytes: int) -> Path:
    """Write the source of Python's standard library as JSON lines, repeated up to about this size."""
    source = SourceConfig(files=(STANDARD_LIBRARY,))
    lines = []
    for unit in units(source):
        for _, text in documents(unit):
            lines.append(json.dumps({"text": text}) + "\n")
    with file.open("w", encoding="utf-8") as output:
        written = 0
        for line in itertools.cycle(lines):
            if written >= megabytes * 10**6:
                break
            written += output.write(line)
    return file
