"""BLiMP's minimal pairs of sentences."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from t5x_lite.evaluate.evaluators.evaluator import Argument, EvaluatedRun, Evaluation, Evaluator, token_problems
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, Sources, Strings, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Blimp(Evaluator):
    """Accuracy on BLiMP's minimal pairs; see `evaluate.blimp`. The scores of the sentences go to RUN/eval/STEP."""

    argument: ClassVar[Argument | None] = Argument(
        "blimp", "BLiMP's minimal pairs: JSONL files, separated by commas", field="files"
    )

    files: Strings = setting(..., "JSONL files of BLiMP, or globs of them; each may end in .gz or .zst", min_length=1)
    limit: Int | None = setting(None, "most pairs per set, the first ones; null takes all", ge=1)

    @classmethod
    def from_argument(cls, value: str) -> Iterator[Sources]:
        """Yield the settings for the files."""
        yield Sources.of_command_line({"files": value.split(",")})

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a model that predicts no tokens."""
        yield from token_problems("minimal pairs", model)

    def prepare(self, model: ModelConfig) -> None:
        """Read the pairs once."""
        from t5x_lite.evaluate.blimp import read_pairs

        read_pairs(self.files, self.limit)

    def fingerprint(self) -> str:
        """Return a hash of the files."""
        from t5x_lite.data.files import hash_files

        return hash_files(self.files, "blimp.files")

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return a pattern: the names of sets and phenomena are in the files."""
        return ("eval/blimp/*",)

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Score all sentences."""
        from t5x_lite.evaluate.blimp import accuracies, read_pairs, score_pairs, summarise
        from t5x_lite.evaluate.example_scores import compute_metrics, gather_scores, score_choices
        from t5x_lite.evaluate.scores_file import save_samples, save_scores

        pairs = read_pairs(self.files, self.limit)
        scores = score_pairs(model, pairs)
        phenomena = {pair.paradigm: pair.phenomenon for pair in pairs}
        summary = summarise(accuracies(pairs, scores), phenomena)
        # The bad sentence is first, so that of equal likelihoods it is the one that is chosen.
        examples = [score_choices([bad, good], right=1) for good, bad in scores]
        summary = {**compute_metrics(gather_scores(examples)), **summary}
        metrics = {f"eval/blimp/{name}": value for name, value in summary.items()}
        metrics["eval/blimp/pairs"] = len(pairs)
        records = []
        for pair, (good, bad), example in zip(pairs, scores, examples, strict=True):
            record = {"set": pair.paradigm, "sentences": [pair.good, pair.bad], "log_likelihoods": [good, bad]}
            records.append({**record, "scores": example})
        folder = model.run.results_folder(model.step)
        save_samples(folder, {"blimp": records})
        save_scores(folder, metrics)
        text = f"BLiMP {summary['accuracy']:.1%} of {len(pairs)} pairs"
        return Evaluation(metrics, text, examples={"blimp": examples})
