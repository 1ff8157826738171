"""Tables between a foreign config.json and our model settings.

A table lists the foreign fields that stand for one of our settings each (`Field`), and what takes several fields to
convert (`Rule`). Both work in two directions: reading makes our settings from a foreign config, writing makes a foreign
config from our model.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from t5x_lite.convert.known_fields import check_fields
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kinds import Local
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import Capacity, Dropless, MoE
from t5x_lite.models.feedforward.config import Activation
from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.schema import dotted, flatten
from t5x_lite.trees import unflatten_names

ForeignConfig: TypeAlias = dict[str, Any]
"""The content of a config.json."""
Settings: TypeAlias = dict[str, Any]
"""Settings of our model as plain values: nested, as in a YAML config, or by dotted key."""

LARGEST_COUNT = 10_000
"""The largest number of layers, groups or labels, for each of which lists have an item."""

REQUIRED: Final = object()
"""The default of a field that a foreign config must have."""

LAYER_SETTINGS = ("layers", "decoder_layers")
IMPLIED_BY = {
    "kv_heads": "heads",
    "embedding": "embed",
    "decoder_layers": "layers",
    "query_key_value_bias": "bias",
    "feedforward_bias": "bias",
}
"""Settings whose null stands for the value of another setting. They are read as null where they equal it."""


@dataclass(frozen=True)
class ForeignModel:
    """A foreign model to be read: its config, and the names of the tensors that its files store."""

    config: Mapping[str, Any]
    tensor_names: Collection[str]


class MissingComponent(UserError):
    """A model lacks a component that a model type has.

    Attributes:
        setting: a setting of that component, by dotted key.
    """

    def __init__(self, setting: str) -> None:
        super().__init__(f"the model has no {setting}")
        self.setting = setting


@dataclass(frozen=True)
class Transform:
    """The conversion of one value in both directions."""

    to_ours: Callable[[Any], object]
    to_foreign: Callable[[Any], object]


def _return_unchanged(value: object) -> object:
    return value


UNCHANGED = Transform(_return_unchanged, _return_unchanged)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
"""Names of activations in Transformers, and ours."""
FOREIGN_ACTIVATIONS: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "relu": "relu",
    "relu_squared": "relu2",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
"""The name in Transformers that each of our activations is written as."""


def read_activation(name: str) -> Activation:
    """Return our name of an activation.

    Raises:
        UserError: the activation is not supported.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"activation {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def write_activation(name: Activation) -> str:
    """Return the name that an activation has in Transformers."""
    return FOREIGN_ACTIVATIONS[name]


ACTIVATION = Transform(read_activation, write_activation)


def shortest_period(kinds: list[str]) -> list[str]:
    """Return the shortest list that gives `kinds` when it is repeated; the last repeat may be cut short."""
    for length in range(1, len(kinds)):
        if kinds[length:] == kinds[:-length]:
            return kinds[:length]
    return kinds


