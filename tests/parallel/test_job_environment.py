"""Environment variables that a job sets before JAX starts."""

import os

import pytest

from t5x_lite.parallel.job_environment import set_job_environment


def test_a_job_takes_most_of_the_memory_of_a_gpu_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    set_job_environment(None, None, None)
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION")
    set_job_environment(None, None, None)
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.92"
