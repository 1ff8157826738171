"""Mixtures of sources: their shares, and the order in which they are interleaved."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from t5x_lite import config as configuration
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig, MixedSource
from t5x_lite.data.mixture import Interleaving, mix_endless, source_shares
from t5x_lite.data.open_data import open_data
from t5x_lite.data.training_data import PipelineSettings
from t5x_lite.errors import UserError
from t5x_lite.objectives import Causal
from tests.objectives.vocabulary import context


def test_mixtures_follow_their_shares_at_every_prefix() -> None:
    shares = (0.5, 0.3, 0.2)
    order = Interleaving(np.array(shares))
    counts = Counter[int]()
    for g in range(1000):
        source, n = order[g]
        assert n == counts[source]
        counts[source] += 1
        for index, share in enumerate(shares):
            assert abs(counts[index] - share * (g + 1)) < 2


def test_many_rows_follow_shares_that_no_small_numbers_say() -> None:
    """Of 3 : 10 : 18 in 31 million rows each source has its millions; weights of two digits would be 1 % off."""
    counts = Interleaving(np.array([3, 10, 18]) / 31).counts(31_000_000)
    assert np.abs(np.array(counts) - np.array([3, 10, 18]) * 1_000_000).max() <= 1


def test_sources_of_one_size_have_different_orders() -> None:
    order = mix_endless([50, 50], np.array([0.5, 0.5]), seed=0)
    rows: list[list[int]] = [[], []]
    for g in range(100):
        source, _, row = order[g]
        rows[source].append(row)
    assert sorted(rows[0]) == sorted(rows[1]) == list(range(50))
    assert rows[0] != rows[1]


def test_shares_by_size_are_mt5s() -> None:
    sources = [MixedSource(name="a"), MixedSource(name="b")]
    np.testing.assert_allclose(source_shares(sources, [900, 100], 1.0), [0.9, 0.1])
    np.testing.assert_allclose(source_shares(sources, [900, 100], 0.0), [0.5, 0.5])
    raw = np.array([900**0.3, 100**0.3])
    np.testing.assert_allclose(source_shares(sources, [900, 100], 0.3), raw / raw.sum())


def test_explicit_weights_are_relative_to_each_other() -> None:
    weighted = [MixedSource(name="a", weight=3.0), MixedSource(name="b", weight=1.0)]
    np.testing.assert_allclose(source_shares(weighted, [1, 1], 1.0), [0.75, 0.25])


@pytest.mark.parametrize(("mixture_by", "unit"), [("examples", "rows"), ("tokens", "tokens")])
def test_shares_are_of_examples_or_of_tokens(tmp_path: Path, mixture_by: str, unit: str) -> None:
    """Two sources of equal weight: texts of 9 bytes and of 59 bytes, each with its EOS in a row of its own."""
    sources: list[dict[str, object]] = []
    for name, length in (("short", 9), ("long", 59)):
        (tmp_path / f"{name}.txt").write_text("\n".join([name[0] * length] * 40))
        sources.append({"name": name, "files": str(tmp_path / f"{name}.txt"), "document": "line", "weight": 1.0})
    settings = {"mixture": sources, "mixture_by": mixture_by, "packing": "none", "cache_dir": str(tmp_path)}
    data = DataConfig.model_validate({**settings, "validation_fraction": 0.0, "prepare_processes": 1})
    rows = open_data(PipelineSettings(data, Causal(), context(64, size=400), 0, 4), Bytes()).rows()
    counts = Counter[str]()
    for g in range(420):
        example = rows[g]
        source = "short" if example["tokens"][0] == ord("s") + Bytes.first else "long"
        counts[source] += 1 if unit == "rows" else np.count_nonzero(example["segment_ids"])
    assert counts["short"] / counts["long"] == pytest.approx(1.0, rel=0.02)


def test_tasks_are_mixed_by_examples_only(tiny_config: Path) -> None:
    with pytest.raises(UserError, match=r"data.mixture_by=tokens is for text"):
        configuration.load(tiny_config, ["tasks=[sst2]", "objective=text_to_text", "data.mixture_by=tokens"])
