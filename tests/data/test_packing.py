"""Bin packing against item-by-item references, and how full rows of real text are."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from t5x_lite.data import packing, sources, unit_readers
from t5x_lite.data.config import SourceConfig
from t5x_lite.data.packing import best_fit, next_fit


def pack_one_by_one(sizes: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing, item by item, as textbooks define it. Returns the sizes in each row."""
    rows: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row in rows if sum(row) + size <= capacity]
        if fitting:
            max(fitting, key=sum).append(size)
        else:
            rows.append([size])
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_one_kind_of_room_is_packed_as_item_by_item(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 60))
    sizes = rng.integers(1, capacity + 1, int(rng.integers(0, 120)))
    if seed % 2:
        sizes = np.minimum(rng.geometric(0.2, len(sizes)), capacity)
    rows = best_fit(sizes[:, None], [capacity])
    packed = [sorted(sizes[rows == row].tolist(), reverse=True) for row in range(rows.max(initial=-1) + 1)]
    expected = pack_one_by_one(sizes.tolist(), capacity)
    assert sorted(packed) == sorted(sorted(row, reverse=True) for row in expected)


@pytest.mark.parametrize("seed", range(20))
def test_every_item_is_in_a_row_that_has_room_of_both_kinds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = rng.integers(1, 60, 2)
    sizes = rng.integers(0, capacity + 5, (int(rng.integers(0, 200)), 2))  # some need more than a row has
    rows = best_fit(sizes, capacity.tolist())
    assert len(rows) == len(sizes)
    row_count = rows.max(initial=-1) + 1
    assert set(rows.tolist()) == set(range(row_count))
    used = np.zeros((row_count, 2), int)
    np.add.at(used, rows, np.minimum(sizes, capacity))
    assert (used <= capacity).all()


def test_many_different_sizes_of_two_kinds_fit_too() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, [900, 300], (20_000, 2))
    rows = best_fit(sizes, [3900, 1300])
    used = np.zeros((rows.max() + 1, 2), int)
    np.add.at(used, rows, sizes)
    assert (used <= [3900, 1300]).all()
    assert (sizes.sum(0) / (len(used) * np.array([3900, 1300])) > 0.97).all()


@pytest.mark.parametrize("dealt_share", [0.0, 0.3])
@pytest.mark.parametrize("capacity", [63, 62])
def test_items_that_need_all_of_a_row_fit_where_similar_sizes_count_as_equal(
    capacity: int, dealt_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "LARGEST_CLASS_COUNT", 40)
    monkeypatch.setattr(packing, "DEALT_SHARE", dealt_share)
    rng = np.random.default_rng(1)
    sizes = np.minimum(rng.integers(1, [90, 90], (2000, 2)), capacity)
    sizes[::7] = 1  # some rows have room for all but one
    rows = best_fit(sizes, [capacity, capacity])
    used = np.zeros((rows.max() + 1, 2), int)
    np.add.at(used, rows, sizes)
    assert (used <= capacity).all()


@pytest.mark.parametrize("seed", range(10))
def test_next_fit_fills_rows_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 15, 80)
    borders = np.unique([*rng.integers(1, 80, 4), 80])
    starts = [0]
    room = 12
    for item, size in enumerate(sizes):
        if item and (size > room or item in borders):
            starts.append(item)
            room = 12
        room -= size
    assert next_fit(sizes, 12, borders).tolist() == [*starts, 80]


def fill(sizes: np.ndarray, capacity: list[int]) -> np.ndarray:
    """The share of the rows' room of each kind that items take."""
    row_count = best_fit(sizes, capacity).max() + 1
    return sizes.sum(0) / (row_count * np.array(capacity))


def test_rows_of_documents_of_log_normal_length_are_full() -> None:
    lengths = np.random.default_rng(0).lognormal(5.5, 1.0, 50_000).astype(int) + 1
    pieces = lengths[lengths <= 2048]
    order = next_fit(pieces, 2048)
    assert pieces.sum() / (2048 * (len(order) - 1)) < 0.85
    assert fill(pieces[:, None], [2048])[0] > 0.99


def test_rows_of_real_c4_pages_are_full(real_data: Path) -> None:
    source = SourceConfig(files=(str(real_data / "c4_minimal/c4/en/3.0.1"),), format="tfds")
    texts = [text for unit in sources.units(source) for _, text in unit_readers.documents(unit)]
    model = real_data / "tokenizers/sentencepiece_test_1000.model"
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model))
    lengths = np.array([len(ids) + 1 for ids in tokenizer.encode(texts)])
    for seq_len in (1024, 2048):
        rest = lengths % (seq_len + 1)
        assert fill(rest[rest > 0, None], [seq_len + 1])[0] > 0.98


def test_both_sides_of_rows_of_real_pairs_are_full(real_data: Path) -> None:
    """The lengths of inputs and targets are in the ratio of the texts, as a user chooses them."""
    model = real_data / "tokenizers/sentencepiece_test_1000.model"
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model))
    lengths: list[list[int]] = []
    for language in ("en", "de"):
        with gzip.open(real_data / f"multi30k/train.{language}.gz", "rt", encoding="utf-8") as file:
            lengths.append([len(ids) + 1 for ids in tokenizer.encode(file.read().splitlines())])
    sizes = np.array(lengths).T
    ratio = sizes[:, 1].mean() / sizes[:, 0].mean()
    assert (fill(sizes, [256, round(256 * ratio)]) > 0.95).all()
