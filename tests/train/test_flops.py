"""The analytic FLOPs: against every matrix product of the traced step, forward and backward, and by hand."""

from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.adapt.two_towers import TwoTowers
from t5x_lite.config import RunConfig
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives import Choice, Classify, Reward, Similarity
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.objectives.supervised import Supervised
from t5x_lite.planner.example import example_context
from t5x_lite.train.flops import flops_per_example, quantized_flops_per_example
from t5x_lite.train.step_flops import step_flops_per_example
from tests.product_flops import count_product_flops, trace_gradient

ROWS = 2
SIZES = {"layers": 2, "embed": 64, "heads": 4, "vocab": 256}
EXPERTS = {"moe": {"experts": 4, "router": {"top_k": {"k": 2}}, "dispatch": {"capacity": {"factor": 1.0}}}}
CAUSAL_SHARE = 10 / 16
"""Share of a causal square of 256 that is computed in steps of 64 queries: 1 + 2 + 3 + 4 blocks of 16."""
WHOLE_SQUARE = 1.0
"""Attention in both directions, and causal attention of a row that is too short for steps, compute all of it."""


@pytest.mark.parametrize(
    ("model", "objective", "share_of_square"),
    [
        ({}, "causal", CAUSAL_SHARE),
        ({"kv_heads": 2, "tied": False, "feedforward": "glu", "positions": "rotary"}, "causal", CAUSAL_SHARE),
        ({"family": "encoder", "output_transform": True}, "masked", WHOLE_SQUARE),
        (
            {"family": "encoder_decoder", "decoder_layers": 4, "positions": "rotary"},
            "span_corruption",
            WHOLE_SQUARE,
        ),
        (
            {"family": "encoder_decoder", "decoder_embedding": "separate", "positions": "rotary"},
            "span_corruption",
            WHOLE_SQUARE,
        ),
        (
            {
                "family": "electra",
                "outputs": ["detection"],
                "shared_layers": True,
                "generator": {"layers": 6, "embed": 64, "heads": 4},
            },
            "replaced_token",
            WHOLE_SQUARE,
        ),
        ({"attention_output_gate": True, "kv_heads": 2}, "causal", CAUSAL_SHARE),
        ({"pattern": [{"feedforward": "dense"}, {"feedforward": EXPERTS}]}, "causal", CAUSAL_SHARE),
        ({"pattern": [{"attention": {"local": {"window": 16}}}]}, "causal", None),
        ({"pattern": [{"mixer": {"lstm": {"hidden": [48], "projection": 64}}}, {}]}, "causal", CAUSAL_SHARE),
        ({"pattern": [{"mixer": {"gru": {"bidirectional": True}}}], "family": "encoder"}, "masked", WHOLE_SQUARE),
        ({"pattern": [{"mixer": "rnn"}], "feedforward": "none"}, "causal", WHOLE_SQUARE),
        ({"pattern": [{"mixer": {"rg_lru": {"width": 96}}}, {}]}, "causal", CAUSAL_SHARE),
        ({"pattern": [{"mixer": {"mamba2": {"head_dim": 16, "state": 16, "chunk": 32}}}]}, "causal", None),
        ({"pattern": [{"mixer": {"gated_deltanet": {"key_dim": 16, "chunk": 32}}}]}, "causal", None),
    ],
    ids=[
        *(
            "dense",
            "gated-grouped",
            "encoder",
            "encoder-decoder",
            "two-tables",
            "shared-generator",
            "output-gate",
            "experts",
            "band",
        ),
        *("lstm", "gru", "rnn", "rg_lru", "mamba2", "gated_deltanet"),
    ],
)
def test_flops_equal_those_of_the_matrix_products(
    model: dict[str, object], objective: str, share_of_square: float | None
) -> None:
    """Equal but for the small products of routers and heads.

    The program of a band or of chunks (None) computes whole blocks, and so more pairs than a query may read.
    """
    config = RunConfig.model_validate(
        {
            "model": {**SIZES, **model},
            "objective": objective,
            "train": {"steps": 1, "batch_size": ROWS, "seq_len": 256, "loss_chunks": 1},
        }
    )
    product_flops = count_product_flops(trace_gradient(config, ROWS))
    spec = model_spec(config.model)
    lengths = config.require_objective().example_lengths(example_context(config.model, config.train.seq_len))
    flops_of_all_pairs = ROWS * flops_per_example(config.model, spec, lengths, causal_half=False)
    flops = ROWS * flops_per_example(config.model, spec, lengths)
    if share_of_square is None:
        assert flops < product_flops < 1.6 * flops
    else:
        # Between half of a causal square, which `flops` counts, and all of it.
        share_of_other_half = 2 * share_of_square - 1
        expected = flops + share_of_other_half * (flops_of_all_pairs - flops)
        assert product_flops == pytest.approx(expected, rel=0.01)


