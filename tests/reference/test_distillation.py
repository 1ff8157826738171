"""Distillation against the loss of DistilBERT's published code, computed by PyTorch on models of Transformers.

The formulas are those of `Distiller.step`: KL divergence with reduction `batchmean` over the tokens that are no
padding, times the square of the temperature; cross-entropy of the labels; cosine embedding loss of the last states.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")

import torch
from jaxtyping import PyTree
from torch.nn.functional import (
    cosine_embedding_loss,
    cross_entropy,
    kl_div,
    log_softmax,
    softmax,
)

from t5x_lite.objectives.causal import Causal
from t5x_lite.objectives.distillation import Distillation, add_token_weights
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.run_loss import distillation_loss_function
from t5x_lite.train.state import TrainState
from t5x_lite.train.training_loss import TrainingLoss
from t5x_lite.trees import flatten_names
from tests.reference.cases import IGNORED, Case, Features, Outputs, make

OBJECTIVES = {"masked": Masked(), "causal": Causal(), "span_corruption": SpanCorruption()}
TEACHERS = {"DistilBERT": "BERT, MLM alone", "GPT-2": "GPT-2", "T5 v1.0": "T5 v1.0"}
"""The teacher of each student."""


@dataclass(frozen=True)
class DistillationCase(Case):
    """A student in both implementations.

    Attributes:
        teacher: its teacher.
        distillation: the weights of the losses.
    """

    teacher: Case
    distillation: Distillation

    @cached_property
    def their_outputs(self) -> Outputs:
        """The published loss, and the gradients of the student."""
        self.theirs.zero_grad()
        student = self._run(self.theirs)
        with torch.no_grad():
            teacher = self._run(self.teacher.theirs)
        loss = self._published_loss(student, teacher)
        loss.backward()
        gradients = {}
        for name, parameter in self.theirs.named_parameters(remove_duplicate=False):
            if parameter.grad is not None:
                gradients[name] = parameter.grad.numpy()
        return Outputs({}, loss.item(), gradients)

    def _run(self, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits and the last hidden states."""
        batch = {name: torch.tensor(values) for name, values in self.batch.items()}
        inputs = {"input_ids": batch["tokens"], "attention_mask": batch["mask"]}
        if self.main_objective == "span_corruption":
            labels = torch.where(batch["targets"] == IGNORED, 0, batch["targets"])
            inputs["decoder_input_ids"] = torch.nn.functional.pad(labels[:, :-1], (1, 0))
        outputs = model(**inputs, output_hidden_states=True)
        if self.main_objective == "span_corruption":
            return outputs.logits, outputs.decoder_hidden_states[-1]
        return outputs.logits, outputs.hidden_states[-1]

    def _published_loss(
        self, student: tuple[torch.Tensor, torch.Tensor], teacher: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        settings = self.distillation
        student_logits, student_states = student
        teacher_logits, teacher_states = teacher
        batch = {name: torch.tensor(values) for name, values in self.batch.items()}
        mask = batch["mask"] > 0
        match self.main_objective:
            case "masked":
                labels = batch["masked_targets"]
            case "span_corruption":
                labels = batch["targets"]
                mask = labels != IGNORED
            case "causal":
                labels = torch.where(mask, batch["tokens"], IGNORED)
                labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        soft_mask = mask
        if settings.soft_tokens == "predicted":
            soft_mask = labels != IGNORED
        temperature = settings.temperature
        student_scores = log_softmax(student_logits[soft_mask] / temperature, dim=-1)
        teacher_probabilities = softmax(teacher_logits[soft_mask] / temperature, dim=-1)
        soft = kl_div(student_scores, teacher_probabilities, reduction="batchmean") * temperature**2
        hard = cross_entropy(student_logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        loss = settings.soft * soft + settings.hard * hard
        if settings.cosine:
            same = torch.ones(int(mask.sum()))
            cosine = cosine_embedding_loss(student_states[mask], teacher_states[mask], same, reduction="mean")
            loss = loss + settings.cosine * cosine
        return loss

    @cached_property
    def our_outputs(self) -> Outputs:
        """The number that the train step minimises, and its gradients."""
        objective = OBJECTIVES[self.main_objective]
        updates = {"objective": objective, "distillation": self.distillation}
        config = self.ours.config.model_copy(update=updates)
        compute_terms = distillation_loss_function(config, self.ours.run.spec, self.teacher.ours.run.spec, 1)
        batch = add_token_weights(self._distilled_features())

        def loss_terms(params: PyTree, state: TrainState, batch: Features, key: None) -> tuple[dict, dict]:
            return compute_terms(params, state.teacher, batch, key), {}

        loss = TrainingLoss(objective.name, loss_terms, self.distillation.term_weights(objective))
        zero = jnp.zeros((), jnp.int32)
        state = TrainState(zero, {}, {}, zero, zero, {}, teacher=self.teacher.ours.params)

        def minimised(params: PyTree) -> jax.Array:
            terms, _ = loss.loss_terms(params, state, batch, None)
            return loss.mean(terms, loss.normalisers(batch, 1))

        value, gradients = jax.jit(jax.value_and_grad(minimised))(self.ours.params)
        return Outputs({}, float(value), flatten_names(jax.device_get(gradients)))

    def _distilled_features(self) -> Features:
        features = self._features()
        if self.main_objective == "span_corruption":
            is_real = self.batch["targets"] != IGNORED
            features["decoder_segment_ids"] = jnp.asarray(is_real.astype(np.int32))
        features["token_types"] = jnp.zeros_like(features["token_types"])  # DistilBERT's code passes none
        return features


def distillation_case(student_name: str, folder: Path, **settings: object) -> DistillationCase:
    student = make(student_name, folder / "student")
    teacher = make(TEACHERS[student_name], folder / "teacher", noise=0.3)
    distillation = Distillation(teacher=str(teacher.run), **settings)
    return DistillationCase(
        student.name, student.objective, student.theirs, student.folder, student.run, teacher, distillation
    )


@pytest.mark.slow
@pytest.mark.parametrize("student_name", TEACHERS)
def test_loss_and_gradients_equal_the_published_code(student_name: str, tmp_path: Path) -> None:
    case = distillation_case(student_name, tmp_path)
    assert case.their_outputs.loss == pytest.approx(case.our_outputs.loss, rel=1e-5)
    assert case.differences().gradients < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"soft_tokens": "predicted"},
        {"cosine": 0.0, "temperature": 4.0},
        {"soft": 0.0, "hard": 1.0, "cosine": 3.0},
        {"soft": 1.0, "hard": 0.0, "cosine": 0.0, "temperature": 1.0},
    ],
)
def test_each_setting_changes_the_loss_as_in_the_published_code(settings: dict[str, object], tmp_path: Path) -> None:
    case = distillation_case("DistilBERT", tmp_path, **settings)
    assert case.their_outputs.loss == pytest.approx(case.our_outputs.loss, rel=1e-5)
    assert case.differences().gradients < 1e-4
    default = replace(case, distillation=Distillation(teacher=str(case.teacher.run)))
    assert abs(default.our_outputs.loss - case.our_outputs.loss) > 0.01
