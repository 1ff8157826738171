"""Conversations as documents: rendered by the tokenizer's chat template, with the assistant's turns marked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int32, Int64

from t5x_lite.data import unit_readers
from t5x_lite.data.chat_template import Message, check_messages, template_of
from t5x_lite.data.record_text import missing_column
from t5x_lite.data.sources import Unit
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.tokenizer_settings import CHAT_TEMPLATE
from t5x_lite.errors import UserError

TRAINING_DATE = datetime(2024, 7, 26)
"""The date in training data, on whatever day it is made. The templates of Llama 3 write it where there is no clock."""


@dataclass(frozen=True)
class Conversation:
    """The tokens of a conversation.

    Attributes:
        text: what the chat template writes.
        tokens: its ids.
        assistant: marks the ids that stand for what the assistant wrote.
    """

    text: str
    tokens: Int32[np.ndarray, "l"]
    assistant: Bool[np.ndarray, "l"]

    @property
    def part_lengths(self) -> Int64[np.ndarray, "parts"]:
        """Lengths of the stretches that others and the assistant wrote in turn: parts 1, 3, … are the assistant's.

        The first token, which is never predicted, counts as part 0.
        """
        is_assistant = self.assistant.copy()
        is_assistant[:1] = False
        borders = np.flatnonzero(np.diff(is_assistant)) + 1
        return np.diff(borders, prepend=0, append=len(is_assistant))


class ChatEncoder:
    """Writes conversations as token ids.

    The names of special tokens in a text stand for these tokens, as in Transformers.

    Args:
        tokenizer: has the chat template in its settings.
        date: the date for templates that write one: `TRAINING_DATE` for training data; None is today.

    Raises:
        UserError: the tokenizer has no chat template, or one with a syntax error.
    """

    def __init__(self, tokenizer: Tokenizer, date: datetime | None = None) -> None:
        template = template_of(tokenizer, date)
        if template is None:
            raise UserError(
                f"the tokenizer has no chat template ({CHAT_TEMPLATE} in tokenizer_config.json); name a Jinja file in "
                "data.chat_template"
            )
        self.template = template
        self._backend = tokenizer.to_tokenizers()

    def encode(self, messages: Sequence[Message], tools: object = None) -> Conversation:
        """Return a conversation with its assistant turns marked.

        Raises:
            ValueError: the template fails or refuses the conversation, or there is no assistant turn, or it writes
                nothing of those.
        """
        if not any(message["role"] == "assistant" for message in messages):
            raise ValueError("the conversation has no assistant turn, so nothing is learnt from it; remove it")
        chat = self.template.render_turns(messages, tools)
        encoding = self._backend.encode(chat.text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        is_assistant = np.zeros(len(offsets), bool)
        for start, stop in chat.assistant:
            is_assistant |= (offsets[:, 0] < stop) & (offsets[:, 1] > start)
        if not is_assistant.any():
            raise ValueError(
                "the chat template writes nothing of the assistant's turns, so nothing is learnt from them"
            )
        return Conversation(chat.text, np.array(encoding.ids, np.int32), is_assistant)

    def encode_answer(
        self, prompt: Sequence[Message], answer: Sequence[Message]
    ) -> tuple[Int32[np.ndarray, "_"], Int32[np.ndarray, "_"]]:
        """Return the ids of a prompt and of its answer; see `AnswerEncoder`."""
        text = self.template.render([*prompt, *answer])
        prompt_text = self.template.render(prompt, add_generation_prompt=True)
        if not text.startswith(prompt_text):
            raise ValueError("the chat template writes the prompt differently once the answer follows")
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        is_prompt = np.array(encoding.offsets, np.int64).reshape(-1, 2)[:, 0] < len(prompt_text)
        return ids[is_prompt], ids[~is_prompt]

    def encode_prompt(self, messages: Sequence[Message], tools: object = None) -> Int32[np.ndarray, "l"]:
        """Return the ids of a conversation that the assistant is to continue.

        Raises:
            ValueError: the template fails or refuses the conversation.
        """
        text = self.template.render(messages, tools, add_generation_prompt=True)
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)


class AnswerEncoder:
    """Writes prompts and their answers of training data as token ids, both given as messages.

    The chat template is compiled at the first use, because most tokenizers have none.

    Args:
        tokenizer: has the chat template in its settings.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(
        self, prompt: Sequence[object], answer: Sequence[object]
    ) -> tuple[Int32[np.ndarray, "_"], Int32[np.ndarray, "_"]]:
        """Return the ids of the prompt, with the beginning of the assistant's turn, and those of the answer.

        Raises:
            UserError: the tokenizer has no chat template.
            ValueError: they are not messages, or the template refuses them, or writes the prompt differently once the
                answer follows.
        """
        return self._encoder.encode_answer(check_messages(prompt), check_messages(answer))

    @cached_property
    def _encoder(self) -> ChatEncoder:
        return ChatEncoder(self._tokenizer, TRAINING_DATE)

    def __reduce__(self) -> tuple[type["AnswerEncoder"], tuple[object, ...]]:
        return type(self), (self._tokenizer,)


def read_conversations(unit: Unit, tokenizer: Tokenizer) -> Iterator[Conversation]:
    """Yield the conversations of a unit, in order.

    A record has its messages in the field of the unit, and may have descriptions of functions in `tools`.

    Raises:
        UserError: a record that cannot be read, that the template refuses, or without an assistant turn; names the file
            and the line.
    """
    encoder = ChatEncoder(tokenizer, TRAINING_DATE)
    (field,) = unit.field
    for describe_location, record in unit_readers.records(unit):
        try:
            if not isinstance(record, Mapping) or field not in record:
                raise ValueError(f"{missing_column(field, record, 'field')}; set data.field")
            yield encoder.encode(check_messages(record[field]), record.get("tools"))
        except ValueError as error:
            raise UserError(f"{describe_location()}: {error}") from None
