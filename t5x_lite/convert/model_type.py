"""A model type of Hugging Face Transformers: the tables of its config and of its weights."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from t5x_lite.convert.config_table import ConfigTable, ForeignConfig, ForeignModel, Rule, Settings
from t5x_lite.convert.weight_map import WeightMap, WeightTable
from t5x_lite.models.config import ModelConfig, Output
from t5x_lite.models.feedforward.config import GLU
from t5x_lite.models.spec import model_spec

ObjectiveSetting: TypeAlias = str | dict[str, Any] | None
"""The `objective` of a run config: a name, or a name with its settings."""

OUTPUT_MATRIX = "lm_head.weight"
"""The output matrix in decoders and encoder-decoders. Models that store it are untied."""


def _read_tied(source: ForeignModel, settings: Settings) -> None:
    settings["tied"] = OUTPUT_MATRIX not in source.tensor_names


def _write_tied(model: ModelConfig, config: ForeignConfig) -> None:
    config["tie_word_embeddings"] = model.tied


TIED_OUTPUT = Rule(("tie_word_embeddings",), read=_read_tied, write=_write_tied)
"""The stored tensors, not the config, tell whether the output matrix is tied to the token embedding."""


HEAD_PREFIXES = ("lm_head", "cls.", "predictions.", "sop_classifier.", "generator_", "discriminator_")
"""First parts of the names of modules outside the base model; they never have its prefix."""


SOME_OUTPUT_TENSOR = "cls.predictions.bias"
"""A tensor that tells that a model is not the base model alone."""


@dataclass(frozen=True)
class Architecture:
    """A class of Transformers: the base model of a model type with certain outputs.

    Attributes:
        name: the class.
        objective: the objective that such models are trained on; null where one alone cannot be (ELECTRA).
        outputs: what the model predicts.
        settings: further settings of our model that belong to these outputs.
        marker_tensor: a tensor that models of this class alone store; null for the class that is assumed otherwise.
    """

    name: str
    objective: ObjectiveSetting
    outputs: tuple[Output, ...] = ("tokens",)
    settings: Mapping[str, object] = field(default_factory=dict)
    marker_tensor: str | None = None


@dataclass(frozen=True)
class ModelType:
    """A model type of Transformers.

    Attributes:
        name: `model_type` in a config.json.
        architectures: the classes that are read and written; the first has no marker tensor.
        headless: the class of the base model alone, for files without any output; null for models whose output may be
            tied to the embedding, and so be in no tensor.
        config: the table of the config.
        weights: the table of the weights.
        tokenizer_class: the class of the tokenizer where no file names it.
        gated_weights: the table for models with a gated feed-forward, where it differs.
        base_model_prefix: the prefix of the base model's tensors, which files of the base model alone leave out.
        ignored_tensors: regular expressions of tensors that add no information, such as masks.
        unused_tensors: regular expressions of tensors that only some outputs use; they are ignored where the model has
            no place for them, as base models store a pooler that nothing reads.
        copies: tensors that files may store although they equal another one: the tensor, and the other one. Where the
            values differ, the tensor is not ignored.
        renamed_tensors: regular expressions of names in older files, and their replacements.
    """

    name: str
    architectures: tuple[Architecture, ...]
    config: ConfigTable
    weights: WeightTable
    tokenizer_class: str
    headless: Architecture | None = None
    gated_weights: WeightTable | None = None
    base_model_prefix: str = ""
    ignored_tensors: tuple[str, ...] = ()
    unused_tensors: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    renamed_tensors: Mapping[str, str] = field(default_factory=dict)

    def read_settings(self, source: ForeignModel) -> Settings:
        """Return the settings of our model, nested.

        Raises:
            UserError: a required field is missing, or a value is not supported.
        """
        settings = self.config.read(source)
        architecture = self._stored_architecture(source.tensor_names)
        settings["outputs"] = architecture.outputs
        settings.update(architecture.settings)
        return settings

    def write_config(self, model: ModelConfig) -> ForeignConfig:
        """Return the config.json of our model, without its `model_type` and `architectures`.

        Raises:
            UserError: the model lacks a component that such models have.
        """
        return self.config.write(model)

    def build_weight_map(self, model: ModelConfig) -> WeightMap:
        """Return the map of every tensor of the model.

        Raises:
            UserError: the model has arrays that such models lack.
        """
        table = self.weights
        if self.gated_weights is not None and isinstance(model.feedforward, GLU):
            table = self.gated_weights
        return WeightMap(model_spec(model), table)

    def select_architecture(self, model: ModelConfig) -> Architecture:
        """Return the class with the outputs of the model; the first where none has them."""
        if self.headless is not None and not model.outputs:
            return self.headless
        for architecture in self.architectures:
            if set(architecture.outputs) == set(model.outputs):
                return architecture
        return self.architectures[0]

    def _stored_architecture(self, tensor_names: Collection[str]) -> Architecture:
        if self.headless is not None and not any(name.startswith(HEAD_PREFIXES) for name in tensor_names):
            return self.headless
        for architecture in self.architectures:
            if architecture.marker_tensor in tensor_names:
                return architecture
        return self.architectures[0]
