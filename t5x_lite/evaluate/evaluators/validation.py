"""The loss on the validation split."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from t5x_lite.evaluate.evaluators.evaluator import Evaluation, Evaluator

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Validation(Evaluator):
    """Loss, perplexity and bits per byte on the run's validation split; see `evaluate.perplexity.evaluate_loss`."""

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Evaluate all batches of the split."""
        from t5x_lite.evaluate.perplexity import evaluate_loss
        from t5x_lite.parallel import mesh as meshes

        split = model.data.validation()
        local_rows = meshes.local_rows(model.mesh, split.batch_size)
        batches = (meshes.to_global(model.mesh, batch, split.batch_size) for batch in split.batches(local_rows))
        scores = evaluate_loss(
            model.loss_terms,
            batches,
            model.data.tokens_per_byte,
            predicts_tokens=model.config.require_objective().predicts_tokens,
        )
        return Evaluation(
            metrics={f"eval/{name}": score for name, score in scores.items()},
            summary=_summarise(scores),
            status=f"validation {scores['loss']:.4f}",
        )


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
