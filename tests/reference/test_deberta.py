"""DeBERTa beyond what all model types have in common: buckets, released files, and the loss of DeBERTa-v3's pair."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

import t5x_lite
from t5x_lite.convert.deberta import DEBERTA_V2
from t5x_lite.convert.huggingface import export_hf, import_hf
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.gather_positions import gather_positions
from t5x_lite.models.losses import LossSettings
from t5x_lite.models.positions.disentangled import distance_rows
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives.replaced_token import ReplacedToken
from t5x_lite.trees import flatten_names
from tests.models.test_electra import VOCAB, make_batch
from tests.models.weights import random_model
from tests.reference.tiny_models import DEBERTA_V3, build_encoder

WEIGHTS_FILE = "model.safetensors"
TOKENS = np.random.default_rng(0).integers(5, 90, (2, 9))


@pytest.mark.parametrize(("distance", "buckets"), [(512, 256), (128, 32), (20, 8), (512, 0)])
def test_rows_of_distances_are_those_of_transformers(distance: int, buckets: int) -> None:
    """Distances up to k, all of which a longer one equals, are looked up as in its code."""
    distances = torch.arange(-2 * distance, 2 * distance + 1)
    places = distances
    if buckets:
        places = make_log_bucket_position(distances, buckets, distance).long()
    count = buckets or distance
    expected = torch.clamp(places + count, 0, 2 * count - 1).numpy()
    ours = distance_rows(distance, buckets)[np.clip(distances.numpy(), -distance, distance) + distance]
    np.testing.assert_array_equal(ours, expected)


def save_tiny_model(folder: Path, **settings: object) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = build_encoder("DebertaV2", "MaskedLM", **{**DEBERTA_V3, **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
def test_legacy_names_of_the_token_output_are_read(tmp_path: Path) -> None:
    theirs = save_tiny_model(tmp_path / "theirs", legacy=True)
    import_hf(tmp_path / "theirs", tmp_path / "run")
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(t5x_lite.load(tmp_path / "run").logits(TOKENS), expected, atol=1e-4)
    export_hf(tmp_path / "run", tmp_path / "out")
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.tensor(TOKENS)).logits.numpy(), expected, atol=1e-5)


def released_files(folder: Path) -> dict[str, np.ndarray]:
    """Write files as DeBERTa-v3's: the encoder, an unused output, and that of replaced tokens; return the last one."""
    save_tiny_model(folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    rng = np.random.default_rng(1)
    shapes = {"LayerNorm.weight": (32,), "LayerNorm.bias": (32,), "dense.weight": (32, 32), "dense.bias": (32,)}
    shapes |= {"classifier.weight": (1, 32), "classifier.bias": (1,)}
    output = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors.update({f"mask_predictions.{name}": values for name, values in output.items()})
    tensors["deberta.embeddings.position_embeddings.weight"] = np.zeros((16, 32), np.float32)
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for name in ("architectures", "legacy", "pooler_hidden_act", "pooler_dropout", "pooler_hidden_size"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps({**config, "pos_att_type": "p2c|c2p"}))
    return output


@pytest.mark.slow
def test_the_released_discriminator_detects_replaced_tokens(tmp_path: Path) -> None:
    """The authors' LMMaskPredictionHead on the states of Transformers' encoder."""
    output = {name: torch.tensor(values) for name, values in released_files(tmp_path / "theirs").items()}
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "theirs").eval()
    with torch.no_grad():
        states = theirs(torch.tensor(TOKENS)).last_hidden_state
        expected = detection_scores(states, output).numpy()
    import_hf(tmp_path / "theirs", tmp_path / "run")
    np.testing.assert_allclose(t5x_lite.load(tmp_path / "run").logits(TOKENS), expected, atol=1e-4)


