"""Cloze tasks: a pattern makes a text with a gap, and a word for each label may fill it (Schick & Schütze 2021)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from t5x_lite.evaluate.demonstrations import DEMONSTRATIONS, Demonstrations, Random
from t5x_lite.evaluate.evaluators.evaluator import Argument, EvaluatedRun, Evaluation, Evaluator, token_problems
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, OneOf, Sources, Strings, read, setting, validate

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel

MASK_PLACE = "{mask}"
COLUMN = re.compile(r"\{([^{}]+)\}")


class Cloze(Evaluator):
    """Accuracy of labels that are predicted by filling a gap; see `evaluate.cloze`. Answers go to RUN/eval/STEP."""

    argument: ClassVar[Argument | None] = Argument("cloze", "YAML file of a cloze task: files, pattern and verbalizer")

    name: str = setting("cloze", "name in metrics and files", min_length=1)
    files: Strings = setting(
        ..., "TSV, CSV, JSONL or Parquet files of labelled records, or globs of them", min_length=1
    )
    columns: Strings = setting((), "names of the columns of TSV or CSV files without a header")
    label: str = setting("label", "column of the label")
    pattern: str = setting(
        ..., "text with a gap: columns in braces, and {mask} once", source="Schick & Schütze 2021, §3.1"
    )
    verbalizer: Mapping[str, str] = setting(
        ..., "label → word that fills the gap, one token of the vocabulary", min_length=2
    )
    limit: Int | None = setting(None, "most records, the first ones; null takes all", ge=1)
    num_fewshot: Int = setting(0, "demonstrations before each text: filled patterns of other records", ge=0)
    demonstrations: Annotated[Demonstrations, OneOf(DEMONSTRATIONS)] = setting(
        Random(), "how demonstrations are chosen"
    )
    demonstration_files: Strings = setting((), "files of their records, as `files`; empty takes those of `files`")
    separator: str = setting(" ", "text between demonstrations")
    seed: Int = setting(1234, "seed of the choice of demonstrations", ge=0)

    @classmethod
    def from_argument(cls, value: str) -> Iterator[Sources]:
        """Yield the settings in a YAML file."""
        yield read(cls, Path(value))

    def problems(self) -> Iterator[str]:
        """Yield an error for a pattern without a gap or a column, and for labels with the same word."""
        if self.pattern.count(MASK_PLACE) != 1:
            yield f"pattern needs {{mask}} once, found {self.pattern!r}"
        elif not self.fields:
            yield f"pattern needs a column in braces, such as {{sentence}}, found {self.pattern!r}"
        if len(set(self.verbalizer.values())) < len(self.verbalizer):
            yield "verbalizer: two labels have the same word"

    @property
    def fields(self) -> list[str]:
        """The columns that the pattern names."""
        return [name for name in COLUMN.findall(self.pattern) if name != "mask"]

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a decoder, which fills no gaps, and for a model that predicts no tokens."""
        if model.family == "decoder":
            yield "cloze tasks are for models that fill gaps, encoders and encoder_decoders; use few_shot for a decoder"
        yield from token_problems("cloze tasks", model)
        yield from self.demonstrations.model_problems(model)

    def prepare(self, model: ModelConfig) -> None:
        """Read the records once."""
        from t5x_lite.evaluate.cloze import read_cloze, read_examples

        read_examples(self, read_cloze(self))

    def fingerprint(self) -> str:
        """Return a hash of the files."""
        from t5x_lite.data.files import hash_files

        return hash_files((*self.files, *self.demonstration_files), "cloze.files")

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return the names of all metrics of examples."""
        from t5x_lite.evaluate.example_scores import EXAMPLE_METRICS

        return [f"eval/{self.name}/{metric}" for metric in EXAMPLE_METRICS]

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Fill the gaps."""
        from t5x_lite.evaluate.cloze import evaluate_cloze, read_cloze
        from t5x_lite.evaluate.example_scores import compute_metrics, gather_scores
        from t5x_lite.evaluate.scores_file import save_samples, save_scores

        answers = evaluate_cloze(model, self, read_cloze(self))
        examples = [answer.scores for answer in answers]
        values = compute_metrics(gather_scores(examples))
        metrics = {f"eval/{self.name}/{name}": value for name, value in values.items()}
        folder = model.run.results_folder(model.step)
        save_samples(folder, {self.name: [answer.as_json() for answer in answers]})
        save_scores(folder, metrics)
        text = f"{self.name} {values['accuracy']:.1%} of {len(answers)} gaps"
        return Evaluation(metrics, text, examples={self.name: examples})


def load_cloze(path: Path) -> Cloze:
    """Read a cloze task from a YAML file.

    Raises:
        UserError: the file cannot be read, or a setting is wrong.
    """
    return validate(Cloze, read(Cloze, path))
