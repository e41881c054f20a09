"""Rows of screenshots in verl's parquet schema: prompt, picture, target, and what a tool is given.

A data source flows in; a parquet file and a folder of screenshots flow out. A row holds the
screenshot as the model is first shown it; the whole screenshot, from which crops are cut, lies once
in `screens/` under the hash of its pixels. Paths are relative to the experiment's folder. Left out:
which source, and everything else of an experiment (`verl.py`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from saccade.config.errors import InputError
from saccade.data.samples import DataError, Sample
from saccade.data.sources import SampleSource
from saccade.grounding.episodes import Task, task_of
from saccade.grounding.messages import instruction_text, system_text
from saccade.grounding.verl_tool import Settings, target_text

if TYPE_CHECKING:
    import pyarrow

SCREENS = "screens"
PLACEHOLDERS = ("<image>", "<video>", "<audio>")
"""Words that verl replaces by media wherever they stand in a prompt."""
AT_ONCE = 256
"""Rows held in memory."""


@dataclass
class Written:
    """What became of a source."""

    rows: int = 0
    left_out: list[str] = field(default_factory=list)
    tokens: int = 0
    """Longest prompt."""
    screens: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class RowWriter:
    """Writes the rows of one experiment."""

    folder: Path
    settings: Settings
    told: bool
    """Whether the policy is told how to answer; a base that spells its words cannot read it."""
    length: Callable[[Sequence[Mapping[str, str]]], int]
    """Tokens of the messages, pictures counted as none."""
    skip_broken: bool = False

    def write(
        self,
        source: SampleSource,
        *,
        split: str,
        limit: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Written:
        """Write `split`.parquet; raises DataError for a broken row unless those are skipped."""
        import pyarrow
        import pyarrow.parquet

        written, rows = Written(), min(len(source), limit or len(source))
        form = schema(self.settings.grounding.tools)
        (self.folder / SCREENS).mkdir(parents=True, exist_ok=True)
        with pyarrow.parquet.ParquetWriter(self.folder / f"{split}.parquet", form) as writer:
            held: list[dict[str, Any]] = []
            for number, task in self._tasks(source, rows=rows, written=written):
                if progress is not None:
                    progress(split, number + 1, rows)
                if task is None:
                    continue
                held.append(self._row(task, split=split, written=written))
                if len(held) == AT_ONCE:
                    writer.write_table(pyarrow.Table.from_pylist(held, schema=form))
                    held = []
            if held:
                writer.write_table(pyarrow.Table.from_pylist(held, schema=form))
        if not written.rows:
            raise InputError(f"{split}: the source has no row that can be used")
        return written

    def _tasks(
        self, source: SampleSource, *, rows: int, written: Written
    ) -> Iterator[tuple[int, Task | None]]:
        last: tuple[Sample, Task] | None = None
        for number in range(rows):
            try:
                sample = source[number]
                if sample.kind != "point":
                    raise DataError("the row names no place on a screenshot", where=sample.id)
                same = last is not None and last[0].images == sample.images
                task = task_of(sample, image=last[1].image if last and same else None)
                taken = [word for word in PLACEHOLDERS if word in task.instruction]
                if taken:
                    raise DataError(f"{taken[0]} in an instruction", where=sample.id)
            except DataError as error:
                if not self.skip_broken:
                    raise
                written.left_out.append(str(error).splitlines()[0])
                yield number, None
                continue
            last = (sample, task)
            yield number, task

    def _row(self, task: Task, *, split: str, written: Written) -> dict[str, Any]:
        settings, picture = self.settings, task.loading or task.image
        shown = settings.fit(picture.size)
        said = instruction_text(task.instruction, settings.grounding)
        messages = [{"role": "user", "content": f"<image>{said}"}]
        if self.told:
            words = system_text(settings.grounding, convention=settings.convention)
            messages.insert(0, {"role": "system", "content": words})
        given = {
            "screen": self._kept(task.image, written=written),
            "loading": task.loading and self._kept(task.loading, written=written),
            "tree": json.dumps(list(task.tree)) if task.tree else None,
        }
        cells = shown[0] * shown[1] // settings.cell**2
        written.tokens = max(written.tokens, self.length(messages) + cells)
        number, written.rows = written.rows, written.rows + 1
        return {
            "data_source": "saccade/grounding",
            "prompt": messages,
            "images": [{"bytes": png(picture, size=shown), "path": None}],
            "ability": "grounding",
            "reward_model": {
                "style": "rule",
                "ground_truth": target_text(
                    box=task.box, point=task.point, size=task.image.size, shown=shown
                ),
            },
            "extra_info": {
                "split": split,
                "index": number,
                "id": task.sample.id,
                "need_tools_kwargs": bool(settings.grounding.tools),
                "tools_kwargs": {
                    name: {"create_kwargs": given} for name in settings.grounding.tools
                },
            },
        }

    def _kept(self, image: Image.Image, *, written: Written) -> str:
        """The picture's place in the experiment; equal pixels are kept once."""
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:24]
        path = f"{SCREENS}/{digest}.png"
        if path not in written.screens:
            written.screens.add(path)
            image.save(self.folder / path)
        return path


def schema(tools: Sequence[str]) -> pyarrow.Schema:
    """The columns that verl 0.9.1's RLHFDataset and its tool agent loop read."""
    import pyarrow as pa

    text = pa.string()
    given = pa.struct([("screen", text), ("loading", text), ("tree", text)])
    extra = [
        ("split", text), ("index", pa.int64()), ("id", text), ("need_tools_kwargs", pa.bool_()),
    ]  # fmt: skip
    if tools:
        call = pa.struct([("create_kwargs", given)])
        extra.append(("tools_kwargs", pa.struct([(name, call) for name in tools])))
    return pa.schema([
        ("data_source", text),
        ("prompt", pa.list_(pa.struct([("role", text), ("content", text)]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", text)]))),
        ("ability", text),
        ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
        ("extra_info", pa.struct(extra)),
    ])  # fmt: skip


def png(image: Image.Image, *, size: tuple[int, int]) -> bytes:
    """A picture at the size at which the model sees it, as a PNG file."""
    made = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(made, format="PNG")
    return made.getvalue()
