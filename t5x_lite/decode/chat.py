"""Conversations as prompts: rendered by the tokenizer's chat template, for the assistant to continue."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from t5x_lite.data import sources, unit_readers
from t5x_lite.data.chat_template import Message, check_messages
from t5x_lite.data.config import SourceConfig
from t5x_lite.data.conversations import ChatEncoder
from t5x_lite.data.record_text import missing_column
from t5x_lite.data.tokenizer_settings import CHAT_TEMPLATE
from t5x_lite.decode.generate import TokenIds
from t5x_lite.decode.generation_model import GenerationModel
from t5x_lite.errors import UserError

Chat: TypeAlias = Sequence[Message]
"""The turns so far."""


def read_chats(path: Path) -> list[Chat]:
    """Read conversations, one in the field `messages` of each record of a JSONL or Parquet file.

    Raises:
        UserError: a record that is not a conversation, or that ends with the assistant's turn; names file and line.
    """
    if not path.is_file():
        raise UserError(f"--chat-file {path}: there is no such file")
    source = SourceConfig(files=(str(path),), field=("messages",))
    chats: list[Chat] = []
    for unit in sources.units(source):
        for describe_location, record in unit_readers.records(unit):
            try:
                if not isinstance(record, Mapping) or "messages" not in record:
                    raise ValueError(missing_column("messages", record, "field"))
                chats.append(check_chat(record["messages"]))
            except ValueError as error:
                raise UserError(f"{describe_location()}: {error}") from None
    if not chats:
        raise UserError(f"{path}: has no conversations")
    return chats


def user_chats(texts: Sequence[str]) -> list[Chat]:
    """Return a conversation for each text, the first message of a user."""
    return [[{"role": "user", "content": text}] for text in texts]


def check_chat(messages: object) -> Chat:
    """Return the messages of a conversation that the assistant can continue.

    Raises:
        ValueError: they are no conversation, or end with the assistant's turn.
    """
    checked = check_messages(messages)
    if checked[-1]["role"] == "assistant":
        raise ValueError("the conversation ends with the assistant's turn; end it with the turn to answer")
    return checked


def chat_prompts(model: GenerationModel, chats: Sequence[Chat]) -> list[TokenIds]:
    """Return the ids of conversations with the beginning of the assistant's next turn, after the virtual tokens of a
    run.

    Raises:
        UserError: the model is not a decoder; the tokenizer has no chat template, or the template refuses a
            conversation.
    """
    family = model.config.model.family
    if family != "decoder":
        raise UserError(f"a chat needs a decoder, and this model is of family {family}")
    if CHAT_TEMPLATE not in model.tokenizer.settings:
        raise UserError(
            "generate: the run's tokenizer has no chat template; train the run on conversations "
            "(configs/finetune/chat.yaml), or let it continue a text (`generate`, --prompt)"
        )
    encoder = ChatEncoder(model.tokenizer)
    prefix = model.generator.prompt_prefix
    virtual_tokens = prefix[prefix < 0]
    prompts = []
    for number, chat in enumerate(chats, start=1):
        try:
            prompts.append(np.concatenate([virtual_tokens, encoder.encode_prompt(chat)]))
        except ValueError as error:
            raise UserError(f"conversation {number}: {error}") from None
    return prompts