def test_flops_of_a_state_space_by_hand() -> None:
    """Half of each chunk's scores and of their products with values; the state is written and read once a token."""
    mixer = {"mamba2": {"expand": 2, "head_dim": 16, "state": 8, "groups": 2, "chunk": 32, "taps": 4}}
    config = ModelConfig.model_validate({**SIZES, "layers": 1, "feedforward": "none", "pattern": [{"mixer": mixer}]})
    channels = 128
    matrices = 64 * (2 * channels + 2 * 2 * 8 + 8) + channels * 64 + 256 * 64
    scores_and_values = 2 * (32 / 2) * (2 * 8 + channels)
    states = 2 * (2 * channels * 8)
    filters = 2 * 4 * (channels + 2 * 2 * 8)
    flops = flops_per_example(config, model_spec(config), ExampleLengths(1024, 1024))
    assert flops == 1024 * (6 * matrices + 3 * (scores_and_values + states + filters))


def test_flops_of_a_gated_delta_rule_by_hand() -> None:
    """Half of each chunk's products of queries and keys, of keys, and of its triangular systems; three of the state."""
    mixer = {"gated_deltanet": {"heads": 4, "key_heads": 2, "key_dim": 16, "value_dim": 32, "chunk": 64, "taps": 4}}
    config = ModelConfig.model_validate({**SIZES, "layers": 1, "feedforward": "none", "pattern": [{"mixer": mixer}]})
    matrices = 64 * (2 * 2 * 16 + 2 * 4 * 32 + 2 * 4) + 4 * 32 * 64 + 256 * 64
    scores = 2 * (64 / 2) * 2 * 2 * 16
    systems = 2 * (64 / 2) * 4 * (16 + 32)
    values = 2 * (64 / 2) * 4 * 32
    states = 2 * 3 * 4 * 16 * 32
    filters = 2 * 4 * (2 * 2 * 16 + 4 * 32)
    flops = flops_per_example(config, model_spec(config), ExampleLengths(1024, 1024))
    assert flops == 1024 * (6 * matrices + 3 * (scores + systems + values + states + filters))


def test_each_stack_counts_the_recurrences_of_its_mixer() -> None:
    """Chunks of 64 instead of 32 tokens: 32 / 2 pairs more for each target, none for each input."""
    flops = []
    for chunk in (32, 64):
        mixer = {"mamba2": {"expand": 2, "head_dim": 16, "state": 8, "groups": 2, "chunk": chunk}}
        model = ModelConfig.model_validate({**SIZES, "family": "encoder_decoder", "decoder_mixer": mixer})
        flops.append(flops_per_example(model, model_spec(model), ExampleLengths(1024, 128, targets=128)))
    layers, targets, channels = 2, 128, 128
    assert flops[1] - flops[0] == 3 * layers * targets * 2 * (32 / 2) * (2 * 8 + channels)


def test_an_example_of_several_texts_has_the_flops_of_all_of_them() -> None:
    """Each of four choices passes the encoder, and each text of a pair; all have one score of the same head."""
    config = ModelConfig.model_validate({**SIZES, "family": "encoder", "head": {"outputs": 1}})
    spec = model_spec(config)
    context = example_context(config, 128)

    def flops(objective: Supervised) -> float:
        return flops_per_example(config, spec, objective.example_lengths(context))

    flops_of_one_text = flops(Classify(labels=("no", "yes")))
    assert flops(Choice(count=4)) == 4 * flops_of_one_text
    assert flops(Reward()) == flops(Similarity(by="cosine")) == 2 * flops_of_one_text


def test_flops_of_gpt2_by_hand() -> None:
    """PaLM, appendix B: 6N and 12·L·H·Q·T a token, attention counted half because it is causal."""
    config = ModelConfig.model_validate({"layers": 12, "embed": 768, "heads": 12, "vocab": 50257})
    weights = 12 * 12 * 768**2 + 50257 * 768
    flops = flops_per_example(config, model_spec(config), ExampleLengths(1024, 1024))
    assert flops == 1024 * (6 * weights + 6 * 12 * 12 * 64 * 1024)


def test_frozen_weights_have_no_gradients(tiny_config: Path, tiny_run: Path) -> None:
    """Each of the matrices' weights counts 4 instead of 6 for a token; BitFit trains none of them."""
    settings = ["model.tied=true", "model.bias=true", f"adapt.from={tiny_run}"]
    flops = {}
    for method in ("full", "bitfit"):
        config = configuration.load(tiny_config, [*settings, f"adapt.method={method}", "model.vocab=300"])
        flops[method] = step_flops_per_example(config, model_spec(config.model), ExampleLengths(16, 16))
    model = config.model
    weights = model.layers * (4 * model.embed**2 + 2 * model.embed * model.mlp) + 300 * model.embed
    assert flops["full"] - flops["bitfit"] == 16 * 2 * weights


