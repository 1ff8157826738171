"""Environment variables that a job sets before JAX starts."""

import os

import pytest

from t5x_lite.parallel.job_environment import GPU_MEMORY_VARIABLES, set_job_environment


@pytest.mark.parametrize("name", GPU_MEMORY_VARIABLES)
def test_the_share_of_a_gpu_s_memory_that_a_user_has_set_stays_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """JAX refuses both names together, and would compute on the CPU."""
    for variable in GPU_MEMORY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "0.5")
    set_job_environment(None, None, None)
    assert [os.environ[variable] for variable in GPU_MEMORY_VARIABLES if variable in os.environ] == ["0.5"]


def test_a_job_takes_most_of_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in GPU_MEMORY_VARIABLES:
        monkeypatch.setenv(variable, "")  # so that it is as before after the test
        monkeypatch.delenv(variable)
    set_job_environment(None, None, None)
    assert os.environ["XLA_CLIENT_MEM_FRACTION"] == "0.92"
