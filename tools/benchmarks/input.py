"""The input pipeline: text to tokens against bare SentencePiece, and tokens to features on one core."""

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
from t5x_lite.data.corpus import SPLITS, Corpus, prepare
from t5x_lite.data.vocabulary import obtain
from t5x_lite.train.setup import open_data

MEGABYTES = 24
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
        text = Path(folder, "text.txt")
        text.write_text(made_up_text(MEGABYTES // (4 if quick else 1)), encoding="utf-8")
        lines = [_tokenising(text, Path(folder), rounds)]
        for name, (path, overrides) in OBJECTIVES.items():
            config = _config(path, text, Path(folder), *overrides)
            data = open_data(config, obtain(config))
            rows, length = data.rows(), config.train.seq_len

            def features(rows: Any = rows) -> Any:
                return [rows[number] for number in range(ROWS)]

            seconds = medians({name: features}, rounds)[name]
            lines.append({"input": name, "tokens/s": ROWS * length / seconds, "of sentencepiece": None})
        return lines


def _tokenising(text: Path, folder: Path, rounds: int) -> dict[str, Any]:
    config = _config("gpt2/117m.yaml", text, folder)
    tokenizer = obtain(config)
    bare = sentencepiece.SentencePieceProcessor(model_file=str(next(folder.rglob("*.model"))))
    documents = text.read_text(encoding="utf-8").splitlines()
    threads, tokens = os.cpu_count() or 1, 0
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(max(rounds // 2, 3)):

        def ours(number: int = number) -> None:
            nonlocal tokens
            own = config.data.model_copy(update={"cache_dir": str(folder / f"cache{number}")})
            made = prepare(own.sources[0], own, tokenizer)
            tokens = sum(Corpus(made, split).tokens for split in SPLITS)

        def theirs() -> None:
            bare.encode(documents, num_threads=threads)

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
    given = [f"data.files={text}", "data.document=line", f"data.cache_dir={folder / 'cache'}", "model.vocab=null"]
    vocabulary = ["tokenizer.unigram.vocab=8192", "tokenizer.unigram.sample_megabytes=4", "train.seq_len=512"]
    return configuration.load(CONFIGS / path, [*plain, *given, *vocabulary, *overrides])


def made_up_text(megabytes: int) -> str:
    """Lines of made-up words whose frequencies fall as those of words do (Zipf)."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkq"))
    share = 1 / np.arange(1, len(letters) + 1)
    words = ["".join(rng.choice(letters, rng.integers(2, 10), p=share / share.sum())) for _ in range(30000)]
    rank = 1 / np.arange(1, len(words) + 1)
    lines, size = [], 0
    while size < megabytes * 10**6:
        drawn = rng.choice(len(words), 64 * 1024, p=rank / rank.sum())
        lines += [" ".join(words[n] for n in row) for row in drawn.reshape(-1, 64)]
        size += sum(len(line) + 1 for line in lines[-1024:])
    return "\n".join(lines) + "\n"
