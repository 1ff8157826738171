"""The perplexity of a text."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluators.evaluator import Argument, EvaluatedRun, Evaluation, Evaluator, window_problems
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, Sources, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


SCORES = ("loss", "perplexity", "word_perplexity", "bits_per_byte", "tokens", "words", "bytes", "documents")


class Perplexity(Evaluator):
    """Perplexity and bits per byte of a file, by windows that overlap; see `evaluate.perplexity.score_texts`."""

    argument: ClassVar[Argument | None] = Argument("text", "file to compute the perplexity of", field="text")

    text: str = setting(..., "a text file, which is one document, or JSONL or Parquet with a document `text` per row")
    window: Int | None = setting(None, "tokens that the model reads at once; null takes all that it can", ge=1)
    stride: Int | None = setting(None, "tokens scored by each window after the first; null takes half the window", ge=1)

    @classmethod
    def from_argument(cls, value: str) -> Iterator[Sources]:
        """Yield the settings for a file that exists."""
        if not Path(value).is_file() and not glob.has_magic(value):
            raise UserError(f"eval: text={value}: there is no such file")
        yield Sources.of_command_line({"text": str(Path(value))})

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a model that is not a decoder."""
        if model.family != "decoder":
            yield f"perplexity of a text is for decoders; this model is of family {model.family}"
        yield from window_problems("perplexity", self.window, model)
        window = self.window or model.max_length
        if window is not None and self.stride is not None and self.stride > window:
            yield f"perplexity: stride {self.stride} is larger than the window, {window}"

    def prepare(self, model: ModelConfig) -> None:
        """Check that the file exists."""
        if not Path(self.text).is_file():
            raise UserError(f"{self.text}: there is no such text file")

    def fingerprint(self) -> str:
        """Return a hash of the file."""
        from t5x_lite.data.files import hash_files

        return hash_files([self.text], "perplexity.text")

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return the names that `evaluate.perplexity.score_texts` gives."""
        return [f"eval/text/{name}" for name in SCORES]

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Score the file."""
        from t5x_lite.evaluate.perplexity import score_file

        scores = score_file(model, Path(self.text), self.window, self.stride)
        return Evaluation(
            metrics={f"eval/text/{name}": score for name, score in scores.items()},
            summary=f"perplexity {scores['perplexity']:.2f} of {self.text}",
        )
