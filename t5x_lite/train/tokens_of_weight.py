"""Tokens that are multiplied with each weight, by its name: FLOPs and activations are counted from them."""

from t5x_lite.adapt import reference, two_towers
from t5x_lite.models.character_config import CharacterCNN
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_path import depth_of_stack, parse_layer_path
from t5x_lite.objectives.objective import ExampleLengths

SECOND_MODELS = (reference.PREFIX, two_towers.PREFIX)
"""Beginnings of the names of weights of a second model: a text passes the encoder of queries or that of passages, and
the forward pass of a reference is counted by `step_flops_per_example`."""


def tokens_of_weight(model: ModelConfig, name: str, lengths: ExampleLengths) -> int:
    """Return how many tokens of a text are multiplied with a weight, each time that it is used."""
    if name.startswith(SECOND_MODELS):
        return 0
    if name == "discriminator.tokens.weight" and _has_other_output_table(model):
        return 0
    name = name.removeprefix("generator.").removeprefix("discriminator.")
    if name.startswith("head."):
        reads_tokens = name.startswith("head.mixer.") or (model.head is not None and model.head.pool == "none")
        return lengths.tokens if reads_tokens else 1
    if name.startswith("sentence."):
        return 1
    if name.startswith("tokens.") and model.characters is not None:
        return lengths.tokens * _places_of_filters(model.characters, name)
    if name.startswith(("output.", "neighbours.", "tokens.", "decoder_tokens.", "span.")):
        return lengths.predicted
    is_encoder = not name.startswith("decoder.") or model.family == "decoder"
    reads_encoder = ".cross_attention.key." in name or ".cross_attention.value." in name
    if is_encoder or reads_encoder:
        tokens = lengths.tokens
        if ".attention.key." not in name and ".attention.value." not in name:
            tokens += lengths.query_stream
        return tokens
    tokens = lengths.targets
    if model.shared_stacks and ".cross_" not in name:
        tokens += lengths.tokens
    return tokens


def uses_of_weight(model: ModelConfig, name: str) -> int:
    """Return how many layers use a weight: more than one if layers share their weights."""
    if not model.shared_layers or parse_layer_path(name) is None:
        return 1
    return model.count_repeats(depth_of_stack(model, name)) // model.shared_groups


def _places_of_filters(characters: CharacterCNN, name: str) -> int:
    """Return how many places of a token's characters are multiplied with a weight; 1 if it is no filter's."""
    if ".filters." not in name:
        return 1
    taps = int(name.split(".")[2])
    return characters.length - taps + 1


def _has_other_output_table(model: ModelConfig) -> bool:
    """Return whether ELECTRA's generator predicts tokens by another table than the discriminator's."""
    return model.generator is not None and model.generator.embedding_sharing != "shared"
