"""One model in Hugging Face Transformers and here: logits, loss and gradients of the same batch in both.

Used by the tests beside this file and by `tools/parity.sh`, which prints the differences. `theirs` is the model of
Transformers, `ours` is the model imported from it.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from jaxtyping import PyTree
from transformers import PretrainedConfig, PreTrainedModel

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.convert import MODEL_TYPES
from t5x_lite.convert.huggingface import import_hf
from t5x_lite.models.losses import LossSettings, LossSums, binary_cross_entropy
from t5x_lite.objectives.causal import Causal
from t5x_lite.objectives.features import positions_in
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.permutation import Permutation
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.trees import flatten_names
from tests.reference.tiny_models import TINY_MODELS, VOCAB

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

REAL_TOKENS = (20, 13, 7)
"""Tokens of each row that are not padding."""
REAL_TARGETS = (9, 6, 4)
"""Targets of each row that are not padding."""
ROWS = len(REAL_TOKENS)
LENGTH = max(REAL_TOKENS)
TARGET_LENGTH = max(REAL_TARGETS)
SECOND_SENTENCE = 6
"""The position from which on tokens are of the second type."""
FIRST_TOKEN = 5
"""The lowest token that is drawn; those below are special in some models."""
PREDICTED = 4
"""Tokens of each row that permutation language modelling predicts."""
IGNORED = -100
"""The label of a token that Transformers leaves out of the loss."""

Arrays = dict[str, np.ndarray]
Features = dict[str, jax.Array]


@dataclass(frozen=True)
class Outputs:
    """The results of a model on a batch: logits by Transformers' names, the loss, gradients by the model's names."""

    logits: Arrays
    loss: float
    gradients: Arrays


TYPE_INPUTS = {
    **dict.fromkeys(("bert", "albert", "electra", "megatron-bert", "xlnet", "deberta", "deberta-v2"), "token_type_ids"),
    "xlm": "langs",
}
"""Name of the input that has the types of the tokens, by model type."""


@dataclass(frozen=True)
class Differences:
    """The largest differences between two models, of gradients relative to each parameter's largest."""

    logits: float
    loss: float
    gradients: float