def detection_scores(states: "torch.Tensor", output: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    """Return the score of each token from the norm of its state plus the first one, a dense layer and GELU."""
    norm = (output["LayerNorm.weight"], output["LayerNorm.bias"])
    sums = torch.nn.functional.layer_norm(states + states[:, :1], states.shape[-1:], *norm, eps=1e-7)
    hidden = torch.nn.functional.gelu(sums @ output["dense.weight"].T + output["dense.bias"])
    return (hidden @ output["classifier.weight"].T + output["classifier.bias"])[..., 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_kernel_size": 3}, "conv_kernel_size=3 is not supported: DeBERTa-v2 XLarge's convolution"),
        ({"position_biased_input": True}, "position_biased_input=True is not supported (only false)"),
        ({"relative_attention": False}, "relative_attention=False is not supported (only true)"),
        ({"pos_att_type": ["p2p"]}, "pos_att_type=['p2p'] is not supported (only c2p, p2c, or both)"),
        ({"embedding_size": 16}, "embedding_size=16 is not supported (only 32)"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd=batch_norm is not supported (only none or layer_norm)"),
        ({"pooler_hidden_act": "tanh"}, "pooler_hidden_act=tanh is not supported (only gelu)"),
    ],
)
def test_what_is_not_read_is_refused_by_name(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    config = {**transformers.DebertaV2Config(hidden_size=32, **DEBERTA_V3).to_dict(), "model_type": "deberta-v2"}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96, **settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"deberta.embeddings.LayerNorm.weight": np.ones(32, np.float32)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(UserError) as raised:
        import_hf(tmp_path, tmp_path / "run")
    assert message in str(raised.value)


PAIR = {
    "family": "electra",
    "layers": 2,
    "embed": 16,
    "heads": 2,
    "vocab": VOCAB,
    "outputs": ["detection"],
    "detection_context": True,
    "generator": {"layers": 1, "embed": 16, "heads": 2, "embedding_sharing": "gradient_disentangled"},
    "positions": {"disentangled": {"distance": 16, "buckets": 4, "shared_projections": True, "norm": True}},
    "norm": {"layernorm": {"epsilon": 1e-7}},
    "norm_place": "post",
    "embedding_norm": True,
    "feedforward": {"mlp": {"activation": "gelu"}},
}
WEIGHT = 50.0
SHARED_TABLE = "discriminator.tokens.other.weight"
DIFFERENCE = "discriminator.tokens.weight"


def select(weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def torch_weights(model: ModelConfig, arrays: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
    """Return the weights of an encoder by the names of Transformers."""
    mappings = DEBERTA_V2.build_weight_map(model).mappings
    return {mapping.tensor: torch.tensor(mapping.to_foreign(arrays.__getitem__).copy()) for mapping in mappings}


def torch_loss_and_gradients(
    config: ModelConfig, weights: Mapping[str, np.ndarray], batch: Mapping[str, "torch.Tensor"]
) -> tuple[float, dict[str, "torch.Tensor"]]:
    """Return L_MLM + λ L_RTD, where the discriminator's table is sg(E_G) + E_Δ, and gradients by our names."""
    generator_weights = {**select(weights, "generator."), "tokens.weight": weights[SHARED_TABLE]}
    generator_config = transformers.DebertaV2Config(**DEBERTA_V2.write_config(config.generator_model))
    generator = transformers.DebertaV2ForMaskedLM(generator_config).eval()
    generator.load_state_dict(torch_weights(config.generator_model, generator_weights))
    tensors = torch_weights(config.discriminator_model, select(weights, "discriminator."))
    discriminator_config = transformers.DebertaV2Config(**DEBERTA_V2.write_config(config.discriminator_model))
    discriminator = transformers.DebertaV2Model(discriminator_config).eval()
    discriminator.load_state_dict(select(tensors, "deberta."))
    output = {name: value.requires_grad_() for name, value in select(tensors, "mask_predictions.").items()}
    shared = generator.deberta.embeddings.word_embeddings.weight
    difference = discriminator.embeddings.word_embeddings.weight

    labels = torch.full(batch["tokens"].shape, -100).scatter(
        1, batch["target_positions"].long(), batch["targets"].long()
    )
    masked_loss = generator(batch["tokens"], labels=labels).loss
    embedded = torch.nn.functional.embedding(batch["replaced"], shared.detach() + difference)
    states = discriminator(inputs_embeds=embedded, attention_mask=batch["segment_ids"]).last_hidden_state
    is_replaced = (batch["replaced"] != batch["unmasked"]).float()
    detection_loss = torch.nn.functional.binary_cross_entropy_with_logits(detection_scores(states, output), is_replaced)
    total = masked_loss + WEIGHT * detection_loss
    total.backward()
    gradients = {
        SHARED_TABLE: shared.grad,
        DIFFERENCE: difference.grad,
        "discriminator.detection.transform.weight": output["dense.weight"].grad.T,
        "discriminator.encoder.stack.positions.table.weight": discriminator.encoder.rel_embeddings.weight.grad,
        "generator.encoder.stack.positions.table.weight": generator.deberta.encoder.rel_embeddings.weight.grad,
        "generator.output.bias": generator.lm_predictions.lm_head.bias.grad,
    }
    return total.item(), gradients


@pytest.mark.slow
def test_the_loss_of_the_pair_and_its_gradients_are_those_of_a_composition_in_torch() -> None:
    """He et al. 2023, equations 5 to 7, on the tokens that our generator draws."""
    config = ModelConfig.model_validate(PAIR)
    module = random_model(config)
    params = nnx.to_pure_dict(nnx.state(module))
    batch = make_batch()
    positions = batch["target_positions"]
    states = gather_positions(module.generator(batch["tokens"]), positions)
    replaced = module.replace_tokens(batch["unmasked"], positions, batch["loss_weights"], states, None)
    assert (replaced != batch["unmasked"]).any()
    spec = model_spec(config)

    def compute_loss(params: dict) -> jax.Array:
        terms = ReplacedToken(weight=WEIGHT).loss(spec.model(params), batch, None, LossSettings(VOCAB))
        return sum(term.total / term.weight for term in terms.values())

    loss, gradients = jax.jit(jax.value_and_grad(compute_loss))(params)
    weights = {name: np.asarray(value) for name, value in flatten_names(params).items()}
    torch_batch = {name: torch.tensor(np.asarray(values)) for name, values in {**batch, "replaced": replaced}.items()}
    expected_loss, expected = torch_loss_and_gradients(config, weights, torch_batch)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    ours = flatten_names(gradients)
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        np.testing.assert_allclose(ours[name], gradient.numpy(), atol=1e-4 * largest, err_msg=name)
