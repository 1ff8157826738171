"""Chat templates: Jinja programs that write a conversation as text (`chat_template` of Hugging Face tokenizers).

The environment is that of Transformers (`apply_chat_template`), so that a template renders the same text in both.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, TypeAlias

from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.tokenizer_settings import CHAT_TEMPLATE, SPECIAL_TOKEN_KEYS, token_name
from t5x_lite.errors import UserError, one_line
from t5x_lite.extras import require_library

Message: TypeAlias = Mapping[str, Any]
"""A turn of a conversation: `role`, `content`, and what else the template reads, such as `tool_calls`."""
Span: TypeAlias = tuple[int, int]
"""Start and stop of some characters of a text."""

ROLES = ("system", "developer", "user", "assistant", "tool")
BEGIN = "\ufdd0"
"""Noncharacter of Unicode that marks where an assistant turn begins while a template is rendered."""
END = "\ufdd1"
"""Noncharacter of Unicode that marks where an assistant turn ends."""
GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text.

    Attributes:
        text: what the template writes.
        assistant: the characters that the assistant wrote, one span for each of its turns.
    """

    text: str
    assistant: tuple[Span, ...]


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja template.
        variables: names that the template may use beside the messages, such as `bos_token`.
        date: what `strftime_now` formats; None is the time of rendering.

    Attributes:
        marks_generation: the template marks assistant turns by `{% generation %}` and `{% endgeneration %}`.

    Raises:
        UserError: Jinja is not installed, or the template has a syntax error.
    """

    def __init__(self, source: str, variables: Mapping[str, str], date: datetime | None = None) -> None:
        require_library("a chat template", "jinja2", "chat")
        import jinja2

        self.source = source
        self.marks_generation = GENERATION_TAG.search(source) is not None
        self._variables = dict(variables)
        self._date = date
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"chat template: {_describe(error)}") from None

    def __reduce__(self) -> tuple[type["ChatTemplate"], tuple[object, ...]]:
        return type(self), (self.source, self._variables, self._date)

    @property
    def fingerprint(self) -> str:
        """A hash that differs between templates that could write different texts."""
        content: list[object] = [self.source, self._variables]
        if self._date is not None and "strftime_now" in self.source:
            content.append(self._date.isoformat())
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def render(self, messages: Sequence[Message], tools: object = None, *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation.

        Args:
            messages: the turns.
            tools: descriptions of the functions that the assistant may call.
            add_generation_prompt: end with the beginning of the next assistant turn.

        Raises:
            ValueError: the template fails, or refuses the conversation.
        """
        text = self._render(messages, tools, add_generation_prompt)
        return text.replace(BEGIN, "").replace(END, "")

    def render_turns(self, messages: Sequence[Message], tools: object = None) -> RenderedChat:
        """Return the text of a conversation, and which of its characters the assistant wrote.

        These are what `{% generation %}` encloses. Without it an assistant turn is what the text with the turn has more
        than the text of the turns before it, which ends with the beginning of an assistant turn
        (`add_generation_prompt`).

        Raises:
            ValueError: the template fails or refuses the conversation; or it has no `{% generation %}` and writes a
                turn differently once others follow.
        """
        if self.marks_generation:
            return _unmark(self._render(messages, tools, add_generation_prompt=False))
        text = self.render(messages, tools)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], tools, add_generation_prompt=True)
            after = self.render(messages[: number + 1], tools)
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(
                    f"the chat template writes message {number + 1} differently once others follow, so its place is "
                    "unknown; enclose assistant turns in {% generation %} … {% endgeneration %} in data.chat_template"
                )
            spans.append((len(before), len(after)))
        return RenderedChat(text, tuple(spans))

    def _render(self, messages: Sequence[Message], tools: object, add_generation_prompt: bool) -> str:
        """Return the text with `BEGIN` and `END` around what `{% generation %}` encloses."""
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=self._format_date,
                **self._variables,
            )
        except Exception as error:  # Jinja's errors, and whatever an operation in the template raises
            raise ValueError(f"the chat template fails: {_describe(error)}") from None

    def _format_date(self, pattern: str) -> str:
        return (self._date or datetime.now()).strftime(pattern)