@dataclass(frozen=True)
class Case:
    """One model in both implementations.

    Attributes:
        name: the name of the tiny model.
        objective: the objective of the loss, see `TinyModel`.
        theirs: the model in Transformers.
        folder: the folder to which Transformers saved it.
        run: the run directory as which it was imported.
    """

    name: str
    objective: str
    theirs: PreTrainedModel
    folder: Path
    run: Path

    @cached_property
    def ours(self) -> Model:
        """The imported model, without dropout."""
        return t5x_lite.load(self.run, overrides=["model.dropout=0"])

    @property
    def model_type(self) -> str:
        """The name of the model type in Transformers."""
        return self.theirs.config.model_type

    @property
    def main_objective(self) -> str:
        """The objective without the task of a sentence output."""
        return self.objective.split(",")[0]

    @cached_property
    def batch(self) -> Arrays:
        """Tokens with padding at the end, and labels of every kind."""
        rng = np.random.default_rng(1)
        is_real = np.arange(LENGTH) < np.array(REAL_TOKENS)[:, None]
        mask = is_real.astype(np.int64)
        pad_token = self.theirs.config.pad_token_id or 0
        tokens = np.where(is_real, rng.integers(FIRST_TOKEN, VOCAB, mask.shape), pad_token)
        is_real_target = np.arange(TARGET_LENGTH) < np.array(REAL_TARGETS)[:, None]
        targets = np.where(is_real_target, rng.integers(FIRST_TOKEN, VOCAB, (ROWS, TARGET_LENGTH)), IGNORED)
        is_masked = (rng.random(mask.shape) < 0.4) & is_real
        is_masked[:, 1] = True
        masked_targets = np.where(is_masked, rng.integers(FIRST_TOKEN, VOCAB, mask.shape), IGNORED)
        return {
            "tokens": tokens,
            "mask": mask,
            "types": (np.arange(LENGTH) >= SECOND_SENTENCE) * mask,
            "targets": targets,
            "masked_targets": masked_targets,
            "replaced": is_masked.astype(np.int64),
            "sentence": np.array([0, 1, 1]),
        }

    @cached_property
    def order(self) -> Arrays:
        """The predicted tokens of each row, ascending, and the rank of each token: in a random order, else -1."""
        rng = np.random.default_rng(3)
        predicted = np.stack([np.sort(rng.permutation(count)[:PREDICTED]) for count in REAL_TOKENS])
        rank = np.full((ROWS, LENGTH), -1)
        for row, places in enumerate(predicted):
            rank[row, places] = rng.permutation(PREDICTED)
        return {"predicted": predicted, "rank": rank}

    @cached_property
    def their_outputs(self) -> Outputs:
        """The outputs of Transformers' model."""
        batch = {name: torch.tensor(values) for name, values in self.batch.items()}
        inputs = {"input_ids": batch["tokens"], "attention_mask": batch["mask"]}
        if self.model_type in TYPE_INPUTS:
            inputs[TYPE_INPUTS[self.model_type]] = batch["types"]
        match self.main_objective:
            case "span_corruption":
                inputs["labels"] = batch["targets"]
            case "masked":
                inputs["labels"] = batch["masked_targets"]
            case "replaced_token":
                inputs["labels"] = batch["replaced"]
            case "permutation":
                inputs.update(_permutation_inputs(self.batch["tokens"], self.order))
            case "causal":
                inputs["labels"] = torch.where(batch["mask"] > 0, batch["tokens"], IGNORED)
        match self.objective:
            case "masked, next sentence":
                inputs["next_sentence_label"] = batch["sentence"]
            case "masked, sentence order":
                inputs["sentence_order_label"] = batch["sentence"]
        self.theirs.zero_grad()
        outputs = self.theirs(**inputs)
        outputs.loss.backward()
        logits = {}
        for name in ("logits", "prediction_logits", "seq_relationship_logits", "sop_logits"):
            if name in outputs:
                logits[name] = outputs[name].detach().numpy()
        gradients = {}
        for name, parameter in self.theirs.named_parameters(remove_duplicate=False):
            if parameter.grad is not None:
                stored_name = STORED_NAMES.get((self.model_type, name), name)
                gradients[stored_name] = parameter.grad.numpy()
        gradients.update(_gradients_of_router_biases(self.theirs))
        return Outputs(logits, outputs.loss.item(), _unstack_experts(gradients, self.model_type))

    @cached_property
    def our_outputs(self) -> Outputs:
        """The outputs of the imported model."""
        model = self.ours
        features = self._features()

        def compute_loss(params: PyTree[jax.Array]) -> tuple[jax.Array, Features]:
            module = model.run.spec.model(params)
            loss = jnp.zeros(())
            for term in self._loss_terms(module, features).values():
                loss += term.total / term.weight
            return loss, self._logits(module, features)

        compute_gradients = jax.jit(jax.value_and_grad(compute_loss, has_aux=True))
        (loss, logits), gradients = compute_gradients(model.params)
        logits = {name: np.asarray(values) for name, values in logits.items()}
        return Outputs(logits, float(loss), flatten_names(jax.device_get(gradients)))

    def _features(self) -> Features:
        """The batch as the objective gives it to our model."""
        batch = self.batch
        features = {
            "tokens": batch["tokens"],
            "segment_ids": batch["mask"],
            "positions": np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH)),
            "token_types": batch["types"],
        }
        if self.model_type in {"roberta", "xlm-roberta"}:  # has one token type
            features["token_types"] = np.zeros_like(batch["types"])
        match self.main_objective:
            case "span_corruption":
                features.update(_span_corruption_features(batch, self.theirs.config))
            case "masked":
                features.update(_masked_features(batch))
            case "replaced_token":
                features["detection_weights"] = batch["mask"].astype(np.float32)
            case "permutation":
                features.update(_permutation_features(batch, self.order))
            case "causal":
                features.update(_causal_features(batch))
        if "sentence" in self.objective:
            features["sentence_targets"] = batch["sentence"]
            features["sentence_weights"] = np.ones(ROWS, np.float32)
        return {name: jnp.asarray(values) for name, values in features.items()}

    def _loss_terms(self, module: Any, features: Features) -> dict[str, LossSums]:
        settings = LossSettings(VOCAB)
        match self.main_objective:
            case "span_corruption":
                return SpanCorruption().loss(module, features, None, settings)
            case "masked":
                sentences = "next" if "sentence" in self.objective else "none"
                return Masked(sentences=sentences).loss(module, features, None, settings)
            case "permutation":
                return Permutation().loss(module, features, None, settings)
            case "causal":
                return Causal().loss(module, features, None, settings)
        scores = module.detection(self._states(module, features))
        is_replaced = jnp.asarray(self.batch["replaced"]) > 0
        return {"detection": binary_cross_entropy(scores, is_replaced, features["detection_weights"])}

    def _states(self, module: Any, features: Features) -> jax.Array:
        positions = features["positions"]
        segment_ids = features["segment_ids"]
        match self.main_objective:
            case "span_corruption":
                decoder_tokens = features["decoder_tokens"]
                return module(features["tokens"], decoder_tokens, positions=positions, segment_ids=segment_ids)
            case "causal":
                return module(features["tokens"], positions=positions, segment_ids=segment_ids)
        token_types = features["token_types"]
        if self.objective == "permutation":
            order = (features["target_positions"], features["rank"])
            return module.predict_in_order(features["tokens"], *order, segment_ids=segment_ids, token_types=token_types)
        return module(features["tokens"], positions=positions, segment_ids=segment_ids, token_types=token_types)

    def _logits(self, module: Any, features: Features) -> Features:
        states = self._states(module, features)
        match self.objective:
            case "masked, next sentence":
                return {"prediction_logits": module.logits(states), "seq_relationship_logits": module.sentence(states)}
            case "masked, sentence order":
                return {"prediction_logits": module.logits(states), "sop_logits": module.sentence(states)}
            case "replaced_token":
                return {"logits": module.detection(states)}
        return {"logits": module.logits(states)}

    def differences(self) -> Differences:
        """Compare the outputs of both models."""
        return Differences(
            logits=self._difference_of_logits(),
            loss=abs(self.their_outputs.loss - self.our_outputs.loss),
            gradients=self._difference_of_gradients(),
        )

    def _difference_of_logits(self) -> float:
        assert self.their_outputs.logits.keys() == self.our_outputs.logits.keys()
        is_real = self.batch["mask"] > 0
        largest = 0.0
        for name, expected in self.their_outputs.logits.items():
            difference = np.abs(expected - self.our_outputs.logits[name])
            is_of_targets = self.main_objective in {"span_corruption", "permutation"}
            if name in {"logits", "prediction_logits"} and not is_of_targets:
                difference = difference[is_real]
            largest = max(largest, float(difference.max()))
        return largest

    def _difference_of_gradients(self) -> float:
        their_gradients = self.their_outputs.gradients
        largest_gradient = max(np.abs(gradient).max() for gradient in their_gradients.values())
        weight_map = MODEL_TYPES[self.model_type].build_weight_map(self.ours.config.model)
        largest = 0.0
        for name, gradient in self.our_outputs.gradients.items():
            expected = weight_map.to_ours(name, their_gradients.__getitem__)
            # A bias on keys adds the same to all scores of a query. Its true gradient is zero and what both models have
            # is rounding, to be measured against the gradients that it is rounding of.
            is_bias_on_keys = name.endswith(("attention.key.bias", "attention.positions.key.bias"))
            is_bias_of_router = name.endswith("feedforward.bias")  # not trained by gradients
            scale = largest_gradient if is_bias_on_keys or is_bias_of_router else np.abs(expected).max()
            largest = max(largest, float(np.abs(expected - gradient).max() / scale))
        return largest


