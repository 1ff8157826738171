"""The share of planted strings that a model continues word for word (Carlini et al. 2022)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from t5x_lite.evaluate.evaluators.evaluator import Argument, EvaluatedRun, Evaluation, Evaluator
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.canaries import Canary
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Memorisation(Evaluator):
    """Strings that greedy decoding extracts, by the number of their repeats in the corpus.

    A string is extracted if the model, prompted with its first tokens, predicts each of the next ones as most likely
    (Carlini et al. 2022, §3). The strings are those of `evaluate.canaries`. Scores go to RUN/eval/STEP.
    """

    argument: ClassVar[Argument | None] = Argument("memorisation", "JSONL file of planted strings", field="file")

    file: str = setting(..., "JSONL file of planted strings: text and repeats", min_length=1)
    prompt_tokens: Int = setting(50, "tokens of a prompt", unit="tokens", ge=1, source="Carlini et al. 2022, §3.1")
    tokens: Int = setting(50, "tokens to extract", unit="tokens", ge=1, source="Carlini et al. 2022, §3.1")

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a model that is not a decoder, and for strings that are longer than its positions."""
        if model.family != "decoder":
            yield f"memorisation is for decoders, which continue a text; this model is of family {model.family}"
        elif model.max_length is not None and self.prompt_tokens + self.tokens - 1 > model.max_length:
            yield (
                f"memorisation: {self.prompt_tokens} tokens of a prompt and {self.tokens} to extract are more than the "
                f"model's {model.max_length} positions; lower prompt_tokens or tokens"
            )

    def prepare(self, model: ModelConfig) -> None:
        """Read the strings once."""
        from t5x_lite.evaluate.canaries import read_canaries

        read_canaries(self.file)

    def fingerprint(self) -> str:
        """Return a hash of the file."""
        from t5x_lite.data.files import hash_files

        return hash_files([self.file], "memorisation.file")

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return a pattern: the numbers of repeats are in the file."""
        return ("eval/memorisation/*",)

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Score the continuation of each string that is long enough.

        Raises:
            UserError: none is.
        """
        import numpy as np

        from t5x_lite.errors import UserError
        from t5x_lite.evaluate.canaries import read_canaries
        from t5x_lite.evaluate.scores_file import save_samples, save_scores

        self.check_model(model.config.model)
        planted = read_canaries(self.file)
        length = self.prompt_tokens + self.tokens
        rows = model.tokenizer.encode_batch([string.text for string in planted])
        is_long = [len(row) >= length for row in rows]
        pairs = []
        for row, is_scored in zip(rows, is_long, strict=True):
            if is_scored:
                prompt = np.concatenate([model.bos_ids, row[: self.prompt_tokens]])
                pairs.append((prompt.astype(np.int32), row[self.prompt_tokens : length]))
        if not pairs:
            longest = max(map(len, rows))
            raise UserError(f"{self.file}: no string has {length} tokens; the longest has {longest}")
        scores = model.likelihood(pairs, model.resolve_window(model.likelihood.tokens_read(pairs[0])))
        scored = [string for string, is_scored in zip(planted, is_long, strict=True) if is_scored]
        records = []
        scores_of_strings: list[Mapping[str, float]] = []
        for string, score in zip(scored, scores, strict=True):
            example = {
                "correct": float(score.is_greedy),
                "log_likelihood": score.log_likelihood,
                "tokens": float(self.tokens),
            }
            scores_of_strings.append(example)
            records.append({"text": string.text, "repeats": string.repeats, "scores": example})
        examples = _group_by_repeats(scored, scores_of_strings)
        metrics = {}
        for repeats, group in examples.items():
            metrics[f"eval/memorisation/repeats_{repeats}"] = _share(group)
        metrics["eval/memorisation/strings"] = len(records)
        metrics["eval/memorisation/too_short"] = len(planted) - len(records)
        folder = model.run.results_folder(model.step)
        save_samples(folder, {"memorisation": records})
        save_scores(folder, metrics)
        shares = ", ".join(f"{_share(group):.1%} at {repeats}" for repeats, group in examples.items())
        by_task = {f"memorisation_repeats_{repeats}": group for repeats, group in examples.items()}
        return Evaluation(metrics, f"extracted by repeats: {shares}", examples=by_task)


def _group_by_repeats(
    strings: Sequence["Canary"], scores: Sequence[Mapping[str, float]]
) -> dict[int, list[Mapping[str, float]]]:
    """Return the scores by the number of repeats, in ascending order."""
    groups: dict[int, list[Mapping[str, float]]] = {}
    for repeats in sorted({string.repeats for string in strings}):
        groups[repeats] = [score for string, score in zip(strings, scores, strict=True) if string.repeats == repeats]
    return groups


def _share(scores: Sequence[Mapping[str, float]]) -> float:
    return sum(score["correct"] for score in scores) / len(scores)
