"""A model type of Hugging Face Transformers: the tables of its config and of its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from t5x_lite.convert.classifier import ObjectiveSetting, is_named, read_head, write_labels
from t5x_lite.convert.config_table import ConfigTable, ForeignConfig, ForeignModel, Rule, Settings
from t5x_lite.convert.weight_map import Modules, WeightMap, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig, Output
from t5x_lite.models.head_config import HeadActivation
from t5x_lite.models.spec import model_spec

OUTPUT_MATRIX = "lm_head.weight"
"""The output matrix in decoders and encoder-decoders. Models that store it are untied."""


def tied_output(matrix: str) -> Rule:
    """Return the rule that tells by the stored tensors, not the config, whether the output matrix is the embedding.

    Args:
        matrix: the name of the output matrix.
    """

    def read(source: ForeignModel, settings: Settings) -> None:
        is_stored = matrix in source.tensor_names
        if not is_stored and source.config.get("tie_word_embeddings") is False:
            raise UserError(
                f"tie_word_embeddings=false, and {matrix} is not stored: this is a model without the output that "
                "predicts tokens; import a checkpoint that has it"
            )
        settings["tied"] = not is_stored

    def write(model: ModelConfig, config: ForeignConfig) -> None:
        config["tie_word_embeddings"] = model.tied

    return Rule(("tie_word_embeddings",), read=read, write=write)


TIED_OUTPUT = tied_output(OUTPUT_MATRIX)
"""The rule of models whose output matrix is `lm_head`."""


HEAD_PREFIXES = (
    "lm_head",
    "embed_out",
    "cls.",
    "predictions.",
    "sop_classifier.",
    "generator_",
    "discriminator_",
    "vocab_",
)
"""First parts of the names of modules outside the base model that predict what it was pretrained on."""

NO_TOKEN_OUTPUT = {"output_transform": False, "output_bias": False}
"""Settings of a model whose output, if it has one, is a matrix alone."""
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
        modules: modules that models of this class alone have.
        is_classifier: the model scores the labels of a text (`model.head`). It is known by its name in the config,
            because other heads for tasks store tensors of the same names.
        head_activation: the activation of a classifier's dense layer.
        may_be_tied: the output may be the embedding alone, so that no tensor tells of it; then its name in the config
            does.
    """

    name: str
    objective: ObjectiveSetting
    outputs: tuple[Output, ...] = ("tokens",)
    settings: Mapping[str, object] = field(default_factory=dict)
    marker_tensor: str | None = None
    modules: Modules = field(default_factory=dict)
    is_classifier: bool = False
    head_activation: HeadActivation = "tanh"
    may_be_tied: bool = False

    def with_prefix(self, prefix: str) -> "Architecture":
        """Return the class of another model type whose name begins with `prefix` and ends as this one's."""
        return replace(self, name=prefix + self.name)


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
        select_weights: a function from a model to the table, where it is not the same for all.
        output_matrix: the tensor of an untied output matrix.
        head_prefixes: first parts of the names of modules that predict what the base model was pretrained on.
        base_model_prefix: the prefix of the base model's tensors, which files of the base model alone leave out.
        ignored_tensors: regular expressions of tensors that add no information, such as masks.
        unused_tensors: regular expressions of tensors that only some outputs use; they are ignored where the model has
            no place for them, as base models store a pooler that nothing reads.
        copies: tensors that files may store although they equal another one: the tensor, and the other one. Where the
            values differ, the tensor is not ignored.
        zero_tensors: tensors that add nothing where all of their values are zero; exports leave them out.
        renamed_tensors: regular expressions of names in older files, and their replacements.
        variants: classes that are the same model under another prefix: the prefix in `weights`, and theirs.
    """

    name: str
    architectures: tuple[Architecture, ...]
    config: ConfigTable
    weights: WeightTable
    tokenizer_class: str
    headless: Architecture | None = None
    select_weights: Callable[[ModelConfig], WeightTable] | None = None
    output_matrix: str = OUTPUT_MATRIX
    head_prefixes: tuple[str, ...] = HEAD_PREFIXES
    base_model_prefix: str = ""
    ignored_tensors: tuple[str, ...] = ()
    unused_tensors: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    zero_tensors: tuple[str, ...] = ()
    renamed_tensors: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def read_settings(self, source: ForeignModel) -> Settings:
        """Return the settings of our model, nested.

        Raises:
            UserError: a required field is missing, or a value is not supported.
        """
        settings = self.config.read(source)
        architecture = self._stored_architecture(source)
        settings["outputs"] = architecture.outputs
        settings.update(architecture.settings)
        if architecture.is_classifier:
            settings["head"] = read_head(source.config, architecture.head_activation)
        return settings

    def write_config(self, model: ModelConfig) -> ForeignConfig:
        """Return the config.json of our model, without its `model_type`; labels have numbers for names.

        Raises:
            UserError: the model lacks a component that such models have.
        """
        config = self.config.write(model)
        architecture = self.select_architecture(model)
        config["architectures"] = [architecture.name]
        if architecture.is_classifier and model.head is not None:
            config.update(write_labels(model.head.outputs))
        return config

    def build_weight_map(self, model: ModelConfig) -> WeightMap:
        """Return the map of every tensor of the model.

        Raises:
            UserError: the model has arrays that such models lack.
        """
        table = self.weights
        if self.select_weights is not None:
            table = self.select_weights(model)
        modules = {**table.modules, **self.select_architecture(model).modules}
        return WeightMap(model_spec(model), replace(table, modules=modules))

    def select_architecture(self, model: ModelConfig) -> Architecture:
        """Return the class with the outputs of the model; the first where none has them."""
        if model.head is not None and model.head.outputs:
            for architecture in self.architectures:
                if architecture.is_classifier:
                    return architecture
            return self.architectures[0]
        if self.headless is not None and not model.outputs:
            return self.headless
        for architecture in self.architectures:
            if set(architecture.outputs) == set(model.outputs):
                return architecture
        return self.architectures[0]

    def _stored_architecture(self, source: ForeignModel) -> Architecture:
        names = source.tensor_names
        for architecture in self.architectures:
            is_stored = architecture.marker_tensor in names
            if is_stored and (not architecture.is_classifier or is_named(architecture.name, source.config)):
                return architecture
            if architecture.may_be_tied and is_named(architecture.name, source.config):
                return architecture
        if self.headless is not None and not any(name.startswith(self.head_prefixes) for name in names):
            return self.headless
        return self.architectures[0]
