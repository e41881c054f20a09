"""Conversations in a row: earlier turns, and which turn shows which image.

In goes a `history` cell (question and answer pairs) or a `messages` cell (roles and contents, as
chat data sets write them, also as `conversations` with `from` and `value`); out come plain turns.
The mark `<image>` in a user's text, or a content part of type image, places an image in that turn.
Left out: pixels (the image column holds them) and tokens (`chat.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saccade.data.samples import DataError
from saccade.data.tables import json_type

IMAGE_MARK = "<image>"
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
         "system": "system"}  # fmt: skip


@dataclass(frozen=True)
class Conversation:
    """Finished turns and the user's current text; `answer` is None when nobody has answered."""

    turns: tuple[tuple[str, str], ...]
    question: str
    answer: str | None


def read_history(cell: Any, *, where: str) -> tuple[tuple[str, str], ...]:
    """Earlier turns from pairs or from objects with `question` and `answer`; none for null."""
    if cell in (None, "", []):
        return ()
    if not isinstance(cell, list | tuple):
        raise _wrong("history", cell, "a list of [question, answer] pairs", where=where)
    turns = []
    for turn in cell:
        pair = (turn.get("question"), turn.get("answer")) if isinstance(turn, dict) else turn
        spoken = [text.strip() for text in pair if isinstance(text, str)] if _sized(pair) else []
        if len(spoken) != 2 or not all(spoken):
            raise _wrong("an earlier turn", turn, "[question, answer], both text", where=where)
        turns.append((spoken[0], spoken[1]))
    return tuple(turns)


def read_messages(cell: Any, *, where: str) -> Conversation:
    """A conversation from messages that alternate between user and assistant.

    A system message is refused, because a model would be trained on words the row's reader drops.
    """
    if not isinstance(cell, list | tuple) or not cell:
        raise _wrong("messages", cell, "a list of messages", where=where)
    spoken: list[str] = []
    for number, message in enumerate(cell):
        role, text = _message(message, where=where)
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise DataError(
                f"message {number + 1} is by {role}, {expected} was to speak",
                where=where,
                fix="let user and assistant take turns, the user first",
            )
        spoken.append(text)
    pairs = tuple(zip(spoken[::2], spoken[1::2], strict=False))
    if len(spoken) % 2:
        return Conversation(pairs, spoken[-1], None)
    question, answer = pairs[-1]
    return Conversation(pairs[:-1], question, answer)


def place_images(
    texts: Sequence[str], *, images: int, where: str
) -> tuple[list[str], tuple[int, ...]]:
    """Take the image marks out of the users' texts; returns them and each image's turn.

    Without any mark, or in a single turn, all images stand at the start (an empty tuple).
    """
    clean = [text.replace(IMAGE_MARK, "").strip() for text in texts]
    if not images:
        return list(texts), ()
    places = [turn for turn, text in enumerate(texts) for _ in range(text.count(IMAGE_MARK))]
    if not places or len(texts) == 1:
        return clean, ()
    if len(places) != images:
        raise DataError(
            f"the conversation marks {len(places)} images ({IMAGE_MARK}) but the row has {images}",
            where=where,
            fix="mark every image once, or none (then all are shown at the start)",
        )
    return clean, tuple(places)


def _sized(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _message(message: Any, *, where: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise _wrong("a message", message, "an object with role and content", where=where)
    name = message.get("role", message.get("from"))
    role = ROLES.get(str(name))
    if role is None:
        raise DataError(f"a message has role {name!r}", where=where, fix="use user and assistant")
    content = message.get("content", message.get("value"))
    text = "".join(map(_part, content)) if isinstance(content, list) else content
    if not isinstance(text, str) or not text.replace(IMAGE_MARK, "").strip():
        raise _wrong(f"a message of the {role}", content, "text", where=where)
    return role, text.strip()


def _part(part: Any) -> str:
    """One part of a message's content as text; images as marks."""
    if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
        return IMAGE_MARK
    return str(part.get("text", "")) if isinstance(part, dict) else str(part)


def _wrong(what: str, value: Any, wanted: str, *, where: str) -> DataError:
    return DataError(
        f"{what} is {json_type(value)}, {wanted} is needed", where=where, fix="correct the row"
    )
