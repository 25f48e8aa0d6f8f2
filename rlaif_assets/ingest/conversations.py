"""Transcripts and message lists, and the rules that make them prompts. Shared by the prompt and comparison readers.

A transcript is hh-rlhf's form, "\\n\\nHuman: ...\\n\\nAssistant: ...". The rules, in order:
1. A conversation is split at its last assistant turn: what precedes is the context, the turn itself is the response.
   One that ends in a user turn is all context.
2. Texts are stripped. Empty turns of the history are dropped, neighbouring turns of one role are joined by a blank
   line. An empty last user turn, a context without a user turn at its beginning (after an optional system message) or
   at its end, text with a NUL or a lone surrogate: the row is refused.
3. A context longer than `max_characters` (contents only) loses its first turns, a user turn with the replies to it at a
   time; the system message stays. Where the last user turn (with the system message) is too long alone: refused.
"""

import re
from typing import Any

from rlaif_assets.ingest.errors import RowError
from rlaif_assets.records import Message

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    return text.startswith("\n\nHuman:") or (text.lstrip().startswith("Human:") and "\n\nAssistant:" in text)


def conversation(value: Any) -> list[Message]:
    """Messages of a transcript or of a list of {role, content}. Raises RowError."""
    if isinstance(value, str):
        return _transcript(value)
    if not isinstance(value, list) or not value:
        raise RowError(f"expected a transcript or a list of messages, found {_name(value)}")
    return [_message(item, position) for position, item in enumerate(value, 1)]


def user_message(text: str) -> Message:
    return {"role": "user", "content": text}


def split_response(messages: list[Message]) -> tuple[list[Message], str | None]:
    """(context, response) by rule 1; the response is None where the conversation ends in a user turn."""
    if messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], messages[-1]["content"].strip()


def normalise(context: list[Message]) -> list[Message]:
    """The context by rule 2. Raises RowError."""
    if not context or context[-1]["role"] != "user":
        raise RowError("the last assistant turn does not follow a user turn")
    if not context[-1]["content"].strip():
        raise RowError("the last user turn is empty")
    messages: list[Message] = []
    for message in context:
        text = checked(message["content"]).strip()
        if not text:
            continue
        if messages and messages[-1]["role"] == message["role"]:
            text = messages.pop()["content"] + "\n\n" + text
        messages.append({"role": message["role"], "content": text})
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise RowError("a system message stands after the first turn")
    if roles[roles[0] == "system"] != "user":
        raise RowError("the conversation does not begin with a user turn")
    return messages


def fit(messages: list[Message], max_characters: int) -> tuple[Message, ...]:
    """A normalised context cut by rule 3. Raises RowError."""
    system = messages[: messages[0]["role"] == "system"]
    history = messages[len(system) :]
    while sum(len(message["content"]) for message in (*system, *history)) > max_characters:
        later_users = [i for i, message in enumerate(history) if i and message["role"] == "user"]
        if not later_users:
            length = sum(len(message["content"]) for message in (*system, *history))
            raise RowError(f"too long: the last user turn alone has {length} characters, the limit is {max_characters}")
        history = history[later_users[0] :]
    return (*system, *history)


def checked(text: str) -> str:
    """The text itself. Raises RowError where it cannot be stored."""
    if "\0" in text:
        raise RowError("the text contains a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RowError("the text contains a lone surrogate, which is no Unicode character")
    return text


def _transcript(text: str) -> list[Message]:
    before, *turns = _TURN.split(text)
    if before.strip() or not turns:
        raise RowError("not a transcript: it does not begin with 'Human:' or 'Assistant:'")
    return [_turn(_ROLES[name], content) for name, content in zip(turns[::2], turns[1::2], strict=True)]


def _turn(role: Any, content: str) -> Message:
    return {"role": role, "content": content}


def _message(item: Any, position: int) -> Message:
    if not isinstance(item, dict) or not isinstance(item.get("content"), str):
        raise RowError(f"message {position} is not an object with role and content")
    if item.get("role") not in ("system", "user", "assistant"):
        raise RowError(f"message {position} has the role {item.get('role')!r}; known are system, user, assistant")
    return _turn(item["role"], item["content"])


def _name(value: Any) -> str:
    return "an empty list" if value == [] else type(value).__name__
