"""The screen and the rewards of grounding for verl: what an exported experiment calls.

In go verl's calls (a tool call of one trajectory, the text of a finished one); out come the crop or
a sentence the policy can read, and the parts of the reward. `ScreenTool` is mixed into verl's
`BaseTool` by the exported file, so this module imports neither verl nor torch. One trajectory has
one `Screen`, whatever number of tools it is offered; what happened on it is kept as JSON in the
trajectory's `extra_fields`, where the reward finds it. Left out: writing an experiment
(`launch/exports/verl.py`) and checking one before it runs (`verl_check.py`).

What a policy forges gains nothing: numbers are read on the latest picture that was really shown,
and a call costs whether it was run or only written.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from PIL import Image

from saccade.config.errors import InputError
from saccade.config.grounding import GroundingConfig
from saccade.data.boxes import WHOLE, Box, Size
from saccade.grounding.coordinates import Convention, CoordinateError, seen_size
from saccade.grounding.environment import Answer, Screen, ToolResult, most_calls, place_on
from saccade.grounding.messages import Turn, read_turn, write_call
from saccade.grounding.rewards import Outcome, reward_of

SETTINGS = "settings.json"
"""File of an experiment that says what is offered, paid and shown."""
KEPT = "saccade"
"""Key of a trajectory's `extra_fields` under which its screen is kept."""

_NEXT = re.compile(r"</tool_response>(?:<\|im_end\|>)?\s*(?:<\|im_start\|>)?assistant\n")
"""From what a tool gave to the policy's next words, as Qwen's chat template writes it."""


@dataclass(frozen=True)
class Settings:
    """What an experiment offers and pays, and how its model sees pictures.

    A picture is shown in whole cells of `cell` pixels. `first` and `crop` are the least and the
    greatest area of the screenshot and of a crop; both lie within what the model's own processor
    allows, so that it changes neither.
    """

    grounding: GroundingConfig
    convention: Convention
    cell: int
    first: tuple[int, int]
    crop: tuple[int, int]

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Read an experiment's settings; raises InputError where there are none."""
        file = folder / SETTINGS
        if not file.is_file():
            raise InputError(f"{file}: no such file\n  fix: write it with `saccade export verl`")
        kept = json.loads(file.read_text(encoding="utf-8"))
        return cls(
            grounding=GroundingConfig.model_validate(kept["grounding"]),
            convention=Convention(kept["convention"]),
            cell=kept["cell"],
            first=(kept["first"][0], kept["first"][1]),
            crop=(kept["crop"][0], kept["crop"][1]),
        )

    def text(self) -> str:
        """The file's text."""
        kept = {
            "grounding": self.grounding.model_dump(mode="json"),
            "convention": self.convention.name,
            "cell": self.cell,
            "first": self.first,
            "crop": self.crop,
        }
        return json.dumps(kept, indent=1) + "\n"

    def fit(self, size: Size) -> Size:
        """The size (width, height) at which the model sees a screenshot."""
        return seen_size(size, cell=self.cell, limits=self.first)

    def fit_crop(self, size: Size) -> Size:
        """The same of a crop."""
        return seen_size(size, cell=self.cell, limits=self.crop)


# tools -------------------------------------------------------------------------------------------


class PlainResponse(SimpleNamespace):
    """What stands in for verl's `ToolResponse` where verl is not installed."""

    def __init__(self, text: str | None = None, image: list[Any] | None = None) -> None:
        super().__init__(text=text, image=image)


class PlainTool:
    """What stands in for verl's `BaseTool` where verl is not installed."""

    def __init__(self, config: dict[str, Any], tool_schema: Any) -> None:
        self.config, self.tool_schema = config, tool_schema
        self.name = tool_schema["function"]["name"]