def _span_corruption_features(batch: Arrays, config: PretrainedConfig) -> Arrays:
    is_real = (batch["targets"] != IGNORED).astype(np.int32)
    targets = np.where(is_real, batch["targets"], config.pad_token_id)
    # T5Gemma has no field for it and begins as texts do.
    start_token = getattr(config, "decoder_start_token_id", None)
    start = np.full((ROWS, 1), config.bos_token_id if start_token is None else start_token)
    # Transformers gives its decoder no mask: every target sees all earlier ones.
    segment_ids = np.ones_like(is_real)
    positions = positions_in(np.ones(TARGET_LENGTH, int))
    return {
        "decoder_tokens": np.concatenate([start, targets[:, :-1]], axis=1),
        "decoder_segment_ids": segment_ids,
        "decoder_positions": np.stack([positions] * ROWS),
        "targets": targets,
        "loss_weights": is_real.astype(np.float32),
    }


def _masked_features(batch: Arrays) -> Arrays:
    is_masked = batch["masked_targets"] != IGNORED
    return {
        "target_positions": np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH)),
        "targets": batch["masked_targets"] * is_masked,
        "loss_weights": is_masked.astype(np.float32),
    }


def _permutation_inputs(tokens: np.ndarray, order: Arrays) -> dict[str, torch.Tensor]:
    """Return the masks of Transformers' XLNet: perm_mask[b, i, j] is 1 where i does not attend to j.

    A token of the order is seen by those after it, the others by all. The content stream sees its own token anyway.
    """
    rank = order["rank"]
    perm_mask = np.ones((ROWS, LENGTH, LENGTH), np.float32)
    for row, query, key in np.ndindex(perm_mask.shape):
        if rank[row, key] == -1 or rank[row, key] < rank[row, query]:
            perm_mask[row, query, key] = 0
    target_mapping = np.zeros((ROWS, PREDICTED, LENGTH), np.float32)
    labels = np.zeros((ROWS, PREDICTED), np.int64)
    for row, number in np.ndindex(labels.shape):
        place = order["predicted"][row, number]
        target_mapping[row, number, place] = 1
        labels[row, number] = tokens[row, place]
    arrays = {"perm_mask": perm_mask, "target_mapping": target_mapping, "labels": labels}
    return {name: torch.tensor(values) for name, values in arrays.items()}


