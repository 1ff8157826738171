"""Views of texts against a hand count, and the loss against PyTorch's cross-entropy of the matrix of cosines."""

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.losses import Losses
from t5x_lite.objectives.contrastive import Contrastive
from tests.objectives.vocabulary import row, task

CLS, SEP, EOS = 3, 4, 1


def views(objective: Contrastive, tokens: list[int], seq_len: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    return dict(objective.example(row(tokens), task(seq_len, "encoder"), np.random.default_rng(seed)))


def test_halves_share_no_place_and_are_the_text_together_in_its_order() -> None:
    text, firsts = list(range(10, 21)), np.zeros(11)
    for seed in range(2000):
        found = views(Contrastive(), [*text, EOS], seed=seed)
        sizes = (found["segment_ids"] > 0).sum(1)
        told = [line[:size].tolist() for line, size in zip(found["tokens"], sizes, strict=True)]
        assert [len(view) for view in told] == [5 + 2, 6 + 2]
        for view in told:
            assert (view[0], view[-1]) == (CLS, SEP)
            assert view[1:-1] == sorted(view[1:-1])
        assert sorted(told[0][1:-1] + told[1][1:-1]) == text
        assert found["positions"][:, :7].tolist() == [list(range(7))] * 2  # places of the text would give it away
        firsts[np.array(told[0][1:-1]) - 10] += 1
    # Five of eleven places are drawn: 4 standard deviations of a binomial count.
    assert np.abs(firsts / 2000 - 5 / 11).max() < 4 * (5 / 11 * 6 / 11 / 2000) ** 0.5


def test_views_by_dropout_are_the_text_twice() -> None:
    found = views(Contrastive(views="dropout"), [10, 11, 12, EOS], 8)
    assert found["tokens"].tolist() == [[CLS, 10, 11, 12, SEP, 0, 0, 0]] * 2
    assert found["loss_weights"] == 1


@pytest.mark.parametrize(("tokens", "weight"), [([], 0), ([10], 0), ([10, EOS], 0), ([10, 11], 1)])
def test_a_text_that_has_no_halves_has_no_weight(tokens: list[int], weight: float) -> None:
    assert views(Contrastive(), tokens)["loss_weights"] == weight


def test_the_loss_is_cross_entropy_of_cosines_both_ways_over_the_rows_that_count() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(6, 5)).astype(np.float32) for _ in range(2))
    weights = np.array([1, 1, 0, 1, 0, 1], np.float32)
    found = Losses(vocab=9).contrast(jnp.asarray(first), jnp.asarray(second), jnp.asarray(weights), 0.05)
    u, v = (torch.nn.functional.normalize(torch.from_numpy(x[weights > 0])) for x in (first, second))
    scores = u @ v.T / 0.05
    ways = [torch.nn.functional.cross_entropy(way, torch.arange(4), reduction="sum") for way in (scores, scores.T)]
    hits = [(way.argmax(1) == torch.arange(4)).sum() for way in (scores, scores.T)]
    assert float(found.loss) == pytest.approx(float(sum(ways)) / 2, rel=1e-5)
    assert float(found.total) == float(found.loss)
    assert float(found.correct) == float(sum(hits)) / 2
    assert float(found.weight) == 4


@pytest.mark.parametrize(
    ("objective", "settings", "said"),
    [
        (Contrastive(), {}, "model.outputs="),
        (Contrastive(), {"outputs": [], "head": {"outputs": 2}}, "model.outputs="),
        (Contrastive(), {"outputs": [], "head": {"outputs": 0, "pool": "none"}}, "model.outputs="),
        (Contrastive(views="dropout"), {"outputs": [], "head": {"outputs": 0, "pool": "mean"}}, "model.dropout"),
    ],
)
def test_models_that_have_no_pooled_states_are_refused(
    objective: Contrastive, settings: dict[str, object], said: str
) -> None:
    model = ModelConfig.model_validate({"family": "encoder", "layers": 1, "embed": 8, "heads": 2, **settings})
    with pytest.raises(ValueError, match=said):
        objective.check(model)
