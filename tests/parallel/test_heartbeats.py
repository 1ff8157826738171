"""What the processes of a job tell each other: heartbeats, and requests to stop."""

from typing import Any

import jax
import pytest

from t5x_lite.parallel import distributed


class Store:
    """A key-value store that fails at some calls, counted from 1."""

    def __init__(self, failing: set[int]) -> None:
        self.failing = failing
        self.calls = 0
        self.values: list[str] = []

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        return []

    def key_value_set(self, key: str, value: str, **options: Any) -> None:
        self.calls += 1
        if self.calls in self.failing:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")
        self.values.append(value)


class Ended(Exception):
    """The test has seen enough."""


def send_heartbeats(store: Store, periods: int, monkeypatch: pytest.MonkeyPatch) -> None:
    remaining = iter(range(periods))

    def sleep(seconds: float) -> None:
        if next(remaining, None) is None:
            raise Ended

    monkeypatch.setattr(distributed, "_key_value_store", lambda: store)
    monkeypatch.setattr(distributed.time, "sleep", sleep)
    distributed._follow_job()


def test_heartbeats_go_on_after_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(failing={2, 3})
    with pytest.raises(Ended):
        send_heartbeats(store, 5, monkeypatch)
    assert store.values == ["0", "3", "4", "5"]


def test_a_request_to_stop_lasts_beyond_the_step_at_which_jax_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX reports it at one step, in which a loss spike may send the run back."""
    reports = iter([False, True, False, False])
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "reached_preemption_sync_point", lambda step: next(reports))
    with distributed.stop_requests() as should_stop:
        assert [should_stop() for _ in range(4)] == [False, True, True, True]


def test_heartbeats_end_with_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(failing=set(range(2, 100)))
    send_heartbeats(store, 50, monkeypatch)
    assert store.values == ["0"]
    assert store.calls == 1 + distributed.MOST_FAILED_HEARTBEATS
