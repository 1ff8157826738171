"""BLiMP's minimal pairs of sentences."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5x_lite.evaluate.evaluators.evaluator import Evaluation, Evaluator, token_problems
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, Strings, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Blimp(Evaluator):
    """Accuracy on BLiMP's minimal pairs; see `evaluate.blimp`. The scores of the sentences go to RUN/eval/STEP."""

    files: Strings = setting(..., "JSONL files of BLiMP, or globs of them; each may end in .gz or .zst", min_length=1)
    limit: Int | None = setting(None, "most pairs per set, the first ones; null takes all", ge=1)

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a model that predicts no tokens."""
        yield from token_problems("minimal pairs", model)

    def prepare(self, model: ModelConfig) -> None:
        """Read the pairs once."""
        from t5x_lite.evaluate.blimp import read_pairs

        read_pairs(self.files, self.limit)

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Score all sentences."""
        from t5x_lite.evaluate.blimp import accuracies, read_pairs, score_pairs, summarise
        from t5x_lite.evaluate.scores_file import save_samples, save_scores

        pairs = read_pairs(self.files, self.limit)
        scores = score_pairs(model, pairs)
        phenomena = {pair.paradigm: pair.phenomenon for pair in pairs}
        summary = summarise(accuracies(pairs, scores), phenomena)
        metrics = {f"eval/blimp/{name}": value for name, value in summary.items()}
        metrics["eval/blimp/pairs"] = len(pairs)
        records = []
        for pair, (good, bad) in zip(pairs, scores, strict=True):
            records.append({"set": pair.paradigm, "sentences": [pair.good, pair.bad], "log_likelihoods": [good, bad]})
        folder = model.run.folder / "eval" / str(model.step)
        save_samples(folder, {"blimp": records})
        save_scores(folder, metrics)
        return Evaluation(metrics, summary=f"BLiMP {summary['accuracy']:.1%} of {len(pairs)} pairs")
