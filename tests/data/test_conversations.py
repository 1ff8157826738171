"""Conversations: the texts and the masks of chat templates against Transformers, and bad input."""

import json
import pickle
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5x_lite.data import prepare, tokenizer_files, vocabulary
from t5x_lite.data.chat_template import ChatTemplate, check_messages
from t5x_lite.data.config import DataConfig
from t5x_lite.data.conversations import AnswerEncoder, ChatEncoder, read_conversations
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.huggingface_tokenizer import HuggingFace
from t5x_lite.data.pipeline import ExampleBuilder
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_store import open_rows, prepare_rows
from t5x_lite.data.sources import units
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.tokenizer_config import ByteBPE
from t5x_lite.data.tokenizer_settings import CHAT_TEMPLATE
from t5x_lite.errors import UserError
from t5x_lite.objectives import ExampleContext
from t5x_lite.objectives.conversation import Conversation
from t5x_lite.objectives.objective import TokenRow
from tests.conftest import REPOSITORY
from tests.objectives.vocabulary import context

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, as the tokenizers of many models have it: without `{% generation %}`."""
MARKED_CHATML = """{% for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}{% generation %}{{ message.content | trim }}<|im_end|>{% endgeneration %}
        {{- '\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{% endfor %}
"""
TULU = (REPOSITORY / "configs/chat/tulu.jinja").read_text()
MESSAGES = [
    {"role": "system", "content": "Answer in one word.", "name": None},
    {"role": "user", "content": "What is the capital of Perú? \U0001f600"},
    {"role": "assistant", "content": " Lima \U0001f600 "},
    {"role": "user", "content": "<|im_end|> and of Norway?"},
    {"role": "assistant", "content": "Oslo,\n  the city <of> 'fjords' & trolls."},
]


@pytest.fixture(scope="module")
def tokenizer() -> HuggingFace:
    controls = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    texts = [" ".join(message["content"] or "" for message in MESSAGES) * 3]
    config = ByteBPE(vocab=320, controls=controls)
    return vocabulary._train_kind(config, texts)  # type: ignore[return-value]


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    copy = HuggingFace(tokenizer.file_bytes, {**tokenizer.settings, CHAT_TEMPLATE: template})
    copy.eos = tokenizer.eos
    return copy


def transformers_tokenizer(tokenizer: Tokenizer, template: str) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.to_tokenizers(), chat_template=template, eos_token="<|endoftext|>"
    )


@pytest.mark.parametrize("template", [MARKED_CHATML, TULU], ids=["chatml", "tulu"])
def test_tokens_and_masks_equal_transformers(tokenizer: Tokenizer, template: str) -> None:
    theirs = transformers_tokenizer(tokenizer, template).apply_chat_template(
        MESSAGES, return_assistant_tokens_mask=True, return_dict=True
    )
    ours = ChatEncoder(with_template(tokenizer, template)).encode(check_messages(MESSAGES))
    assert ours.tokens.tolist() == theirs["input_ids"]
    assert ours.assistant.astype(int).tolist() == theirs["assistant_masks"]
    assert 0 < ours.assistant.sum() < len(ours.tokens)


@pytest.mark.parametrize("template", [CHATML, TULU], ids=["chatml", "tulu"])
def test_prompts_equal_transformers(tokenizer: Tokenizer, template: str) -> None:
    theirs = transformers_tokenizer(tokenizer, template)
    expected = theirs.apply_chat_template(MESSAGES[:4], add_generation_prompt=True, return_dict=False)
    encoder = ChatEncoder(with_template(tokenizer, template))
    assert encoder.encode_prompt(check_messages(MESSAGES[:4])).tolist() == expected


def test_without_generation_tags_a_turn_is_the_difference_to_its_prompt(tokenizer: Tokenizer) -> None:
    chat = ChatTemplate(CHATML, {}).render_turns(MESSAGES)
    turns = [chat.text[start:stop] for start, stop in chat.assistant]
    assert turns == [" Lima \U0001f600 <|im_end|>\n", MESSAGES[4]["content"] + "<|im_end|>\n"]

    theirs = transformers_tokenizer(tokenizer, CHATML)
    expected = np.zeros(0, int)
    for number in (2, 4):
        before = theirs.apply_chat_template(MESSAGES[:number], add_generation_prompt=True, return_dict=False)
        after = theirs.apply_chat_template(MESSAGES[: number + 1], return_dict=False)
        expected = np.pad(expected, (0, len(before) - len(expected)))
        expected = np.pad(expected, (0, len(after) - len(expected)), constant_values=1)
    ours = ChatEncoder(with_template(tokenizer, CHATML)).encode(check_messages(MESSAGES))
    assert ours.assistant.astype(int).tolist() == expected.tolist()


def test_parts_alternate_between_others_and_the_assistant(tokenizer: Tokenizer) -> None:
    conversation = ChatEncoder(with_template(tokenizer, MARKED_CHATML)).encode(check_messages(MESSAGES))
    lengths = conversation.part_lengths
    parts = np.repeat(np.arange(len(lengths)), lengths)
    assert (lengths > 0).all()
    assert (parts % 2 == 1).tolist() == conversation.assistant.tolist()


def test_a_template_that_rewrites_earlier_turns_needs_generation_tags() -> None:
    rewriting = "{% for m in messages %}{{ m.role }}:{% if loop.last %}{{ m.content }}{% endif %};{% endfor %}"
    with pytest.raises(ValueError, match=r"message 3 differently once others follow.*\{% generation %\}"):
        ChatTemplate(rewriting, {}).render_turns(MESSAGES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages.no_method() }}", "the chat template fails: .*no_method"),
        ("{{ raise_exception('roles must alternate') }}", "the chat template fails: roles must alternate"),
        ("{{ messages.append(1) }}", "the chat template fails"),
        ("{{ ''.__class__.__mro__ }}", "the chat template fails: .*unsafe"),
        ("{{ namespace(__class__=1) }}", "the chat template fails"),
        ("{% set n = namespace(a=1) %}{% set n._x = 2 %}", "the chat template fails"),
    ],
)
def test_a_template_that_fails_or_leaves_the_sandbox_is_refused(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(template, {}).render(MESSAGES)


def test_a_syntax_error_names_the_line() -> None:
    with pytest.raises(UserError, match="chat template: line 2"):
        ChatTemplate("{{ messages }}\n{% for %}", {})


GOOD = {"messages": MESSAGES}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": MESSAGES[:2]}, "no assistant turn"),
        ({"messages": [{"role": "gpt", "content": "x"}]}, "message 1 has the role 'gpt'; the roles are system"),
        ({"messages": [{"content": "x"}]}, "message 1 has no `role`"),
        ({"messages": [{"role": "user"}]}, "message 1 has no `content`"),
        ({"messages": []}, "a list of one or more messages"),
        ({"messages": ["x"]}, "message 1 is str"),
        ({"text": "x"}, r"no field 'messages' \(found text\)"),
        ("x", r"no field 'messages' \(found str\)"),
        ({"messages": [{"role": "user", "content": "\ufdd0"}]}, r"message 1 holds U\+FDD0"),
    ],
)
def test_bad_conversations_name_the_file_and_the_line(
    tokenizer: Tokenizer, tmp_path: Path, record: object, message: str
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=rf"chats\.jsonl:2: .*{message}"):
        prepare.prepare_corpus(*corpus_settings(path, tmp_path), with_template(tokenizer, CHATML))


def test_a_template_that_shows_no_answer_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="the chat template writes nothing of the assistant's turns"):
        ChatEncoder(with_template(tokenizer, "hello")).encode(MESSAGES)


def corpus_settings(path: Path, tmp_path: Path) -> tuple[Any, DataConfig]:
    data = DataConfig(
        files=(str(path),),
        field=("messages",),
        parts="turns",
        packing="documents",
        end_of_document=False,
        cache_dir=str(tmp_path / "cache"),
        validation_fraction=0.0,
        prepare_processes=1,
    )
    return data.sources[0], data


DATED = "{{ strftime_now('%Y-%m-%d') }}\n" + CHATML


def test_training_data_has_one_date_and_a_prompt_to_answer_that_of_today(
    tokenizer: HuggingFace, tmp_path: Path
) -> None:
    dated = with_template(tokenizer, DATED)
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    source, _ = corpus_settings(path, tmp_path)
    (conversation,) = read_conversations(units(source)[0], dated)
    assert conversation.text.startswith("2024-07-26\n<|im_start|>")
    prompt, _ = AnswerEncoder(dated)(MESSAGES[:2], MESSAGES[2:3])
    assert tokenizer.decode(prompt.tolist()).startswith("2024-07-26\n")

    days = [date.today()]
    asked = tokenizer.decode(ChatEncoder(dated).encode_prompt(MESSAGES[:2]).tolist())
    days.append(date.today())  # the test may run at midnight
    assert asked.startswith(tuple(f"{day}\n" for day in days))


def test_a_date_is_in_the_fingerprint_of_a_template_that_writes_it() -> None:
    day = datetime(2024, 7, 26)
    assert ChatTemplate(CHATML, {}, day).fingerprint == ChatTemplate(CHATML, {}).fingerprint
    assert ChatTemplate(DATED, {}, day).fingerprint != ChatTemplate(DATED, {}).fingerprint
    copied = pickle.loads(pickle.dumps(ChatTemplate(DATED, {}, day)))
    assert copied.fingerprint == ChatTemplate(DATED, {}, day).fingerprint
    assert copied.render(MESSAGES).startswith("2024-07-26\n")


def test_a_tokenizer_without_a_template_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(UserError, match=r"has no chat template .* data\.chat_template"):
        prepare.prepare_corpus(*corpus_settings(path, tmp_path), tokenizer)


def test_packed_rows_weigh_the_assistants_tokens_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Brute force over the conversations: every assistant token that follows another is a target once."""
    path = tmp_path / "chats.jsonl"
    chats = [[*MESSAGES[:number], {"role": "assistant", "content": f"answer {number}"}] for number in (1, 2, 3, 4)]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    templated = with_template(tokenizer, MARKED_CHATML)
    source, data = corpus_settings(path, tmp_path)
    folder = prepare.prepare_corpus(source, data, templated)
    context = ExampleContext(seq_len=400, vocabulary=templated.vocabulary())
    objective = Conversation()
    rule = RowRule(data, objective, context)
    prepare_rows(folder, rule)
    rows = open_rows(Corpus(folder, "train"), rule)
    assert rows.rows < len(chats)

    learnt = []
    for number in range(rows.rows):
        features = objective.example(rows.read(number), context, np.random.default_rng(0))
        is_weighted = features["loss_weights"] > 0
        for segment in range(1, features["segment_ids"].max() + 1):
            is_target = is_weighted & (features["segment_ids"] == segment)
            learnt.append(tokenizer.to_tokenizers().decode(features["targets"][is_target].tolist(), False))
    expected = []
    for chat in chats:
        turns = [str(message["content"]).strip() for message in chat if message["role"] == "assistant"]
        expected.append("".join(f"{turn}<|im_end|>" for turn in turns))
    assert sorted(learnt) == sorted(expected)


def test_the_template_of_a_folder_is_loaded_and_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    loaded = tokenizer_files.load(tmp_path)
    assert loaded.settings[CHAT_TEMPLATE] == CHATML
    loaded.save(tmp_path / "saved")
    assert tokenizer_files.load(tmp_path / "saved").settings[CHAT_TEMPLATE] == CHATML


@pytest.mark.parametrize("separate_documents", [True, False])
def test_the_assistants_tokens_are_the_targets_wherever_a_row_begins(*, separate_documents: bool) -> None:
    """A row that begins within an answer, and has two conversations: odd parts are the assistant's."""
    parts = np.array([1, 1, 2, 2, 0, 0, 1, 1, 2])
    row = TokenRow(np.arange(10, 19), np.array([1] * 4 + [2] * 5), parts)
    data = DataConfig(parts="turns", packing="stream", end_of_document=False, separate_documents=separate_documents)
    builder = ExampleBuilder(data, Conversation(), context(8))
    weights = builder.build(OneRow(row), 0, (0,))["loss_weights"]  # type: ignore[arg-type]
    border = 4 if separate_documents else None
    expected = [float(part == 1 and number != border) for number, part in enumerate(parts.tolist())][1:]
    assert weights.tolist() == expected


@dataclass
class OneRow:
    """Rows of a corpus that has one."""

    row: TokenRow

    def read(self, _row: int, _phase: int) -> TokenRow:
        return self.row