def template_of(tokenizer: Tokenizer, date: datetime | None = None) -> ChatTemplate | None:
    """Return the chat template of a tokenizer's settings, or None. Of several, it is the one named `default`.

    Args:
        tokenizer: has the template in its settings.
        date: what `strftime_now` formats; None is the time of rendering.

    Raises:
        UserError: Jinja is not installed, or the template has a syntax error.
    """
    source = tokenizer.settings.get(CHAT_TEMPLATE)
    if isinstance(source, list):
        named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    variables = {}
    if tokenizer.eos is not None:
        variables["eos_token"] = tokenizer.piece(tokenizer.eos)
    for key in SPECIAL_TOKEN_KEYS:
        name = token_name(tokenizer.settings.get(key))
        if name is not None:
            variables[key] = name
    return ChatTemplate(source, variables, date)


def check_messages(messages: object) -> list[Message]:
    """Return the messages of a conversation without keys whose value is null, as Transformers does.

    Raises:
        ValueError: they are not a list of objects with a known role and a content.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError("a conversation is a list of one or more messages, each with `role` and `content`")
    return [_check_message(number, message) for number, message in enumerate(messages, start=1)]


def _check_message(number: int, message: object) -> Message:
    if not isinstance(message, dict):
        raise ValueError(f"message {number} is {type(message).__name__}, expected an object with `role` and `content`")
    checked = {key: value for key, value in message.items() if value is not None}
    if "role" not in checked:
        raise ValueError(f"message {number} has no `role` (found {', '.join(map(str, message)) or 'nothing'})")
    if checked["role"] not in ROLES:
        raise ValueError(f"message {number} has the role {checked['role']!r}; the roles are {', '.join(ROLES)}")
    if "content" not in checked and "tool_calls" not in checked:
        raise ValueError(f"message {number} has no `content` (found {', '.join(map(str, message))})")
    content = str(checked.get("content", ""))
    if BEGIN in content or END in content:
        raise ValueError(f"message {number} holds U+FDD0 or U+FDD1, which are not characters; remove them")
    return checked


def _unmark(marked: str) -> RenderedChat:
    """Remove the marks from a text, and return the spans between them."""
    pieces = re.split(f"([{BEGIN}{END}])", marked)
    length = 0
    spans = []
    begin = 0
    for piece in pieces:
        if piece == BEGIN:
            begin = length
        elif piece == END:
            spans.append((begin, length))
        else:
            length += len(piece)
    return RenderedChat(marked.replace(BEGIN, "").replace(END, ""), tuple(spans))


def _describe(error: Exception) -> str:
    """Return an error of a template in one line."""
    reason = one_line(error)
    line = getattr(error, "lineno", None)
    if line is not None:
        return f"line {line}: {reason}"
    return reason


def _environment() -> Any:
    """Return the Jinja environment of chat templates: Transformers' filters, functions and tags, in a sandbox."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """The tag `{% generation %}`, which encloses what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012 - Jinja declares it as an attribute of instances

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Callable[[], str]) -> str:
            return BEGIN + caller() + END

    class PublicNamespace(Namespace):
        """A namespace without attributes that begin with an underscore, which lead to Python's internals."""

        def __init__(*args: Any, **attributes: Any) -> None:
            values = dict(*args[1:], **attributes)
            for name in values:
                _check_public(name)
            Namespace.__init__(args[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_public(name)
            super().__setitem__(name, value)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    # Jinja's own two give a template ways out of the sandbox.
    environment.globals["dict"] = _make_dict
    environment.globals["namespace"] = PublicNamespace
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without the HTML escapes of Jinja's filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _make_dict(*args: Any, **values: Any) -> dict[Any, Any]:
    return dict(*args, **values)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise ValueError(f"a namespace cannot have the attribute {name!r}; rename it")
