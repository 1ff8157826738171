"""The loss on the validation split."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from t5x_lite.evaluate.evaluators.evaluator import EvaluatedRun, Evaluation, Evaluator

if TYPE_CHECKING:
    from t5x_lite.data.training_data import ValidationBatches
    from t5x_lite.evaluate.evaluation_model import EvaluationModel
    from t5x_lite.models.loss_terms import LossTerms


ROUTER_METRICS = (
    "router_balance_loss",
    "router_z_loss",
    "dropped_tokens",
    "expert_load_entropy",
    "expert_load_max",
)
"""Metrics of routers that are one number; see `models.experts.activity.RouterLoss`."""


class Validation(Evaluator):
    """Loss, perplexity and bits per byte on the run's validation split; see `evaluate.perplexity.loss_scores`.

    Sources with different objectives are also evaluated one by one.
    """

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return what `evaluate.perplexity.loss_scores` may name: some objectives have no accuracy."""
        names = ["loss", "accuracy", "tokens"]
        if run.objective.predicts_tokens:
            names.append("perplexity")
        for term in run.objective.term_weights:
            if term != "loss":
                names += [f"{term}_loss", f"{term}_accuracy"]
        if run.model.mixtures:
            names += ROUTER_METRICS
        of_sources = [f"eval/{source}/{name}" for source in run.source_names for name in names]
        if run.objective.every_token:
            names.append("bits_per_byte")
        return [*(f"eval/{name}" for name in names), *of_sources]

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Evaluate all batches of the split."""
        from t5x_lite.evaluate.perplexity import loss_scores
        from t5x_lite.models.loss_terms import LossTerms, add_loss_terms

        predicts_tokens = model.config.require_objective().predicts_tokens
        summarise_terms = partial(loss_scores, predicts_tokens=predicts_tokens)
        metrics: dict[str, float] = {}
        of_sources = ""
        total: LossTerms = {}
        for source, split in model.data.validation_of_sources().items():
            terms = _sum_terms(model, split)
            total = add_loss_terms(total, terms)
            source_scores = summarise_terms(terms, None)
            metrics.update({f"eval/{source}/{name}": score for name, score in source_scores.items()})
            of_sources += f", {source} {source_scores['loss']:.4f}"
        if not total:
            total = _sum_terms(model, model.data.validation())
        scores = summarise_terms(total, model.data.tokens_per_byte)
        return Evaluation(
            metrics={**{f"eval/{name}": score for name, score in scores.items()}, **metrics},
            summary=_summarise(scores) + of_sources,
            status=f"validation {scores['loss']:.4f}",
        )


def _sum_terms(model: "EvaluationModel", split: "ValidationBatches") -> "LossTerms":
    from t5x_lite.evaluate.perplexity import sum_loss_terms
    from t5x_lite.parallel import mesh as meshes

    local_rows = meshes.local_rows(model.mesh, split.batch_size)
    batches = (meshes.to_global(model.mesh, batch, split.batch_size) for batch in split.batches(local_rows))
    return sum_loss_terms(model.loss_terms, batches)


def _summarise(scores: Mapping[str, float]) -> str:
    parts = [f"validation loss {scores['loss']:.4f}"]
    if "perplexity" in scores:
        parts.append(f"perplexity {scores['perplexity']:.2f}")
    if "bits_per_byte" in scores:
        parts.append(f"{scores['bits_per_byte']:.4f} bits per byte")
    for name, score in scores.items():
        if name.endswith("_accuracy"):
            parts.append(f"{name.removesuffix('_accuracy')} accuracy {score:.1%}")
    return ", ".join(parts)
