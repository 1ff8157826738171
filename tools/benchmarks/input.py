"""The input pipeline: text to tokens against bare SentencePiece, and tokens to features on one core."""

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from benchmarks.step import CONFIGS, PLAIN
from benchmarks.timing import medians
from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.data.config import STANDARD_LIBRARY, SourceConfig
from t5x_lite.data.corpus import SPLITS, Corpus
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.sources import documents, units
from t5x_lite.data.vocabulary import load_or_train_tokenizer
from t5x_lite.train.setup import open_run_data

MEGABYTES = 96
ROWS = 256
OBJECTIVES = {
    "causal, documents packed": ("gpt2/117m.yaml", ("data.packing=documents",)),
    "span corruption": ("t5/small.yaml", ("data.packing=documents",)),
    "masked tokens": (
        "bert/base.yaml",
        ("model.outputs=[tokens]", "objective.masked.sentences=none", "data.parts=none", "data.packing=documents"),
    ),
}


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Tokens a second, and of bare SentencePiece's encoding on the same number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        text = standard_library(Path(folder, "text.jsonl"), MEGABYTES // (4 if quick else 1))
        lines = [_tokenising(text, Path(folder), rounds)]
        for name, (path, overrides) in OBJECTIVES.items():
            config = _config(path, text, Path(folder), *overrides)
            data = open_run_data(config, load_or_train_tokenizer(config.tokenizer, config.data))
            rows, length = data.rows(), config.train.seq_len

            def features(rows: Any = rows) -> Any:
                return [rows[number] for number in range(ROWS)]

            seconds = medians({name: features}, rounds)[name]
            lines.append({"input": name, "tokens/s": ROWS * length / seconds, "of sentencepiece": None})
        return lines


def _tokenising(text: Path, folder: Path, rounds: int) -> dict[str, Any]:
    config = _config("gpt2/117m.yaml", text, folder)
    tokenizer = load_or_train_tokenizer(config.tokenizer, config.data)
    bare = sentencepiece.SentencePieceProcessor(model_file=str(next(folder.rglob("*.model"))))
    texts = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    threads, tokens = os.cpu_count() or 1, 0
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(max(rounds // 2, 3)):

        def ours(number: int = number) -> None:
            nonlocal tokens
            own = config.data.model_copy(update={"cache_dir": str(folder / f"cache{number}")})
            made = prepare_corpus(own.sources[0], own, tokenizer)
            tokens = sum(Corpus(made, split).tokens for split in SPLITS)

        def theirs() -> None:
            bare.encode(texts, num_threads=threads)

        for who, case in (("ours", ours), ("theirs", theirs)):
            times[who].append(_seconds(case))
    own, other = (float(np.median(times[who])) for who in ("ours", "theirs"))
    return {"input": f"text to tokens, {threads} threads", "tokens/s": tokens / own, "of sentencepiece": other / own}


def _seconds(case: Callable[[], None]) -> float:
    start = time.perf_counter()
    case()
    return time.perf_counter() - start


def _config(path: str, text: Path, folder: Path, *overrides: str) -> RunConfig:
    plain = [one for one in PLAIN if not one.startswith("optimizer")]
    given = [f"data.files={text}", f"data.cache_dir={folder / 'cache'}", "model.vocab=null"]
    vocabulary = ["tokenizer.unigram.vocab=8192", "tokenizer.unigram.sample_megabytes=4", "train.seq_len=512"]
    return configuration.load(CONFIGS / path, [*plain, *given, *vocabulary, *overrides])


def standard_library(file: Path, megabytes: int) -> Path:
    """JSON lines of the interpreter's own source, over and over up to about this size: text that is always there."""
    python = SourceConfig(files=(STANDARD_LIBRARY,))
    texts = [text for unit in units(python) for _, text in documents(unit)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    with file.open("w", encoding="utf-8") as out:
        size = 0
        for line in itertools.cycle(lines):
            if size >= megabytes * 10**6:
                return file
            size += out.write(line)
    return file
