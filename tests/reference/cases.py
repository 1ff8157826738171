"""Tiny models of Hugging Face Transformers with random weights, and the same computation there and here.

Used by the tests beside this file and by `tools/parity.sh`, which prints the differences.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.checkpoint import flatten_names
from t5x_lite.convert import FAMILIES
from t5x_lite.convert.huggingface import import_hf
from t5x_lite.models.config import START
from t5x_lite.models.losses import LossSettings, binary_cross_entropy
from t5x_lite.objectives.causal import Causal
from t5x_lite.objectives.features import positions_in
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.span_corruption import SpanCorruption

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCAB, LENGTH, TARGETS = 96, 20, 9
REAL = (20, 13, 7)
"""Tokens of each row that are not padding."""
IGNORED = -100

Arrays = dict[str, np.ndarray]


def _sizes(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    } | more


def _t5(**more: Any) -> Any:
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3}
    sizes |= {"decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**(sizes | more)))


def _t5_untied() -> Any:
    model = _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=3)
    # Transformers 5.23 leaves the output tied to the embedding whatever the config says.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, 32) * 0.1)
    return model


def _encoder(kind: str, head: str, **more: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(**_sizes(max_position_embeddings=40, **more))
    return getattr(transformers, f"{kind}For{head}")(config)


def _decoder(kind: str, **more: Any) -> Any:
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**more))


def _llama(kind: str, **more: Any) -> Any:
    return _decoder(kind, **_sizes(num_key_value_heads=2, **more))


STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _switch(**more: Any) -> Any:
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 3}
    sizes |= {"num_decoder_layers": 2, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1}
    sizes |= {"decoder_start_token_id": 0, "num_experts": 4, "expert_capacity": 6}
    return transformers.SwitchTransformersForConditionalGeneration(
        transformers.SwitchTransformersConfig(**(sizes | more))
    )


CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "T5 v1.0": ("span_corruption", _t5),
    "T5 v1.1": ("span_corruption", _t5_untied),
    "Switch": ("span_corruption", _switch),
    "Switch, room for all": ("span_corruption", lambda: _switch(expert_capacity=100)),
    "BERT": ("masked, next sentence", lambda: _encoder("Bert", "PreTraining")),
    "BERT, MLM alone": ("masked", lambda: _encoder("Bert", "MaskedLM")),
    "RoBERTa": ("masked", lambda: _encoder("Roberta", "MaskedLM", type_vocab_size=1)),
    "ALBERT": ("masked, sentence order", lambda: _encoder("Albert", "PreTraining", embedding_size=16)),
    "ELECTRA generator": ("masked", lambda: _encoder("Electra", "MaskedLM", embedding_size=16)),
    "ELECTRA": ("replaced_token", lambda: _encoder("Electra", "PreTraining", embedding_size=16)),
    "GPT-2": (
        "causal",
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=80)
        ),
    ),
    "GPT-Neo": (
        "causal",
        lambda: _decoder(
            "GPTNeo",
            vocab_size=VOCAB,
            hidden_size=32,
            num_layers=4,
            num_heads=4,
            attention_types=[[["global", "local"], 2]],
            window_size=4,
            max_position_embeddings=40,
        ),
    ),
    "OPT": (
        "causal",
        lambda: _decoder(
            "OPT",
            vocab_size=VOCAB,
            hidden_size=32,
            word_embed_proj_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            max_position_embeddings=40,
        ),
    ),
    "Llama 2": ("causal", lambda: _llama("Llama")),
    "Llama 3.1": ("causal", lambda: _llama("Llama", rope_parameters=STRETCHED)),
    "Mistral": ("causal", lambda: _llama("Mistral", sliding_window=4)),
    "Mixtral": ("causal", lambda: _llama("Mixtral", num_local_experts=4)),
    "OLMo 2": ("causal", lambda: _llama("Olmo2")),
}


@dataclass(frozen=True)
class Case:
    """One model there and here; `folder` holds it as Transformers saved it, `run` as it was imported."""

    name: str
    objective: str
    theirs: Any
    folder: Path
    run: Path

    @cached_property
    def ours(self) -> Model:
        """The imported model, without dropout."""
        return t5x_lite.load(self.run, overrides=["model.dropout=0"])

    @cached_property
    def batch(self) -> Arrays:
        """Tokens with padding at the end, and labels of every kind."""
        rng = np.random.default_rng(1)
        mask = (np.arange(LENGTH) < np.array(REAL)[:, None]).astype(np.int64)
        tokens = np.where(mask > 0, rng.integers(5, VOCAB, mask.shape), self.theirs.config.pad_token_id or 0)
        targets = rng.integers(5, VOCAB, (len(REAL), TARGETS))
        chosen = (rng.random(mask.shape) < 0.4) & (mask > 0)
        chosen[:, 1] = True
        return {
            "tokens": tokens,
            "mask": mask,
            "types": (np.arange(LENGTH) >= 6) * mask,
            "targets": np.where(np.arange(TARGETS) < np.array([9, 6, 4])[:, None], targets, IGNORED),
            "hidden": np.where(chosen, rng.integers(5, VOCAB, mask.shape), IGNORED),
            "replaced": chosen.astype(np.int64),
            "sentence": np.array([0, 1, 1]),
        }

    @property
    def kind(self) -> str:
        """Which loss."""
        return self.objective.split(",")[0]

    @cached_property
    def their_outputs(self) -> tuple[Arrays, float, Arrays]:
        """Logits, loss and gradients in Transformers."""
        b = {name: torch.tensor(value) for name, value in self.batch.items()}
        inputs = {"input_ids": b["tokens"], "attention_mask": b["mask"]}
        if self.theirs.config.model_type in {"bert", "albert", "electra"}:
            inputs["token_type_ids"] = b["types"]
        match self.objective:
            case "span_corruption":
                inputs["labels"] = b["targets"]
            case "masked, next sentence":
                inputs |= {"labels": b["hidden"], "next_sentence_label": b["sentence"]}
            case "masked, sentence order":
                inputs |= {"labels": b["hidden"], "sentence_order_label": b["sentence"]}
            case "masked":
                inputs["labels"] = b["hidden"]
            case "replaced_token":
                inputs["labels"] = b["replaced"]
            case "causal":
                inputs["labels"] = torch.where(b["mask"] > 0, b["tokens"], IGNORED)
        self.theirs.zero_grad()
        out = self.theirs(**inputs)
        out.loss.backward()
        names = ("logits", "prediction_logits", "seq_relationship_logits", "sop_logits")
        logits = {name: out[name].detach().numpy() for name in names if name in out}
        grads = {name: p.grad.numpy() for name, p in self.theirs.named_parameters() if p.grad is not None}
        return logits, out.loss.item(), _as_saved(grads)

    @cached_property
    def our_outputs(self) -> tuple[Arrays, float, Arrays]:
        """The same here: logits in the same order, loss, gradients by our names."""
        model = self.ours
        settings = LossSettings(VOCAB)
        features = self._features()

        def loss(params: Any) -> tuple[jax.Array, Any]:
            module = model.run.blueprint.model(params)
            sums = self._terms(module, features, settings)
            total = sum(term.total / term.weight for term in sums.values())
            return jnp.asarray(total), self._logits(module, features)

        (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
        return {name: np.asarray(x) for name, x in logits.items()}, float(value), flatten_names(jax.device_get(grads))

    def _features(self) -> dict[str, jax.Array]:
        b, index = self.batch, np.broadcast_to(np.arange(LENGTH), (len(REAL), LENGTH))
        features = {"tokens": b["tokens"], "segment_ids": b["mask"], "positions": index, "token_types": b["types"]}
        if self.theirs.config.model_type == "roberta":
            features["token_types"] = np.zeros_like(b["types"])
        match self.kind:
            case "span_corruption":
                real = (b["targets"] != IGNORED).astype(np.int32)
                targets = b["targets"] * real
                features |= {
                    "decoder_tokens": np.concatenate([np.full((len(REAL), 1), START), targets[:, :-1]], 1),
                    # Transformers gives its decoder no mask: every target sees those before it.
                    "decoder_segment_ids": np.ones_like(real),
                    "decoder_positions": np.stack([positions_in(np.ones(TARGETS, int))] * len(REAL)),
                    "targets": targets,
                    "loss_weights": real.astype(np.float32),
                }
            case "masked":
                real = b["hidden"] != IGNORED
                features |= {
                    "target_positions": index,
                    "targets": b["hidden"] * real,
                    "loss_weights": real.astype(np.float32),
                }
                if "sentence" in self.objective:
                    features |= {"sentence_targets": b["sentence"], "sentence_weights": np.ones(3, np.float32)}
            case "replaced_token":
                features["detection_weights"] = b["mask"].astype(np.float32)
            case "causal":
                following = np.concatenate([b["mask"][:, 1:], np.zeros((len(REAL), 1))], 1)
                features |= {"targets": np.roll(b["tokens"], -1, 1), "loss_weights": following.astype(np.float32)}
        return {name: jnp.asarray(value) for name, value in features.items()}

    def _terms(self, module: Any, features: dict[str, jax.Array], settings: LossSettings) -> Any:
        match self.kind:
            case "span_corruption":
                return SpanCorruption().loss(module, features, None, settings)
            case "masked":
                sentences = "next" if "sentence" in self.objective else "none"
                return Masked(sentences=sentences).loss(module, features, None, settings)
            case "causal":
                return Causal().loss(module, features, None, settings)
        scores = module.detection(self._states(module, features))
        targets = jnp.asarray(self.batch["replaced"]) > 0
        return {"detection": binary_cross_entropy(scores, targets, features["detection_weights"])}

    def _states(self, module: Any, features: dict[str, jax.Array]) -> jax.Array:
        where = {name: features[name] for name in ("positions", "segment_ids")}
        if self.kind == "span_corruption":
            return module(features["tokens"], features["decoder_tokens"], **where)
        if self.kind != "causal":
            where["token_types"] = features["token_types"]
        return module(features["tokens"], **where)

    def _logits(self, module: Any, features: dict[str, jax.Array]) -> dict[str, jax.Array]:
        states = self._states(module, features)
        match self.objective:
            case "replaced_token":
                return {"logits": module.detection(states)}
            case "masked, next sentence":
                names = ("prediction_logits", "seq_relationship_logits")
            case "masked, sentence order":
                names = ("prediction_logits", "sop_logits")
            case _:
                return {"logits": module.logits(states)}
        return dict(zip(names, (module.logits(states), module.sentence(states)), strict=True))

    def differences(self) -> tuple[float, float, float]:
        """Largest of the logits, of the loss, and of the gradients relative to each parameter's largest."""
        (their_logits, their_loss, their_grads), (logits, loss, grads) = self.their_outputs, self.our_outputs
        assert their_logits.keys() == logits.keys()
        real = self.batch["mask"] > 0
        of_logits = 0.0
        for name, expected in their_logits.items():
            per_token = name in {"logits", "prediction_logits"} and self.kind != "span_corruption"
            gap = np.abs(expected - logits[name])
            of_logits = max(of_logits, float((gap[real] if per_token else gap).max()))
        table = FAMILIES[self.theirs.config.model_type].table(self.ours.config.model)
        of_grads, largest = 0.0, max(np.abs(grad).max() for grad in their_grads.values())
        for name, found in grads.items():
            expected = table.to_ours(name, lambda theirs: their_grads[theirs])
            # A bias on keys adds the same to all scores of a query: its true gradient is zero, what both have is
            # rounding, to be measured against the gradients that it is rounding of.
            scale = largest if name.endswith("attention.key.bias") else np.abs(expected).max()
            of_grads = max(of_grads, float(np.abs(expected - found).max() / scale))
        return of_logits, abs(their_loss - loss), of_grads


def _as_saved(grads: Arrays) -> Arrays:
    """Mixtral in memory stacks what its files hold expert by expert."""
    split: Arrays = {}
    for name, grad in grads.items():
        layer, _, part = name.partition(".mlp.")
        own = f"{layer}.block_sparse_moe"
        match part:
            case "gate.weight":
                split[f"{own}.gate.weight"] = grad
            case "experts.down_proj":
                split |= {f"{own}.experts.{n}.w2.weight": one for n, one in enumerate(grad)}
            case "experts.gate_up_proj":
                for n, both in enumerate(grad):
                    split[f"{own}.experts.{n}.w1.weight"], split[f"{own}.experts.{n}.w3.weight"] = np.split(both, 2)
            case _:
                split[name] = grad
    return split


def make(name: str, folder: Path, noise: float = 0.1) -> Case:
    """Build a model there, with every weight random, save it, and import it."""
    objective, build = CASES[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(folder / "theirs")
    import_hf(folder / "theirs", folder / "run")
    return Case(name, objective, model, folder / "theirs", folder / "run")
