"""Rows of one sentence, whose pairs are all unrelated, are counted, and a text of many of them is warned about."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.cli import main
from t5x_lite.data.config import DataConfig
from t5x_lite.data.row_planner import plan_rows
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_statistics import RowStatistics, add_statistics
from t5x_lite.data.single_sentences import unrelated_share, warn_of_single_sentences
from t5x_lite.objectives.masked import Masked
from tests.data.in_memory_corpus import SENTENCE_LENGTHS, corpus_of_parts, rows_of
from tests.objectives.vocabulary import context

SENTENCES = {"packing": "sentences", "parts": "line"}


@pytest.mark.parametrize("window", [1, 7, 2**20])
def test_rows_of_one_sentence_are_counted(window: int) -> None:
    corpus = corpus_of_parts(*SENTENCE_LENGTHS, (25, 3), (4,))
    objective = Masked(sentences="next")
    row_plan = rows_of(corpus, objective, context(23), window=window, **SENTENCES)
    expected = 0
    for number in range(row_plan.rows):
        row = row_plan.read(number)
        expected += len(np.unique(row.parts[row.segments > 0])) == 1
    rule = RowRule(DataConfig.model_validate(SENTENCES), objective, context(23))
    statistics = add_statistics(planned.statistics for planned in plan_rows(corpus, rule, window))
    assert statistics.single_sentences == expected > 2
    full_sentences = RowRule(DataConfig.model_validate(SENTENCES), Masked(), context(22))
    parts = [planned.statistics for planned in plan_rows(corpus, full_sentences, window)]
    assert add_statistics(parts).single_sentences == 0


def test_the_warning_has_the_numbers_and_the_share_of_the_labels(caplog: pytest.LogCaptureFixture) -> None:
    """Of 1,000 rows 300 have label 1, and half of the other 700."""
    statistics = RowStatistics(documents=900, rows=1000, single_sentences=300)
    assert unrelated_share(statistics) == pytest.approx((300 + 350) / 1000)
    with caplog.at_level(logging.WARNING):
        warn_of_single_sentences("tweets", statistics)
        warn_of_single_sentences("books", RowStatistics(documents=900, rows=1000, single_sentences=150))
        warn_of_single_sentences("empty", RowStatistics())
    (message,) = caplog.messages
    assert "source tweets: 300 of 1,000 training rows (30.0 %) hold one sentence" in message
    assert "65.0 % of the labels of sentence pairs are 1" in message


@pytest.mark.slow
def test_prepare_counts_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three texts of one line and one of two lines."""
    for number, text in enumerate(["a fox", "a dog", "a cat", "a fox\na dog"]):
        (tmp_path / f"{number}.txt").write_text(text + "\n")
    settings = {
        "model": {"family": "encoder", "layers": 1, "embed": 8, "heads": 2, "outputs": ["tokens", "sentence"]},
        "data": {"files": str(tmp_path / "*.txt"), "validation_fraction": 0.0, "cache_dir": str(tmp_path), **SENTENCES},
        "objective": {"masked": {"sentences": "next"}},
        "tokenizer": {"wordpiece": {"vocab": 24}},
        "train": {"steps": 1, "batch_size": 2, "seq_len": 32},
    }
    settings["model"] |= {"token_types": 2, "positions": "sinusoidal"}
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        assert main(["prepare", str(tmp_path / "config.yaml"), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["rows"], counts["single_sentences"]) == (4, 3)
    assert "source text: 3 of 4 training rows (75.0 %) hold one sentence" in caplog.text
    assert "87.5 % of the labels" in caplog.text