def test_a_text_of_two_towers_passes_one_of_them() -> None:
    config = ModelConfig.model_validate({**SIZES, "family": "encoder", "head": {"outputs": 0}})
    lengths = ExampleLengths(128, 1, texts=3)
    towers = model_spec(config, TwoTowers().surgery)
    assert towers.parameters > 1.9 * model_spec(config).parameters
    assert flops_per_example(config, towers, lengths) == flops_per_example(config, model_spec(config), lengths)


def test_every_pass_over_sampled_answers_counts(tiny_config: Path, tiny_run: Path) -> None:
    """Forward and backward `epochs` times, and once the forward passes, a third each, of policy and reference."""
    flops = {}
    for epochs in (1, 3):
        grpo = f"objective={{grpo: {{verifier: exact_match, group: 4, answer_len: 6, epochs: {epochs}}}}}"
        adapted = [f"adapt.from={tiny_run}", "adapt.method=reference"]
        settings = [grpo, *adapted, "tasks=verified", "model.vocab=300"]
        config = configuration.load(tiny_config, settings)
        lengths = ExampleLengths(16, 16, texts=4)
        spec = model_spec(config.model, config.method.surgery)
        flops[epochs] = step_flops_per_example(config, spec, lengths)
    flops_of_model = flops_per_example(config.model, model_spec(config.model), lengths)
    assert flops == {epochs: pytest.approx((epochs + 2 / 3) * flops_of_model) for epochs in (1, 3)}


def test_flops_of_t5_by_hand() -> None:
    """Encoder weights see the inputs, decoder weights the targets; cross-attention's keys and values the inputs."""
    config = ModelConfig.model_validate(
        {
            "family": "encoder_decoder",
            "layers": 2,
            "embed": 8,
            "heads": 2,
            "mlp": 16,
            "vocab": 32,
            "positions": "relative",
        }
    )
    attention = 4 * 8 * 8
    mlp = 2 * 8 * 16
    inputs = 20
    targets = 6
    weight_uses = inputs * 2 * (attention + mlp) + targets * 2 * (attention + mlp) + 2 * 2 * 64 * (inputs + targets)
    query_key_pairs = 2 * (inputs**2 + targets**2 / 2 + inputs * targets)
    flops = flops_per_example(config, model_spec(config), ExampleLengths(inputs, targets, targets))
    assert flops == 6 * weight_uses + 6 * 32 * 8 * targets + 12 * 8 * query_key_pairs


@pytest.mark.parametrize(
    "settings", [{"shared_groups": 1}, {"shared_groups": 2}, {"family": "encoder_decoder", "decoder_layers": 6}]
)
def test_flops_of_shared_layers_count_every_pass(settings: dict[str, object]) -> None:
    sizes = {"layers": 4, "embed": 8, "heads": 2, "vocab": 32}
    shared = ModelConfig.model_validate(sizes | settings | {"shared_layers": True})
    separate = ModelConfig.model_validate(sizes | settings | {"shared_layers": False, "shared_groups": 1})
    lengths = ExampleLengths(16, 16, 16)
    assert model_spec(shared).parameters < model_spec(separate).parameters
    assert flops_per_example(shared, model_spec(shared), lengths) == flops_per_example(
        separate, model_spec(separate), lengths
    )


def test_a_head_on_every_token_counts_all_of_them() -> None:
    """An encoder of width 8 with 9 scores of each of 16 tokens, or of one."""
    settings = {"family": "encoder", "layers": 1, "embed": 8, "heads": 2, "vocab": 32, "outputs": []}
    flops = {}
    for pool in ("first", "none"):
        config = ModelConfig.model_validate(settings | {"head": {"outputs": 9, "pool": pool}})
        flops[pool] = flops_per_example(config, model_spec(config), ExampleLengths(16, 1))
    assert flops["none"] - flops["first"] == 6 * 8 * 9 * 15


def test_the_hidden_matrix_of_cells_keeps_its_type() -> None:
    """Of an LSTM's products those with the input alone are of linear maps: 4 gates of 8 cells, of a width of 8."""
    settings = {"layers": 1, "embed": 8, "heads": 2, "vocab": 32, "positions": "none", "feedforward": "none"}
    config = ModelConfig.model_validate(settings | {"pattern": [{"mixer": {"lstm": {"hidden": [8]}}}]})
    flops = quantized_flops_per_example(config, model_spec(config), ExampleLengths(16, 16))
    assert flops == 6 * 16 * 8 * 4 * 8


