"""Labels predicted by filling a gap: the label whose word is most likely there (Schick & Schütze 2021, §3.1)."""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from t5x_lite.data.files import match_files
from t5x_lite.data.record_files import read_record_file
from t5x_lite.data.record_text import read_column
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.evaluate.demonstrations.demonstrations import Example, ExampleSets, check_pool
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.evaluators.cloze import MASK_PLACE, Cloze
from t5x_lite.evaluate.example_scores import Scores, score_choices
from t5x_lite.evaluate.masked_tokens import TokenMasker, build_token_masker
from t5x_lite.models.spec import ModelSpec
from t5x_lite.parallel.batched_function import Features


@dataclass(frozen=True)
class ClozeText:
    """A record as a text with a gap.

    Attributes:
        text: the filled pattern; `{mask}` marks the gap.
        label: the right label.
    """

    text: str
    label: str


@dataclass(frozen=True)
class ClozeAnswer:
    """The answer to a record.

    Attributes:
        text: see `ClozeText`; after its demonstrations.
        prediction: the label with the highest probability.
        reference: the right label.
        probabilities: of each label, by a softmax over the words of the labels.
    """

    text: str
    prediction: str
    reference: str
    probabilities: dict[str, float]

    def as_json(self) -> dict[str, object]:
        """Return the line of the file of answers."""
        return {**asdict(self), "scores": self.scores}

    @property
    def scores(self) -> Scores:
        """The scores of the example, of which the answer is the word of a label."""
        right = list(self.probabilities).index(self.reference)
        with np.errstate(divide="ignore"):
            log_likelihoods = np.log(list(self.probabilities.values()))
        return score_choices(log_likelihoods.tolist(), right)


def read_cloze(task: Cloze) -> list[ClozeText]:
    """Read the records of a cloze task and fill its pattern.

    Raises:
        UserError: a file that cannot be read, a missing column, a label without a word, or no records; names the file
            and the line.
    """
    return _read_texts(task, task.files)[: task.limit]


def read_examples(task: Cloze, texts: Sequence[ClozeText]) -> ExampleSets:
    """Return the filled patterns of texts, and those that their demonstrations are chosen from.

    Raises:
        UserError: see `read_cloze`; or there are too few demonstrations.
    """
    pool: list[ClozeText] = []
    if task.num_fewshot:
        pool = _read_texts(task, task.demonstration_files or task.files)
    examples = ExampleSets(
        [Example(text.text, text.label) for text in texts], [Example(text.text, text.label) for text in pool]
    )
    check_pool(examples, task.num_fewshot)
    return examples


def add_demonstrations(model: EvaluationModel, task: Cloze, texts: Sequence[ClozeText]) -> list[ClozeText]:
    """Put demonstrations before each text: others with their label's word in the gap (Gao et al. 2021, §6)."""
    if not task.num_fewshot:
        return list(texts)
    examples = read_examples(task, texts)
    chosen = task.demonstrations.choose(examples, task.num_fewshot, task.seed, model)
    prompts = []
    for text, indices in zip(texts, chosen, strict=True):
        parts = []
        for index in indices:
            example = examples.pool[index]
            parts.append(example.text.replace(MASK_PLACE, task.verbalizer[example.answer]))
        prompts.append(ClozeText(task.separator.join([*parts, text.text]), text.label))
    return prompts


def evaluate_cloze(model: EvaluationModel, task: Cloze, texts: Sequence[ClozeText]) -> list[ClozeAnswer]:
    """Answer every record.

    Raises:
        UserError: the model fills no gaps, the tokenizer has no token for one, or a word of a label is not one token.
    """
    task.check_model(model.config.model)
    masker = build_token_masker(model.config, model.example_context)
    labels = list(task.verbalizer)
    texts = add_demonstrations(model, task, texts)
    filled = [fill_gap(model.tokenizer, texts[0].text, task.verbalizer[label]) for label in labels]
    words = tuple([int(tokens[place]) for tokens, place in filled])
    rows = _encode(model, masker, texts, task.verbalizer[labels[0]], words[0])
    results = model.apply_to_rows(_word_probabilities, rows, "filling gaps", masker, words)
    answers = []
    for text, probabilities in zip(texts, results, strict=True):
        named = dict(zip(labels, probabilities.tolist(), strict=True))
        answers.append(ClozeAnswer(text.text, labels[int(probabilities.argmax())], text.label, named))
    return answers


