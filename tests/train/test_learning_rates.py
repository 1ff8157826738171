"""Learning rates of runs of any length."""

import numpy as np
import pytest

from t5x_lite.train import learning_rates
from t5x_lite.train.learning_rates import LearningRates


def test_rates_are_computed_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_rates, "BLOCK", 4)
    computed = []

    def schedule(count: np.ndarray) -> np.ndarray:
        computed.append(count.tolist())
        return 10.0 * count

    rates = LearningRates(schedule, 10)
    assert [rates[index] for index in (0, 3, 4, 9, 2)] == [0, 30, 40, 90, 20]
    assert computed == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    assert rates.all().tolist() == [10.0 * index for index in range(10)]


def test_a_run_of_a_billion_steps_takes_little_memory() -> None:
    rates = LearningRates(lambda count: np.full(len(count), 0.5, np.float32), 10**9)
    assert rates[10**9 - 1] == 0.5
    assert len(rates) == 10**9


def test_the_rate_after_skipped_updates_is_that_of_the_optimizers_count() -> None:
    """An optimizer that applied 4 of 6 updates used the rates of counts 0 to 3."""
    rates = LearningRates(lambda count: 10.0 * count, 100)
    assert rates.newest(step=6, skipped=0) == 50
    assert rates.newest(step=6, skipped=2) == 30
    assert rates.newest(step=1, skipped=1) == 0
    # 6 steps of 4 updates, 5 of them skipped: 19 were applied, the last of them with the count 18.
    assert LearningRates(lambda count: 10.0 * count, 100, updates_per_step=4).newest(step=6, skipped=5) == 10 * (
        18 // 4
    )