def test_flops_of_transformer_xl_by_hand() -> None:
    """A memory of 12 tokens before 8: keys and values of 12 more, and 12 · 8 pairs more than the half square.

    Each pair has a product with the distance beside those with key and value. W R is computed once for a batch.
    """
    attention = {"attention": {"memory": 12}}
    settings = {**SIZES, "positions": "transformer_xl", "bias": False, "pattern": [{"mixer": attention}]}
    model = ModelConfig.model_validate(settings)
    tokens, memory, embed, layers = 8, 12, 64, 2
    matrices = 6 * tokens * (layers * (4 * embed**2 + 2 * 4 * embed**2) + 256 * embed)
    of_memory = layers * 4 * memory * 2 * embed**2
    pairs = layers * (tokens**2 / 2 + tokens * memory) * 6 * 3 * embed
    expected = matrices + of_memory + pairs
    assert flops_per_example(model, model_spec(model), ExampleLengths(tokens, tokens)) == pytest.approx(expected)


def test_flops_of_two_streams_by_hand() -> None:
    """The query stream of 3 tokens passes all matrices but those of keys and values, and has 3 · 18 pairs more."""
    positions = {"transformer_xl": {"segments": True}}
    settings = {**SIZES, "family": "encoder", "positions": positions, "bias": False, "query_stream": True}
    model = ModelConfig.model_validate(settings)
    tokens, predicted, embed, layers = 18, 3, 64, 2
    of_content = 6 * tokens * layers * 12 * embed**2
    of_queries = 6 * predicted * layers * 10 * embed**2
    of_output = 6 * predicted * 256 * embed
    pairs = layers * (tokens + predicted) * tokens * 6 * 3 * embed
    expected = of_content + of_queries + of_output + pairs
    lengths = ExampleLengths(tokens, predicted, query_stream=predicted)
    assert flops_per_example(model, model_spec(model), lengths) == pytest.approx(expected)


def test_flops_of_disentangled_attention_by_hand() -> None:
    """Each pair has two products with the vectors of its distance; these are projected once for a batch."""
    model = ModelConfig.model_validate({**SIZES, "family": "encoder", "positions": {"disentangled": {"distance": 16}}})
    tokens, predicted, embed, layers = 8, 3, 64, 2
    matrices = 6 * (tokens * layers * (4 * embed**2 + 2 * 4 * embed**2) + predicted * 256 * embed)
    pairs = layers * tokens**2 * 6 * 4 * embed
    lengths = ExampleLengths(tokens, predicted)
    assert flops_per_example(model, model_spec(model), lengths) == pytest.approx(matrices + pairs)


def test_a_table_that_no_output_multiplies_adds_no_flops() -> None:
    """The difference of the discriminator's embeddings from the generator's, and a table of its own."""
    flops = set()
    for sharing in ("shared", "separate", "gradient_disentangled"):
        generator = {"layers": 1, "embed": 64, "heads": 4, "embedding_sharing": sharing}
        model = ModelConfig.model_validate(
            {**SIZES, "family": "electra", "outputs": ["detection"], "generator": generator}
        )
        flops.add(flops_per_example(model, model_spec(model), ExampleLengths(8, 3)))
    assert len(flops) == 1


def test_filters_over_characters_are_multiplied_at_each_of_their_places() -> None:
    """By hand, 6 for each weight of a matrix: of 10 characters, 10 places of one and 9 of two."""
    lstm = {"lstm": {"projection": 8, "bidirectional": True, "separate_directions": True}}
    values = {
        "family": "encoder",
        "layers": 1,
        "embed": 16,
        "embedding": 8,
        "heads": 1,
        "vocab": 20,
        "token_copies": 2,
        "characters": {"filters": [3, 5], "width": 4, "highways": 2, "length": 10},
        "positions": "none",
        "norm": "none",
        "feedforward": "none",
        "outputs": ["neighbours"],
        "tied": False,
        "pattern": [{"mixer": lstm}],
    }
    model = ModelConfig.model_validate(values)
    filters = 10 * 4 * 3 + 9 * 2 * 4 * 5
    highways = 2 * 8 * 2 * 8
    lstms = 2 * (2 * 8 * 4 * 8 + 8 * 8)
    per_token = filters + highways + 8 * 8 + lstms
    tokens = 7
    output = 2 * tokens * 8 * 20
    lengths = ExampleLengths(tokens, 2 * tokens)
    assert flops_per_example(model, model_spec(model), lengths) == 6 * (tokens * per_token + output)