def fill_gap(tokenizer: Tokenizer, text: str, word: str) -> tuple[Int[np.ndarray, "l"], int]:
    """Return the tokens of a text with a word in its gap, and the place of the word's token among them.

    The tokens around the gap are those that the model has learnt around words.

    Raises:
        UserError: the word is not one token there.
    """
    before, _, after = text.partition(MASK_PLACE)
    tokens, characters = tokenizer.encode_placed(f"{before}{word}{after}")
    is_of_word = (characters[:, 0] < len(before) + len(word)) & (characters[:, 1] > len(before))
    (places,) = np.nonzero(is_of_word)
    if len(places) != 1 or tokens[places[0]] == tokenizer.unk:
        pieces = " ".join(tokenizer.piece(int(token)) for token in tokens[places])
        raise UserError(f"verbalizer: {word!r} is not one token of the vocabulary ({pieces}); choose another word")
    return tokens, int(places[0])


def _read_texts(task: Cloze, files: Sequence[str]) -> list[ClozeText]:
    texts = []
    for pattern in files:
        for path in match_files(pattern, "cloze.files"):
            for location, record in read_record_file(path, task.columns):
                texts.append(_fill_pattern(task, record, location))
    if not texts:
        raise UserError(f"{', '.join(files)}: has no records")
    return texts


def _fill_pattern(task: Cloze, record: object, location: str) -> ClozeText:
    remedy = "set columns, pattern or label"
    values = {column: _read_text(record, column, location, remedy) for column in task.fields}
    label = _read_text(record, task.label, location, remedy)
    if label not in task.verbalizer:
        raise UserError(f"{location}: label {label!r} has no word; verbalizer has {', '.join(task.verbalizer)}")

    def fill(place: re.Match[str]) -> str:
        # A text that says {mask} itself must not make a second gap.
        return values[place[1]].replace(MASK_PLACE, "{ mask }")

    # In one pass: a text may say the name of another column in braces.
    places = "|".join(map(re.escape, task.fields))
    return ClozeText(re.sub(rf"{{({places})}}", fill, task.pattern), label)


def _read_text(record: object, column: str, location: str, remedy: str) -> str:
    value = read_column(record, column, location, remedy)
    if value is None:
        raise UserError(f"{location}: column {column!r} is null; remove the record")
    return str(value)


def _encode(
    model: EvaluationModel, masker: TokenMasker, texts: Sequence[ClozeText], word: str, word_token: int
) -> list[Features]:
    """Return the rows of texts with their gaps masked. One that is too long loses the tokens far from the gap.

    Args:
        model: the model.
        masker: masks a token of a text.
        texts: the texts.
        word: a word that fits into each gap.
        word_token: its token in the first text.

    Raises:
        UserError: the word is another token in one of the texts.
    """
    room = model.window - masker.template.size(1)
    rows = []
    truncated = 0
    for text in texts:
        tokens, place = fill_gap(model.tokenizer, text.text, word)
        if tokens[place] != word_token:
            raise UserError(
                f"cloze: in {text.text!r} {word!r} is another token than in the first text; let the pattern have the "
                f"same characters before and after {MASK_PLACE} in every text"
            )
        tokens[place] = masker.mask_token
        if len(tokens) > room:
            truncated += 1
            tokens, place = _cut_around(tokens, place, room)
        rows.append(masker.features(tokens, slice(place, place + 1)))
    if truncated:
        logging.warning("%d of %d texts lost tokens far from the gap", truncated, len(texts))
    return rows


def _cut_around(tokens: Int[np.ndarray, "l"], place: int, room: int) -> tuple[Int[np.ndarray, "_"], int]:
    """Return `room` tokens, those nearest to a place, and the place in them."""
    start = min(max(place - room // 2, 0), len(tokens) - room)
    return tokens[start : start + room], place - start


def _word_probabilities(
    spec: ModelSpec, masker: TokenMasker, words: tuple[int, ...], params: PyTree[Array], batch: dict[str, Array]
) -> Float[Array, "b labels"]:
    """Return the probability of each label's word in the gap, among these words."""
    logits = masker.logits(spec.model(params), batch)[:, 0, np.array(words)]
    return jax.nn.softmax(logits, axis=-1)