class ScreenTool:
    """One tool of our environment, with the methods that verl's agent loop calls.

    The exported file sets `folder` (the experiment's) and `response` (verl's `ToolResponse`), and
    names `BaseTool` as the second parent.
    """

    folder: Path
    response: Any = PlainResponse
    name: str

    def __init__(self, config: dict[str, Any], tool_schema: Any) -> None:
        super().__init__(config, tool_schema)  # type: ignore[call-arg]
        self.settings = Settings.read(self.folder)
        self._given: dict[str, Mapping[str, Any]] = {}
        self._alone: dict[str, SimpleNamespace] = {}

    async def create(self, instance_id: str | None = None, **kwargs: Any) -> tuple[str, Any]:
        """Begin a call; `create_kwargs` say where the screenshot lies."""
        instance_id = instance_id or uuid4().hex
        self._given[instance_id] = kwargs.get("create_kwargs") or {}
        return instance_id, self.response()

    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
    ) -> tuple[Any, float, dict[str, Any]]:
        """Run a call on its trajectory's screen (`agent_data`); never raises for what is asked.

        Returns verl's response with the crop or the text, a step reward of 0 (the reward function
        pays whole trajectories), and counts.
        """
        holder = kwargs.get("agent_data")
        if holder is None:
            holder = self._alone.setdefault(instance_id, SimpleNamespace())
        screen = getattr(holder, "screen", None)
        if screen is None:
            opened = partial(screen_at, self.folder, self._given[instance_id])
            screen = holder.screen = await asyncio.to_thread(opened, settings=self.settings)
        turn = self._turn(holder, parameters)
        result: ToolResult = await asyncio.to_thread(screen.take, turn)
        if getattr(holder, "extra_fields", None) is not None:
            holder.extra_fields[KEPT] = kept_of(screen)
        counts = {"ok": result.ok, "pixels": result.view.pixels if result.view else 0}
        if result.view is None:
            return self.response(text=result.text), 0.0, counts
        return self.response(text=result.text, image=[result.view.image]), 0.0, counts

    async def calc_reward(self, instance_id: str, **kwargs: Any) -> float:
        """Nothing: the reward function pays whole trajectories."""
        return 0.0

    async def release(self, instance_id: str, **kwargs: Any) -> None:
        """End a call; the screen stays with its trajectory."""
        self._given.pop(instance_id, None)
        self._alone.pop(instance_id, None)

    def _turn(self, holder: Any, parameters: Mapping[str, Any]) -> Turn:
        """The call as our own parser reads it, so that several in one turn are refused alike."""
        try:
            call = write_call(self.name, json.dumps(parameters))
        except (TypeError, ValueError):
            call = write_call(self.name, "null")
        return read_turn(call * max(1, len(getattr(holder, "tool_calls", None) or ())))


def screen_at(folder: Path, given: Mapping[str, Any], *, settings: Settings) -> Screen:
    """The screen of a trajectory: its screenshot, the page still loading, the page's elements."""
    page = _picture(folder / given["screen"])
    loading = _picture(folder / given["loading"]) if given.get("loading") else None
    return Screen(
        page if loading is None else loading,
        settings.grounding,
        settings.convention,
        settings.fit,
        json.loads(given.get("tree") or "[]"),
        None if loading is None else page,
        settings.fit_crop,
    )


def kept_of(screen: Screen) -> str:
    """What the reward must know of a screen, as JSON."""
    view = screen.view
    kept = {"calls": len(screen.calls), "zooms": screen.zooms, "box": view.box, "size": view.size}
    return json.dumps(kept)


def _picture(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


# rewards -----------------------------------------------------------------------------------------


def target_text(
    *, box: Sequence[float] | None, point: Sequence[float] | None, size: Size, shown: Size
) -> str:
    """verl's `ground_truth`: the target in shares of a screenshot of `size`, `shown` as told."""
    return json.dumps({"box": box, "point": point, "size": size, "shown": shown})


def score(text: str, *, target: str, kept: str | None, settings: Settings) -> dict[str, float]:
    """Pay one trajectory: `text` is all that follows its prompt, `kept` its `extra_fields`' entry.

    Returns verl's `score`, every part of the reward by name, `acc` (right or wrong) and `teaches`,
    which is the same number in all of a group if and only if nobody was right or all were paid the
    same: what groups are left out by (`grounding.grpo.filter=wrong`).
    """
    aim = json.loads(target)
    seen = (
        json.loads(kept) if kept else {"calls": 0, "zooms": 0, "box": WHOLE, "size": aim["shown"]}
    )
    read = [read_turn(piece) for piece in _NEXT.split(text.replace("<|im_end|>", ""))]
    answer = _answer(read[-1], seen=seen, settings=settings)
    stated = answer.stated if answer and settings.grounding.reward.stated else None
    outcome = Outcome(
        answer=answer,
        box=Box(*aim["box"]) if aim["box"] else None,
        point=None if aim["point"] is None else (aim["point"][0], aim["point"][1]),
        size=(aim["size"][0], aim["size"][1]),
        calls=max(seen["calls"], sum(turn.calls for turn in read)),
        zooms=seen["zooms"],
        most_calls=most_calls(settings.grounding),
        confidence=stated,
    )
    paid = reward_of(outcome, config=settings.grounding.reward)
    return {
        "score": paid.total,
        "acc": float(paid.hit),
        "teaches": math.exp(paid.total) if paid.hit else 0.0,
        "answered": float(paid.verdict is not None),
        "calls": float(outcome.calls),
        "zooms": float(outcome.zooms),
        **{f"part_{name}": value for name, value in paid.parts.items()},
    }


def _answer(turn: Turn, *, seen: Mapping[str, Any], settings: Settings) -> Answer | None:
    if turn.kind != "answer" or turn.numbers is None:
        return None
    width, height = seen["size"]
    try:
        return place_on(
            Box(*seen["box"]),
            turn.numbers,
            size=(width, height),
            convention=settings.convention,
            stated=turn.stated_confidence,
        )
    except CoordinateError:
        return None
