"""Lottery tickets: masks against a sort in NumPy, sparsity by rounds, rewound weights, zeros that stay, resume."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.adapt.lottery import Lottery, magnitude_masks
from t5x_lite.cli import main
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_dir import open_run
from t5x_lite.run_weights import BaseCheckpoint
from t5x_lite.train.rewind import RewoundState, _base_of, rewind
from t5x_lite.train.steps import Steps, make_steps
from t5x_lite.trees import flatten_names
from tests.conftest import lines

DEPTHS = {"stacked": 1, "single": 0}
FRACTION = 0.2
EARLY = 8
"""A step of the dense run that has a checkpoint."""
LAST = 12


def random_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "stacked": rng.standard_normal((3, 5, 4), np.float32) * np.float32([[[1]], [[0.1]], [[5]]]),
        "single": rng.standard_normal((7, 6), np.float32),
    }


def sorted_masks(
    weights: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], scope: str
) -> dict[str, np.ndarray]:
    """Prune the smallest remaining weights of each matrix, or of all, by a sort."""
    pruned = {name: mask.copy() for name, mask in masks.items()}
    groups = [[("stacked", 0), ("stacked", 1), ("stacked", 2), ("single", ...)]]
    if scope == "layer":
        groups = [[matrix] for matrix in groups[0]]
    for group in groups:
        remaining = []
        for name, index in group:
            for place in np.argwhere(masks[name][index]):
                remaining.append((abs(float(weights[name][index][tuple(place)])), name, index, tuple(place)))
        remaining.sort(key=lambda entry: entry[0])
        for _, name, index, place in remaining[: round(FRACTION * len(remaining))]:
            pruned[name][index][place] = False
    return pruned


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_prune_the_smallest_remaining_weights_in_every_round(scope: str) -> None:
    weights = random_weights()
    masks = {name: np.ones(array.shape, bool) for name, array in weights.items()}
    sizes = [sum(mask.sum() for mask in masks.values())]
    for _ in range(4):
        expected = sorted_masks(weights, masks, scope)
        computed = magnitude_masks(weights, masks, DEPTHS, FRACTION, scope)
        for name in weights:
            np.testing.assert_array_equal(computed[name], expected[name], err_msg=name)
        masks = expected
        sizes.append(sum(mask.sum() for mask in masks.values()))
        # The next round compares other weights.
        weights = {name: array[..., ::-1] * 2 for name, array in weights.items()}
    if scope == "global":
        # 102 weights: 0.8ⁿ of them, to within one half a round.
        np.testing.assert_allclose(sizes, 102 * 0.8 ** np.arange(5), atol=1.5)
    else:
        assert [int(mask.sum()) for mask in masks["stacked"]] == [8, 8, 8]  # 20, 16, 13, 10, 8


def test_weights_of_one_magnitude_are_pruned_together_and_a_small_fraction_prunes_nothing() -> None:
    weights = {"single": np.array([[0.0, -1.0, 1.0, 2.0, 3.0]], np.float32)}
    masks = {"single": np.ones((1, 5), bool)}
    computed = magnitude_masks(weights, masks, {"single": 0}, 0.4, "global")["single"]
    assert computed.tolist() == [[False, False, False, True, True]]
    unchanged = magnitude_masks(weights, masks, {"single": 0}, 0.05, "global")["single"]
    assert np.asarray(unchanged).all()


def round_words(config: Path, source: Path, run_dir: Path, step: int = EARLY) -> list[str]:
    return [
        str(config),
        f"run_dir={run_dir}",
        f"adapt.from={source}",
        f"adapt.method={{lottery: {{rewind_step: {step}}}}}",
    ]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, tiny_run: Path) -> list[Path]:
    """The runs of two rounds of pruning of `tiny_run`."""
    folder = tmp_path_factory.mktemp("lottery")
    source = tiny_run
    runs = []
    for number in (1, 2):
        assert main(["train", *round_words(tiny_config, source, folder / f"{number}")]) == 0
        source = folder / f"{number}"
        runs.append(source)
    return runs


def masks_of(run_dir: Path, step: int = LAST) -> dict[str, np.ndarray]:
    run = open_run(run_dir)
    steps = steps_of(run_dir)
    restored = run.checkpoints.restore(steps.state.masks, step, prefix="masks.")
    assert restored is not None
    return {name: np.asarray(mask) for name, mask in flatten_names(restored[1]).items()}


def steps_of(run_dir: Path) -> Steps:
    run = open_run(run_dir)
    return make_steps(run.config, run.spec, make_mesh(run.config.mesh))


def weights_of(run_dir: Path, step: int = LAST) -> dict[str, np.ndarray]:
    params = t5x_lite.load(run_dir, step=step).params
    return {name: np.asarray(array) for name, array in flatten_names(params).items()}


def rewound(run_dir: Path) -> RewoundState:
    config = open_run(run_dir).config
    return rewind(config, make_mesh(config.mesh), steps_of(run_dir))


@pytest.mark.slow
def test_each_round_prunes_a_fifth_of_what_the_trained_weights_before_it_have_left(
    rounds: list[Path], tiny_run: Path
) -> None:
    first = masks_of(rounds[0])
    second = masks_of(rounds[1])
    # Two layers of 32 channels: queries, keys, values and outputs 4·32², the feed-forward 2·32·128.
    assert sum(mask.size for mask in first.values()) == 2 * (4 * 32**2 + 2 * 32 * 128)
    total = 24576
    assert [sum(int(mask.sum()) for mask in masks.values()) for masks in (first, second)] == [
        round(0.8 * total),
        round(0.8 * round(0.8 * total)),
    ]
    dense = weights_of(tiny_run)
    threshold = np.sort(np.abs(np.concatenate([dense[name].ravel() for name in first])))[round(0.2 * total) - 1]
    for name, mask in first.items():
        np.testing.assert_array_equal(mask, np.abs(dense[name]) > threshold)
        assert not (second[name] & ~mask).any()


@pytest.mark.slow
def test_a_round_begins_with_the_early_weights_and_optimizer_and_its_pruned_weights_stay_zero(
    rounds: list[Path], tiny_run: Path
) -> None:
    early = weights_of(tiny_run, EARLY)
    for run_dir in rounds:
        masks = masks_of(run_dir)
        first = rewound(run_dir)
        assert int(first.state.step) == EARLY
        trained = weights_of(run_dir)
        for name, array in flatten_names(first.state.params).items():
            expected = early[name] * masks[name] if name in masks else early[name]
            np.testing.assert_array_equal(array, expected, err_msg=name)
            assert (trained[name] != expected).any(), name
        for name, mask in masks.items():
            assert not trained[name][~mask].any()
            assert (trained[name][mask] != 0).all()
        assert [line["step"] for line in lines(run_dir)] == list(range(EARLY + 1, LAST + 1))
    early_state = open_run(tiny_run).checkpoints.restore(steps_of(tiny_run).state, EARLY)
    assert early_state is not None
    for array, expected in zip(
        jax.tree.leaves(first.state.opt_state), jax.tree.leaves(early_state[1].opt_state), strict=True
    ):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.slow
def test_an_interrupted_round_goes_on_to_the_same_bits(
    rounds: list[Path], tiny_config: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "round"
    words = [*round_words(tiny_config, tiny_run, run_dir), "checkpoint.every_steps=2"]
    assert main(["train", *words]) == 0
    shutil.rmtree(run_dir / "checkpoints" / str(LAST))
    assert main(["train", *words]) == 0
    expected = weights_of(rounds[0])
    for name, array in weights_of(run_dir).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_step_0_is_that_of_the_seed(rounds: list[Path], tiny_config: Path, tiny_run: Path, tmp_path: Path) -> None:
    words = round_words(tiny_config, tiny_run, tmp_path, step=0)
    model = configuration.load(words[0], words[1:]).model.model_copy(
        update={"vocab": open_run(tiny_run).config.model.vocab}
    )
    config = configuration.load(words[0], words[1:]).model_copy(update={"model": model})
    steps = steps_of(rounds[0])
    first = rewind(config, make_mesh(config.mesh), steps)
    fresh = flatten_names(steps_of(tiny_run).create_state().params)
    assert int(first.state.step) == 0
    for name, mask in flatten_names(first.state.masks).items():
        np.testing.assert_array_equal(flatten_names(first.state.params)[name], np.where(mask, fresh[name], 0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.seed=5"], "is the run of another config: train.seed is 0 there, 5 here"),
        (["adapt.method={lottery: {rewind_step: 7}}"], "there is no checkpoint of step 7; complete ones are: 8, 12"),
        (["adapt.method={lottery: {rewind_step: 12}}"], "rewind_step 12 leaves nothing of train.steps 12"),
        (["adapt.method={lottery: {targets: nothing}}"], "targets 'nothing': no matrix of this model matches"),
        (["adapt.method={lottery: {fraction: 1.0}}"], "fraction"),
        (["adapt.method={lottery: {targets: '('}}"], "targets"),
    ],
)
def test_what_cannot_be_rewound_is_refused(
    words: list[str],
    message: str,
    tiny_config: Path,
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", *round_words(tiny_config, tiny_run, tmp_path / "run"), *words]) == 2
    assert message in capsys.readouterr().err


def test_biases_norms_and_embeddings_have_no_masks(rounds: list[Path]) -> None:
    spec = open_run(rounds[0]).spec
    for name, axes in flatten_names(spec.axes).items():
        is_matrix = ".layers." in name and name.endswith(".weight")
        assert Lottery().prunes(name, axes) == is_matrix, name


def test_first_weights_of_an_adapted_run_are_those_that_it_began_with() -> None:
    """The run that it adapted may have gone on."""
    base = {"step": 6, "fingerprint": "9155e14401227822"}
    metadata = {4: {"base": None}, 12: {"base": base}}
    checkpoints = SimpleNamespace(steps=lambda: [4, 12], meta=metadata.__getitem__, close=lambda: None)
    run: Any = SimpleNamespace(checkpoints=checkpoints)
    assert _base_of(run) == BaseCheckpoint(step=6, fingerprint="9155e14401227822")
