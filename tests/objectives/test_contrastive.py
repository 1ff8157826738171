"""Views of texts by hand, and the loss against PyTorch's cross-entropy of the matrix of cosines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models import losses
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.losses import LossSettings
from t5x_lite.objectives.contrastive import Contrastive
from tests.objectives.vocabulary import context, row

CLS = 3
SEP = 4
EOS = 1


def make_views(objective: Contrastive, tokens: list[int], seq_len: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    return dict(objective.example(row(tokens), context(seq_len, "encoder"), np.random.default_rng(seed)))


def test_halves_share_no_token_and_together_are_the_text_in_its_order() -> None:
    text = list(range(10, 21))
    first_counts = np.zeros(11)
    for seed in range(2000):
        features = make_views(Contrastive(), [*text, EOS], seed=seed)
        sizes = (features["segment_ids"] > 0).sum(1)
        views = [tokens[:size].tolist() for tokens, size in zip(features["tokens"], sizes, strict=True)]
        assert [len(view) for view in views] == [5 + 2, 6 + 2]
        for view in views:
            assert (view[0], view[-1]) == (CLS, SEP)
            assert view[1:-1] == sorted(view[1:-1])
        assert sorted(views[0][1:-1] + views[1][1:-1]) == text
        # Positions count within the view: those of the text would identify the other view.
        assert features["positions"][:, :7].tolist() == [list(range(7))] * 2
        first_counts[np.array(views[0][1:-1]) - 10] += 1
    # Five of eleven tokens are drawn: 4 standard deviations of a binomial count.
    assert np.abs(first_counts / 2000 - 5 / 11).max() < 4 * (5 / 11 * 6 / 11 / 2000) ** 0.5


def test_views_by_dropout_are_the_text_twice() -> None:
    features = make_views(Contrastive(views="dropout"), [10, 11, 12, EOS], 8)
    assert features["tokens"].tolist() == [[CLS, 10, 11, 12, SEP, 0, 0, 0]] * 2
    assert features["loss_weights"] == 1


@pytest.mark.parametrize(("tokens", "weight"), [([], 0), ([10], 0), ([10, EOS], 0), ([10, 11], 1)])
def test_a_text_without_two_halves_has_no_weight(tokens: list[int], weight: float) -> None:
    assert make_views(Contrastive(), tokens)["loss_weights"] == weight


def test_info_nce_is_cross_entropy_of_cosines_in_both_directions_over_rows_with_weight() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    first = rng.normal(size=(6, 5)).astype(np.float32)
    second = rng.normal(size=(6, 5)).astype(np.float32)
    weights = np.array([1, 1, 0, 1, 0, 1], np.float32)
    loss = losses.info_nce(jnp.asarray(first), jnp.asarray(second), jnp.asarray(weights), 0.05)
    normalise = torch.nn.functional.normalize
    scores = normalise(torch.from_numpy(first[weights > 0])) @ normalise(torch.from_numpy(second[weights > 0])).T / 0.05
    directions = (scores, scores.T)
    expected = [torch.nn.functional.cross_entropy(x, torch.arange(4), reduction="sum") for x in directions]
    correct = [(x.argmax(1) == torch.arange(4)).sum() for x in directions]
    assert float(loss.loss) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    assert float(loss.total) == float(loss.loss)
    assert float(loss.correct) == float(sum(correct)) / 2
    assert float(loss.weight) == 4


class CountingHead:
    """A head that pools the states of a text: their sum over its tokens."""

    def pooled(self, states: jax.Array, tokens: jax.Array, segment_ids: jax.Array, key: None) -> jax.Array:
        return (states * (segment_ids > 0)[..., None]).sum(1)


class TableModel:
    """A model whose states are the rows of a table."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.head = CountingHead()

    def __call__(self, tokens: jax.Array, **_: object) -> jax.Array:
        return jnp.asarray(self.table)[tokens]


def test_the_loss_compares_the_two_views_of_each_text_with_those_of_the_other_texts() -> None:
    """van den Oord et al. 2018, §2.3, in NumPy; the third text has one token, so that it has no second view."""
    objective = Contrastive(temperature=0.2)
    table = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    texts = ([10, 11, 12, EOS], [13, 14, 15, 16, 17, EOS], [18, EOS], [19, 20, EOS])
    examples = [make_views(objective, text, 8, seed) for seed, text in enumerate(texts)]
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    sums = objective.loss(TableModel(table), batch, None, LossSettings(40))["loss"]
    vectors = np.zeros((3, 2, 5))
    for number, text in enumerate((0, 1, 3)):
        for view in range(2):
            size = int((batch["segment_ids"][text, view] > 0).sum())
            vector = table[batch["tokens"][text, view, :size]].sum(0)
            vectors[number, view] = vector / np.linalg.norm(vector)
    scores = vectors[:, 0] @ vectors[:, 1].T / 0.2
    forward = np.log(np.exp(scores).sum(1)) - np.diag(scores)
    backward = np.log(np.exp(scores).sum(0)) - np.diag(scores)
    assert float(sums.total) == pytest.approx((forward.sum() + backward.sum()) / 2, rel=1e-4)
    assert float(sums.weight) == 3


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (Contrastive(), {}, "model.outputs="),
        (Contrastive(), {"outputs": [], "head": {"outputs": 2}}, "model.outputs="),
        (Contrastive(), {"outputs": [], "head": {"outputs": 0, "pool": "none"}}, "model.outputs="),
        (Contrastive(views="dropout"), {"outputs": [], "head": {"outputs": 0, "pool": "mean"}}, "model.dropout"),
    ],
)
def test_models_without_pooled_states_are_refused(
    objective: Contrastive, settings: dict[str, object], message: str
) -> None:
    model = ModelConfig.model_validate({"family": "encoder", "layers": 1, "embed": 8, "heads": 2, **settings})
    with pytest.raises(ValueError, match=message):
        objective.check(model)
