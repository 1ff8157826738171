"""What a foreign family is: its config from ours and back, and the table of its tensors."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from t5x_lite.convert.tensors import TORCH, Dialect, Layers, Modules, Table
from t5x_lite.models.components import Activation, MoE
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import model_spec
from t5x_lite.schema import dotted, flatten
from t5x_lite.trees import unflatten_names

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}
"""Transformers' names of elementwise functions."""
PROJECTIONS = ("query", "key", "value", "out")
"""The four matrices of an attention."""
FOLLOWS = {"kv_heads": "heads", "embedding": "embed", "decoder_layers": "layers"}
"""Settings that are left out where they equal another."""

Keys: TypeAlias = Mapping[str, str | tuple[str, Any]]
"""Their key to our dotted one, in a pair with the value that Transformers takes where a config does not say.

Where several of theirs are one of ours, the first is read and all are written. `moe` stands for the layers with
experts, whose place in the model a family knows.
"""
SIZES: Keys = {
    "vocab_size": "vocab",
    "hidden_size": "embed",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
}
"""What most families call them."""

Marked: TypeAlias = tuple[str, tuple[str, ...], str]


class Family:
    """A model type of Transformers.

    `keys` are the settings that both have, `fixed` those of ours that are the same in every such model, `constant`
    those of theirs. `base`, `heads` and `layer` are their modules and ours: of the base model but for its layers,
    beside it, and of the layer at `place`, where `{}` is its number. Names of the base model begin with `prefix`, which
    files may leave out. `ignored` are patterns of tensors that hold nothing of their own (copies of tied matrices,
    masks); `renamed` maps spellings of older files. `marked` models have a tensor of this name, these outputs, and a
    class of their own.
    """

    model_type: str
    architecture: str
    objective: str
    keys: ClassVar[Keys]
    fixed: ClassVar[Mapping[str, Any]] = {}
    constant: ClassVar[Mapping[str, Any]] = {}
    base: ClassVar[Modules]
    heads: ClassVar[Modules] = {}
    place: ClassVar[str]
    layer: ClassVar[Modules]
    dialect: ClassVar[Dialect] = Dialect(transposed=True, leaves=TORCH)
    ignored: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}
    prefix: ClassVar[str] = ""
    marked: ClassVar[Marked | None] = None

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        """Our model's settings from their config and the names of their tensors."""
        own = dict(self.fixed)
        for theirs, key in self.keys.items():
            ours, value = (key, hf[theirs]) if isinstance(key, str) else (key[0], hf.get(theirs, key[1]))
            own.setdefault(ours, ACTIVATIONS[value] if ours.endswith(".activation") else value)
        for name, other in FOLLOWS.items():
            if own.get(name) == own[other]:
                del own[name]
        return unflatten_names(own)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Their config of our model, which `model` turns back into the same.

        Raises:
            KeyError: a component that such models do not have.
        """
        own, found = resolved(model), {}
        if len(model.mixtures) == 1:
            own |= dotted({"moe": model.mixtures[0].model_dump(mode="json")})
        for theirs, key in self.keys.items():
            ours = key if isinstance(key, str) else key[0]
            found[theirs] = foreign_activation(model) if ours.endswith(".activation") else own[ours]
        return {**found, **self.constant}

    def modules(self, model: ModelConfig) -> tuple[Modules, Sequence[Layers]]:
        """Their modules and ours of this model, outside the layers and in each stack."""
        base = {self.prefix + theirs: ours for theirs, ours in self.base.items()}
        side = "encoder" if model.family == "encoder" else "decoder"
        return {**base, **self.heads}, [Layers(self.prefix + self.place, f"{side}.stack.layers", self.layer)]

    def table(self, model: ModelConfig) -> Table:
        """Every tensor."""
        return Table(model_spec(model), self.dialect, *self.modules(model))

    def objective_of(self, model: ModelConfig) -> Any:
        """The objective that such a model was trained on, as a setting; null where one alone cannot be."""
        return self.objective

    def architecture_of(self, model: ModelConfig) -> str:
        """The class of Transformers that holds this model."""
        return self.marked[2] if self.marked and self.marks(model) else self.architecture

    def marks(self, model: ModelConfig) -> list[str]:
        """The tensor that tells such a model from the plain one, if it is not the plain one."""
        return [self.marked[0]] if self.marked and set(self.marked[1]) == set(model.outputs) else []


def foreign_activation(model: ModelConfig) -> str:
    """Transformers' first name of what a model has between the matrices of its feed-forward."""
    own = model.dense_feedforward.activation
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == own)


def resolved(model: ModelConfig) -> dict[str, Any]:
    """Settings with the defaults that follow from others filled in."""
    own = model.dense_feedforward
    layers = []
    for layer in model.pattern:
        kind = model.feedforward_of(layer)
        if isinstance(kind, MoE):
            kind = kind.model_copy(update={"expert": kind.expert or own, "mlp": kind.mlp or model.width_of_mlp})
        layers.append(layer.model_copy(update={"feedforward": kind}))
    filled = {
        "pattern": tuple(layers),
        "feedforward": own,
        "head_dim": model.width_of_head,
        "kv_heads": model.key_value_heads,
        "mlp": model.width_of_mlp,
        "embedding": model.width_of_embedding,
        "decoder_layers": model.layers_of_decoder,
    }
    return flatten(model.model_copy(update=filled))


def projections(theirs: str, names: Sequence[str] = "qkvo", ours: str = "attention") -> dict[str, str]:
    """The four matrices of an attention; `{}` stands for each of their names."""
    return {theirs.format(name): f"{ours}.{part}" for name, part in zip(names, PROJECTIONS, strict=True)}
