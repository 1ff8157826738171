"""ELMo's bidirectional language model against its published architecture, written out in PyTorch.

Peters et al. 2018, §3, with the details of AllenNLP's `elmo.py`, `elmo_lstm.py` and `highway.py`: the gate of a highway
layer carries the input, a filter's maximum passes a ReLU, the second layer of LSTMs adds its input, and the first of
the three layers is the vector of the token twice.
"""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jaxtyping import Float, Int

pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")

import torch

from t5x_lite.evaluate.layer_states import compute_layer_states
from t5x_lite.models.character_ids import CHARACTERS, CharacterIds
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.losses import LossSettings
from t5x_lite.models.spec import ModelSpec, model_spec
from t5x_lite.objectives import ExampleContext, TokenRow, Vocabulary
from t5x_lite.objectives.bidirectional_lm import BidirectionalLM
from t5x_lite.trees import flatten_names

WORDS = ("<unk>", "the", "quick", "brown", "fox", "jumps", "naïve", "dog", "overhanging", "<s>", "</s>")
BEGIN = 9
END = 10
WIDTH = 6
CELLS = 10
FILTERS = (3, 5, 4)
LENGTH = 12
DOCUMENTS = ([1, 2, 3, 4, 5], [6, 7], [8, 1, 0])


def elmo_config(clip: float | None) -> ModelConfig:
    lstm: dict[str, Any] = {"hidden": [CELLS], "projection": WIDTH, "bidirectional": True, "separate_directions": True}
    if clip is not None:
        lstm |= {"cell_clip": clip, "projection_clip": clip}
    values = {
        "family": "encoder",
        "layers": 2,
        "embed": 2 * WIDTH,
        "embedding": WIDTH,
        "heads": 1,
        "vocab": len(WORDS),
        "token_copies": 2,
        "characters": {"filters": FILTERS, "width": 4, "highways": 2, "length": LENGTH},
        "positions": "none",
        "norm": "none",
        "feedforward": "none",
        "outputs": ["neighbours"],
        "tied": False,
        "output_bias": True,
        "pattern": [{"mixer": {"lstm": lstm}, "residual": False}, {"mixer": {"lstm": lstm}}],
    }
    return ModelConfig.model_validate(values)


def elmo_spec(config: ModelConfig) -> ModelSpec:
    return replace(model_spec(config), character_ids=CharacterIds.of(WORDS, (len(WORDS), LENGTH), {BEGIN}, {END}))


def vocabulary() -> Vocabulary:
    names = {"<unk>": 0, "<s>": BEGIN, "</s>": END}
    special = np.isin(np.arange(len(WORDS)), list(names.values()))
    return Vocabulary(len(WORDS), END, names, (), special, ~special)


class ReferenceElmo(torch.nn.Module):
    """The published architecture, for one document at a time."""

    def __init__(self, clip: float | None) -> None:
        super().__init__()
        self.clip = clip
        filters = sum(FILTERS)
        self.characters = torch.nn.Embedding(CHARACTERS, 4)
        convolutions = [torch.nn.Conv1d(4, count, taps) for taps, count in enumerate(FILTERS, start=1)]
        self.convolutions = torch.nn.ModuleList(convolutions)
        self.highways = torch.nn.ModuleList([torch.nn.Linear(filters, 2 * filters) for _ in range(2)])
        self.projection = torch.nn.Linear(filters, WIDTH)
        lstms = [torch.nn.LSTM(WIDTH, CELLS, proj_size=WIDTH, batch_first=True) for _ in range(4)]
        self.lstms = torch.nn.ModuleList(lstms)
        self.softmax = torch.nn.Linear(WIDTH, len(WORDS))

    def embed(self, characters: Any) -> Any:
        x = self.characters(characters).transpose(1, 2)
        maxima = [torch.relu(convolution(x).max(dim=-1).values) for convolution in self.convolutions]
        y = torch.cat(maxima, dim=-1)
        for highway in self.highways:
            nonlinear, gate = highway(y).chunk(2, dim=-1)
            gate = torch.sigmoid(gate)
            y = gate * y + (1 - gate) * torch.relu(nonlinear)
        return self.projection(y)

    def run(self, lstm: Any, x: Any) -> Any:
        """Return the outputs of one layer in one direction; PyTorch's LSTM cannot clip."""
        if self.clip is None:
            return lstm(x[None])[0][0]
        h = torch.zeros(WIDTH)
        c = torch.zeros(CELLS)
        outputs = []
        for token in x:
            total = lstm.weight_ih_l0 @ token + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
            gate_in, forget, candidate, gate_out = total.chunk(4)
            c = torch.sigmoid(gate_in) * torch.tanh(candidate) + torch.sigmoid(forget) * c
            c = c.clamp(-self.clip, self.clip)
            h = lstm.weight_hr_l0 @ (torch.sigmoid(gate_out) * torch.tanh(c))
            h = h.clamp(-self.clip, self.clip)
            outputs.append(h)
        return torch.stack(outputs)

    def forward(self, characters: Any) -> list[Any]:
        """Return the three layers, `[tokens, 2·width]`."""
        x = self.embed(characters)
        directions = []
        for number, read in ((0, lambda x: x), (2, lambda x: x.flip(0))):
            first = self.run(self.lstms[number], read(x))
            second = self.run(self.lstms[number + 1], first) + first
            directions.append([x, read(first), read(second)])
        return [torch.cat(pair, dim=-1) for pair in zip(*directions, strict=True)]

    def loss(self, documents: list[Any], tokens: list[Any]) -> Any:
        """Return the mean of the losses of the next and of the last token."""
        losses = []
        for states, ids in zip(documents, tokens, strict=True):
            forward, backward = states[-1].chunk(2, dim=-1)
            nll = torch.nn.functional.cross_entropy
            losses.append(nll(self.softmax(forward[:-1]), ids[1:], reduction="none"))
            losses.append(nll(self.softmax(backward[1:]), ids[:-1], reduction="none"))
        return torch.cat(losses).mean()


