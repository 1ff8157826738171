"""The choice of `model.remat: auto`: the least recomputation with which a train step fits into a device."""

from pathlib import Path
from typing import get_args

import jax
import numpy as np
import yaml
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.local_copies import local_path
from t5x_lite.models.remat_policy import LEAST_RECOMPUTATION_FIRST, RematPolicy
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel.chips import CHIPS, chip_name
from t5x_lite.parallel.memory import local_memory
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.planner.example import example_lengths
from t5x_lite.planner.memory import cautious_bytes, modelled_memory
from t5x_lite.planner.workload import Workload
from t5x_lite.run_layout import CONFIG_FILE
from t5x_lite.train.steps import make_steps

SHARE_OF_MEMORY = 0.92
"""Share of a device's memory that a step may take."""
SMALLEST_VOCAB = 256
"""Tokens of the vocabulary while it is not known: that of a tokenizer that is still to be loaded."""


def with_assumed_vocab(config: RunConfig) -> RunConfig:
    """Return the config with a vocabulary: the model's, else that of the tokenizer's settings, else the smallest."""
    vocab = config.model.vocab or getattr(config.tokenizer, "vocab", SMALLEST_VOCAB)
    return config.replace_model(vocab=vocab)


def choose_remat(config: RunConfig, mesh: Mesh, platform: str, available_bytes: float) -> RematPolicy:
    """Return the first of `LEAST_RECOMPUTATION_FIRST` with which the step of the largest stage fits; else `full`.

    Args:
        config: the run.
        mesh: its devices.
        platform: their platform.
        available_bytes: bytes of a device that the step may take.
    """
    config = with_assumed_vocab(config.of_stage(config.largest_stage))
    config = config.replace_model(remat="full")
    spec = model_spec(config.model, config.method.surgery)
    lengths = example_lengths(config)
    with jax.set_mesh(mesh):
        state = make_steps(config, spec, mesh).state
    for policy in LEAST_RECOMPUTATION_FIRST:
        workload = Workload(config.replace_model(remat=policy), spec, lengths, mesh)
        if cautious_bytes(modelled_memory(workload, state, platform)) <= available_bytes:
            return policy
    return "full"


def resolve_remat(config: RunConfig) -> RunConfig:
    """Return the config of a run on the devices of this job with a policy in place of `auto`.

    A run that is resumed keeps the policy that its run directory holds. All processes have that of the first.
    """
    if config.model.remat != "auto":
        return config
    policy = _stored_policy(local_path(str(config.run_dir)) / CONFIG_FILE)
    if policy is None:
        mesh = make_mesh(config.mesh)
        device = mesh.devices.flat[0]
        policy = choose_remat(config, mesh, device.platform, _available_bytes(mesh, device.device_kind))
    if jax.process_count() > 1:
        # Also where a policy is stored: only the first process of a job may see the run directory.
        from jax.experimental import multihost_utils

        policies = get_args(RematPolicy)
        number = np.int32(policies.index(policy))
        policy = policies[int(multihost_utils.broadcast_one_to_all(number))]
    return config.replace_model(remat=policy)


def _available_bytes(mesh: Mesh, device_kind: str) -> float:
    """Return the bytes of a device that a step may take: a share of its memory, and no more than JAX allocates."""
    limits = [float("inf")]
    name = chip_name(device_kind)
    if name is not None:
        limits.append(SHARE_OF_MEMORY * CHIPS[name].memory)
    memory = local_memory(mesh)
    if memory.size is not None:
        share = SHARE_OF_MEMORY if name is None else 1.0
        limits.append(share * memory.size / memory.devices)
    return min(limits)


def _stored_policy(path: Path) -> RematPolicy | None:
    """Return the policy in the config of a run directory; None where there is none yet."""
    if not path.is_file():
        return None
    try:
        policy = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["remat"]
    except (KeyError, TypeError, ValueError, yaml.YAMLError):
        return None  # `check_run_dir` reports it
    is_policy = policy in get_args(RematPolicy) and policy != "auto"
    return policy if is_policy else None