def _permutation_features(batch: Arrays, order: Arrays) -> Arrays:
    return {
        "rank": order["rank"],
        "target_positions": order["predicted"],
        "targets": np.take_along_axis(batch["tokens"], order["predicted"], axis=1),
        "loss_weights": np.ones((ROWS, PREDICTED), np.float32),
    }


def _causal_features(batch: Arrays) -> Arrays:
    no_target = np.zeros((ROWS, 1))
    has_target = np.concatenate([batch["mask"][:, 1:], no_target], axis=1)
    return {
        "targets": np.roll(batch["tokens"], -1, axis=1),
        "loss_weights": has_target.astype(np.float32),
    }


STORED_NAMES = {("gpt_neox", "lm_head.weight"): "embed_out.weight"}
"""Names in files of parameters that have another name in memory, by model type and that name."""

STORED_EXPERTS = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "qwen2_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "qwen3_next": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "deepseek_v2": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "deepseek_v3": ("mlp", "gate_proj", "up_proj", "down_proj"),
}
"""Names in files of a layer's experts, and of their gate, up and down, by model type."""


def _gradients_of_router_biases(model: PreTrainedModel) -> Arrays:
    """Return the gradients, zero, of the biases that balance the load of experts: gradients do not train them."""
    gradients = {}
    for name, buffer in model.named_buffers():
        if name.endswith(".e_score_correction_bias"):
            gradients[name] = np.zeros(buffer.shape, np.float32)
    return gradients


def _unstack_experts(gradients: Arrays, model_type: str) -> Arrays:
    """Return gradients by the names of stored tensors: some models in memory stack what their files store by expert."""
    if model_type not in STORED_EXPERTS:
        return gradients
    feedforward, gate_name, up_name, down_name = STORED_EXPERTS[model_type]
    unstacked: Arrays = {}
    for name, gradient in gradients.items():
        layer, _, parameter = name.partition(".mlp.")
        experts = f"{layer}.{feedforward}.experts"
        match parameter:
            case "gate.weight":
                unstacked[f"{layer}.{feedforward}.gate.weight"] = gradient
            case "experts.down_proj":
                for expert, down in enumerate(gradient):
                    unstacked[f"{experts}.{expert}.{down_name}.weight"] = down
            case "experts.gate_up_proj":
                for expert, gate_and_up in enumerate(gradient):
                    gate, up = np.split(gate_and_up, 2)
                    unstacked[f"{experts}.{expert}.{gate_name}.weight"] = gate
                    unstacked[f"{experts}.{expert}.{up_name}.weight"] = up
            case _:
                unstacked[name] = gradient
    return unstacked


def make(name: str, folder: Path, noise: float = 0.1) -> Case:
    """Build a tiny model in Transformers, add noise to every weight, save it, and import it."""
    tiny_model = TINY_MODELS[name]
    torch.manual_seed(0)
    model = tiny_model.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(folder / "theirs")
    import_hf(folder / "theirs", folder / "run")
    return Case(name, tiny_model.objective, model, folder / "theirs", folder / "run")