def our_arrays(theirs: ReferenceElmo, arrays: dict[str, Any]) -> dict[str, Float[np.ndarray, "..."]]:
    """Return the reference's weights, or their gradients, by our names and in our shapes.

    Args:
        theirs: the reference.
        arrays: by the names of its parameters.
    """
    filters = sum(FILTERS)
    ours = {
        "tokens.characters": arrays["characters.weight"],
        "tokens.projection.weight": arrays["projection.weight"].T,
        "tokens.projection.bias": arrays["projection.bias"],
        "neighbours.matrix.weight": arrays["softmax.weight"].T,
        "neighbours.bias": arrays["softmax.bias"],
    }
    for number in range(len(FILTERS)):
        ours[f"tokens.filters.{number + 1}.weight"] = arrays[f"convolutions.{number}.weight"].transpose(2, 1, 0)
        ours[f"tokens.filters.{number + 1}.bias"] = arrays[f"convolutions.{number}.bias"]
    for number in range(2):
        matrix = arrays[f"highways.{number}.weight"].reshape(2, filters, filters)
        ours[f"tokens.highways.{number}.linear.weight"] = matrix.transpose(2, 0, 1)
        ours[f"tokens.highways.{number}.linear.bias"] = arrays[f"highways.{number}.bias"].reshape(2, filters)
    for place in range(4):
        direction = ("forward", "backward")[place // 2]
        name = f"encoder.stack.layers.{place % 2}.mixer.{direction}_0"
        source = f"lstms.{place}"
        ours[f"{name}.input.weight"] = gates_last(arrays[f"{source}.weight_ih_l0"])[None]
        ours[f"{name}.input.bias"] = arrays[f"{source}.bias_ih_l0"].reshape(1, 4, CELLS)
        ours[f"{name}.hidden"] = gates_last(arrays[f"{source}.weight_hh_l0"])[None]
        ours[f"{name}.projection.weight"] = arrays[f"{source}.weight_hr_l0"].T[None]
    return ours


def gates_last(matrix: Float[np.ndarray, "g_c d"]) -> Float[np.ndarray, "d g c"]:
    return np.moveaxis(matrix.reshape(4, CELLS, -1), 2, 0)


def reference(clip: float | None) -> ReferenceElmo:
    torch.manual_seed(0)
    theirs = ReferenceElmo(clip)
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        if name.endswith("bias_hh_l0"):  # we have one bias
            torch.nn.init.zeros_(parameter)
    return theirs


def example() -> dict[str, Int[np.ndarray, "1 l"]]:
    """Return a packed row of the three documents, and some padding."""
    segments = np.repeat([1, 2, 3], [len(document) for document in DOCUMENTS])
    row = TokenRow(np.concatenate(DOCUMENTS).astype(np.int32), segments.astype(np.int32))
    context = ExampleContext(18, vocabulary(), "encoder")
    features = BidirectionalLM().example(row, context, np.random.default_rng(0))
    return {name: feature[None] for name, feature in features.items()}


@pytest.mark.parametrize("clip", [None, pytest.param(0.15, marks=pytest.mark.slow)])
def test_loss_gradients_and_layers_equal_the_published_architecture(clip: float | None) -> None:
    theirs = reference(clip)
    config = elmo_config(clip)
    spec = elmo_spec(config)
    table = spec.character_ids.table.astype(np.int64)
    framed = [torch.tensor([BEGIN, *document, END]) for document in DOCUMENTS]
    documents = [theirs(torch.tensor(table)[tokens]) for tokens in framed]
    expected = theirs.loss(documents, framed)
    expected.backward()

    weights = our_arrays(theirs, {name: tensor.detach().numpy() for name, tensor in theirs.named_parameters()})
    shapes = flatten_names(spec.shapes)
    assert {name: array.shape for name, array in weights.items()} == {name: leaf.shape for name, leaf in shapes.items()}
    params = jax.tree.unflatten(jax.tree.structure(spec.shapes), [weights[name] for name in shapes])
    batch = example()

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        terms = BidirectionalLM().loss(spec.model(params), batch, None, LossSettings(vocab=len(WORDS)))
        return terms["loss"].total / terms["loss"].weight, compute_layer_states(spec, params, batch)

    (value, layers), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    expected_gradients = our_arrays(theirs, {name: tensor.grad.numpy() for name, tensor in theirs.named_parameters()})
    for name, gradient in flatten_names(gradients).items():
        np.testing.assert_allclose(gradient, expected_gradients[name], atol=2e-6, err_msg=name)
    states = np.asarray(layers)[:, 0]
    for number in range(3):
        layer = np.concatenate([document[number].detach().numpy() for document in documents])
        np.testing.assert_allclose(states[number, : len(layer)], layer, atol=1e-5)
    if clip is not None:
        assert np.mean(np.abs(documents[0][1].detach().numpy()) == np.float32(clip)) > 0.05


def test_characters_are_numbered_as_in_allennlps_tests() -> None:
    """Its elmo_indexer_test.py, whose ids are higher by one, which is its padding of tokens."""
    table = CharacterIds.of(["<s>", "</s>", "\u0100t"], (4, 50), {0}, {1}).table
    assert table[0].tolist() == [258, 256, 259, *[260] * 47]
    assert table[1].tolist() == [258, 257, 259, *[260] * 47]
    assert table[2].tolist() == [258, 196, 128, 116, 259, *[260] * 45]
    assert (CharacterIds.of(["x" * 60], (1, 50)).table[0] == [258, *[ord("x")] * 48, 259]).all()