def layers_and_window(model: ModelConfig, dense: str, local: str) -> tuple[list[str], int | None]:
    """Return the kind of attention of every layer, and the window of the local ones.

    Args:
        model: the model.
        dense: the foreign name of dense attention.
        local: the foreign name of attention within a window.

    Raises:
        UserError: the windows have several lengths.
    """
    names = []
    windows = set()
    for layer in model.period:
        if isinstance(layer.attention, Local):
            names.append(local)
            windows.add(layer.attention.window)
        else:
            names.append(dense)
    if len(windows) > 1:
        raise UserError(f"windows of several lengths ({', '.join(map(str, sorted(windows)))}) cannot be written")
    return names * (model.layers // len(names)), next(iter(windows), None)


def check_count(name: str, value: object) -> int:
    """Return a number of layers, groups or labels, by which lists are made.

    Raises:
        UserError: no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_COUNT:
        raise UserError(f"{name}={str(value)[:60]} is not a number from 1 to {LARGEST_COUNT:,}")
    return value


def require_field(config: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field.

    Raises:
        UserError: the config lacks it, or has null.
    """
    value = config.get(name)
    if value is None:
        raise UserError(f"the field {name!r} is missing")
    return value


@dataclass(frozen=True)
class Field:
    """A foreign config field that stands for one of our settings.

    Attributes:
        name: the foreign field.
        setting: our setting, by dotted key. Keys that begin with `moe.` are those of the layers with experts; a rule of
            the model type places them in the model.
        default: the value that Transformers takes where a config lacks the field.
        transform: the conversion of the value.
        is_read: false for a field that is only written, because another field is read for the same setting.
        is_flag: the value is true or false.
        writes_null: write null where our setting is null, instead of the value that null stands for.
    """

    name: str
    setting: str
    default: object = REQUIRED
    transform: Transform = UNCHANGED
    is_read: bool = True
    is_flag: bool = False
    writes_null: bool = False

    def read(self, config: Mapping[str, Any]) -> object:
        """Return the value of our setting.

        Raises:
            UserError: the field is required and missing, or its value is not supported.
        """
        if self.default is REQUIRED:
            value = require_field(config, self.name)
        else:
            value = config.get(self.name, self.default)
        if not isinstance(value, int | float | str | None) or (isinstance(value, bool) and not self.is_flag):
            raise UserError(f"the field {self.name!r} has the value {str(value)[:60]}, expected a number or a name")
        try:
            return self.transform.to_ours(value)
        except (TypeError, ValueError):
            raise UserError(f"the field {self.name!r} has the value {value!r}, which is not supported") from None


def _read_nothing(source: ForeignModel, settings: Settings) -> None:
    pass


def _write_nothing(model: ModelConfig, config: ForeignConfig) -> None:
    pass


@dataclass(frozen=True)
class Rule:
    """Foreign fields and settings of ours that can only be converted together.

    Attributes:
        fields: the foreign fields that `read` looks at.
        read: changes our settings, which hold those of the table's fields already. It may raise UserError.
        write: changes a foreign config, which holds the table's fields already. It may raise UserError.
    """

    fields: tuple[str, ...]
    read: Callable[[ForeignModel, Settings], None] = _read_nothing
    write: Callable[[ModelConfig, ForeignConfig], None] = _write_nothing


SIZE_FIELDS = (
    Field("vocab_size", "vocab"),
    Field("hidden_size", "embed"),
    Field("num_hidden_layers", "layers"),
    Field("num_attention_heads", "heads"),
)
"""The sizes under the names that most model types use."""


@dataclass(frozen=True)
class ConfigTable:
    """The config of a model type.

    Attributes:
        fields: foreign fields that stand for one setting each.
        fixed: settings of ours, by dotted key, that are the same in every such model. `family` is always among them.
        constants: foreign fields that are written with the same value for every such model.
        rules: conversions of several fields, in the order in which they are applied.
        required_values: foreign fields that are not converted, and their values that are supported.
        without_effect: foreign fields that do not change what such models compute, beside `known_fields`.
    """

    fields: tuple[Field, ...]
    fixed: Mapping[str, object]
    constants: Mapping[str, object] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    required_values: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    without_effect: tuple[str, ...] = ()

    def fields_read(self) -> set[str]:
        """Return the names of the foreign fields that `read` looks at."""
        names = {config_field.name for config_field in self.fields if config_field.is_read}
        for rule in self.rules:
            names.update(rule.fields)
        return names

    def read(self, source: ForeignModel) -> Settings:
        """Return the settings of our model, nested.

        Raises:
            UserError: a required field is missing, a value is not supported, or a field is not known.
        """
        check_fields(source.config, self.fields_read().union(self.without_effect), self.required_values)
        values = dict(self.fixed)
        for config_field in self.fields:
            if config_field.is_read:
                value = config_field.read(source.config)
                if config_field.setting in LAYER_SETTINGS and value is not None:
                    check_count(config_field.name, value)
                values[config_field.setting] = value
        for setting, implied_by in IMPLIED_BY.items():
            if setting in values and values[setting] == values.get(implied_by):
                values[setting] = None
        settings = unflatten_names(values)
        for rule in self.rules:
            try:
                rule.read(source, settings)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise UserError(f"a value of {' or '.join(rule.fields)} has the wrong form: {error}") from None
        return settings

    def write(self, model: ModelConfig) -> ForeignConfig:
        """Return the foreign config of our model.

        The result describes the model only if `read` turns it back into the same settings.

        Raises:
            MissingComponent: the model lacks a component that such models have.
            UserError: another setting cannot be written.
        """
        explicit_settings = flatten(model)
        resolved_settings = _settings_to_write(model)
        config: ForeignConfig = {}
        for config_field in self.fields:
            settings = explicit_settings if config_field.writes_null else resolved_settings
            if config_field.setting not in settings:
                raise MissingComponent(config_field.setting)
            config[config_field.name] = config_field.transform.to_foreign(settings[config_field.setting])
        config.update(self.constants)
        for rule in self.rules:
            rule.write(model, config)
        return config


def resolve_settings(model: ModelConfig) -> Settings:
    """Return every setting by dotted key, with the values that nulls stand for filled in."""
    components = {
        "first": _resolve_layers(model, model.first),
        "pattern": _resolve_layers(model, model.pattern),
        "feedforward": model.dense_feedforward,
    }
    settings = flatten(model.model_copy(update=components))
    # A dump of a model has null in the place of sizes that follow from others.
    for name in ("head_dim", "kv_heads", "mlp", "embedding", "decoder_layers"):
        settings[name] = getattr(model, name)
    for name in ("query_key_value_bias", "feedforward_bias"):
        if settings[name] is None:
            settings[name] = model.bias
    if settings["key_bias"] is None:
        settings["key_bias"] = settings["query_key_value_bias"]
    return settings


def _resolve_layers(model: ModelConfig, layers: Sequence[LayerConfig]) -> tuple[LayerConfig, ...]:
    """Return layers with the feed-forwards and the sizes that nulls stand for filled in."""
    resolved = []
    for layer in layers:
        feedforward = model.feedforward_of(layer)
        if isinstance(feedforward, MoE):
            expert = feedforward.expert or model.dense_feedforward
            width = feedforward.mlp or model.mlp
            feedforward = feedforward.model_copy(
                update={"expert": expert, "mlp": width, "dispatch": _resolve_dispatch(feedforward)}
            )
        resolved.append(layer.model_copy(update={"feedforward": feedforward, "mixer": layer.mixer.resolve(model)}))
    return tuple(resolved)


def _resolve_dispatch(moe: MoE) -> Capacity | Dropless:
    """Return the dispatch of tokens to experts; one that has room for all tokens in evaluation is dropless."""
    if isinstance(moe.dispatch, Capacity) and moe.dispatch.is_dropless(moe.router.choices, moe.experts):
        return Dropless()
    return moe.dispatch


def _settings_to_write(model: ModelConfig) -> Settings:
    settings = resolve_settings(model)
    # A foreign field names the activation alone, whether or not the feed-forward has a gate.
    for feedforward in ("mlp", "glu"):
        settings[f"feedforward.{feedforward}.activation"] = model.dense_feedforward.activation
    mixtures = [layer["feedforward"]["moe"] for layer in settings["pattern"] if "moe" in layer["feedforward"]]
    if mixtures and all(mixture == mixtures[0] for mixture in mixtures):
        settings.update(dotted({"moe": mixtures[0]}))
    return settings
