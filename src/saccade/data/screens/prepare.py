"""Screenshots of any source as rows that are trained on: split, measured, copied to one folder.

Opened sources flow in; a folder flows out: `train.parquet`, `validation.parquet`, `test.parquet`
(columns in `built.py`), the pictures beside them under `images/`, and `manifest.json`. Splits go
by the pixels of the screenshot, so the same picture under two names is in one split; generated
pages come from the stream of the split they are for, so none is another split's page. A public
benchmark's test rows are refused unless they are asked for, and then the manifest says so.
Difficulty is the root of the target's area in pixels of the model's first look. The same build
again changes nothing. Left out: drawing pages (`generated.py`), what models are asked
(`grounding/messages.py`).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from saccade.config.errors import InputError
from saccade.config.schema import Source
from saccade.config.screens import ScreensSource
from saccade.data.boxes import Box, Size
from saccade.data.images import load_image
from saccade.data.rows import unique_id
from saccade.data.samples import DataError, ImageRef, Sample
from saccade.data.screens.built import OPTIONAL, TREES, schema
from saccade.data.screens.chance import ClickChance
from saccade.data.screens.folders import IMAGES, KIND, MANIFEST, built_before, written_aside
from saccade.data.screens.splits import SPLITS, Shares, Split, pixels_hash, split_of
from saccade.data.sources import SampleSource, open_source
from saccade.data.statistics import visual_tokens
from saccade.data.tables import file_digest

FORMAT = 2
SOURCES = ("screens", "screenspot", "grounding")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FirstLook:
    """How the model sizes a screenshot: area limits and the side of one visual token in pixels."""

    min_pixels: int
    max_pixels: int
    cell_pixels: int

    def difficulty(self, box: Box, *, size: Size) -> float:
        """Root of the box's area in pixels, as the first look shows it; small is hard."""
        tokens = visual_tokens(size, **asdict(self))
        return math.sqrt(box.area * tokens) * self.cell_pixels


@dataclass(frozen=True)
class Wanted:
    """What to build."""

    look: FirstLook
    max_samples: int = 1200
    shares: Shares = field(default_factory=Shares)
    allow_benchmark: bool = False
    skip_broken: bool = False


@dataclass(frozen=True)
class Stream:
    """An opened source; `split` where all its rows are of one, else their pixels decide."""

    rows: SampleSource
    split: Split | None = None


@dataclass(frozen=True)
class Kept:
    """A picture in the built folder."""

    path: str
    file_hash: str
    pixels: str
    size: Size


def build_grounding(
    sources: Sequence[Source], *, out: Path, wanted: Wanted, progress: Progress | None = None
) -> dict[str, Any]:
    """Build the folder `out`, or find it built; returns the manifest plus `built` and `broken`.

    Raises `InputError` for a source without targets, a benchmark that was not asked for, other
    content at the place, and (unless broken rows are skipped) `DataError` for a broken row.
    """
    streams = [_opened(source, shares=wanted.shares) for source in sources]
    opened = [one.rows for group in streams for one in group]
    benchmarks = sorted({name for one in opened for name in getattr(one, "benchmarks", ())})
    if benchmarks and not wanted.allow_benchmark:
        raise InputError(
            f"{_named_benchmark(sources, streams)}: these are the test rows of {benchmarks[0]}, a"
            " public benchmark; trained on, it measures nothing any more"
            "\n  fix: evaluate on it with data.eval.type=screenspot, or insist with"
            " --allow-benchmark (the manifest will say so)"
        )
    plan = _plan(opened, wanted=wanted, benchmarks=benchmarks)
    before = built_before(out, plan=plan)
    if before is not None:
        return {**before, "built": False, "broken": []}
    with written_aside(out) as aside:
        try:
            rows, broken = _rows(streams, folder=aside, wanted=wanted, progress=progress)
        finally:
            for one in opened:
                getattr(one, "close", _nothing)()  # a browser that drew pages
        manifest = {
            "kind": KIND,
            "plan": plan,
            "sources": [_label(source) for source in sources],
            "benchmarks": benchmarks,
            "left_out": len(broken),
            **_counts(rows),
        }
        files = {f"{split}.parquet": _write(rows, split, folder=aside) for split in SPLITS}
        manifest["files"] = files
        manifest["picture_files"] = {
            f"{IMAGES}/{one.name}": file_digest(one) for one in sorted((aside / IMAGES).iterdir())
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return {**manifest, "built": True, "broken": broken}


def shared_out(available: Sequence[int], *, most: int) -> list[int]:
    """How many rows each source gives: equal parts, what one has not is left to the others."""
    given = [0] * len(available)
    while (rest := most - sum(given)) > 0:
        open_ones = [one for one, there in enumerate(available) if given[one] < there]
        if not open_ones:
            break
        part = max(1, rest // len(open_ones))
        for one in open_ones:
            given[one] += min(part, available[one] - given[one], most - sum(given))
    return given


def chosen_groups(source: SampleSource, *, count: int) -> list[list[int]]:
    """Whole screenshots in an order without meaning, until there are `count` rows."""
    name = source.fingerprint()

    def order(group: list[int]) -> bytes:
        return hashlib.blake2b(f"{name}:{group[0]}".encode(), digest_size=8).digest()

    chosen: list[list[int]] = []
    for group in sorted(source.groups(), key=order):
        if count <= 0:
            break
        chosen.append(group[:count])
        count -= len(chosen[-1])
    return chosen


def chat_prompt(instruction: str) -> str:
    """The row as chat messages in JSON; the picture has a place, not a path."""
    content = [{"type": "image"}, {"type": "text", "text": instruction}]
    return json.dumps([{"role": "user", "content": content}], ensure_ascii=False)


def _nothing() -> None:
    """What most sources do when they are closed."""


def _opened(source: Source, *, shares: Shares) -> list[Stream]:
    if source.type not in SOURCES:
        raise InputError(
            f"data.train.type={source.type}: its rows name no place on a screen"
            f"\n  fix: data.train.type=screens, or another of {', '.join(SOURCES)}"
        )
    if not isinstance(source, ScreensSource):
        return [Stream(open_source(source))]
    return [
        Stream(open_source(source.model_copy(update={"split": split, "screens": pages})), split)
        for split, pages in shares.counts(source.screens).items() if pages
    ]  # fmt: skip


def _named_benchmark(sources: Sequence[Source], streams: Sequence[Sequence[Stream]]) -> str:
    pairs = zip(sources, streams, strict=True)
    source = next(
        source for source, group in pairs
        if any(getattr(one.rows, "benchmarks", ()) for one in group)
    )  # fmt: skip
    return str(getattr(source, "path", source.type))


def _label(source: Source) -> str:
    """A name without a path: the folder may be carried to another machine."""
    path = getattr(source, "path", None)
    return source.type if path is None else f"{source.type} {path.resolve().name}"


def _plan(
    opened: Sequence[SampleSource], *, wanted: Wanted, benchmarks: list[str]
) -> dict[str, Any]:
    contents = []
    for one in opened:
        pictures = getattr(one, "pictures_digest", None)
        contents.append([one.fingerprint(), pictures() if pictures is not None else ""])
    return {
        "format": FORMAT,
        "sources": contents,
        "max_samples": wanted.max_samples,
        "shares": str(wanted.shares),
        "benchmarks": benchmarks,
        "skip_broken": wanted.skip_broken,
        "look": asdict(wanted.look),
    }


def _rows(
    streams: Sequence[Sequence[Stream]], *, folder: Path, wanted: Wanted, progress: Progress | None
) -> tuple[list[dict[str, Any]], list[str]]:
    parts = shared_out(
        [sum(len(one.rows) for one in group) for group in streams], most=wanted.max_samples
    )
    total, done = sum(parts), 0
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    known: Counter[str] = Counter()
    for stream, part in _parts(streams, parts):
        for group in chosen_groups(stream.rows, count=part):
            for row in _rows_of(stream, group, folder=folder, wanted=wanted, broken=broken):
                # two sources may count their rows alike
                rows.append({**row, "id": unique_id(row["id"], known=known)})
            done += len(group)
            if progress is not None:
                progress("building rows", done, total)
    if not rows:
        raise InputError("no row could be built: all of them are broken\n  fix: correct the source")
    return rows, broken


def _parts(
    streams: Sequence[Sequence[Stream]], parts: Sequence[int]
) -> Iterator[tuple[Stream, int]]:
    """Every stream and how many rows it gives: of one source's part, in proportion to its own."""
    for group, part in zip(streams, parts, strict=True):
        every = sum(len(one.rows) for one in group)
        before = 0
        for one in group:
            after = before + len(one.rows)
            yield one, round(part * after / every) - round(part * before / every)
            before = after


def _rows_of(
    stream: Stream, group: list[int], *, folder: Path, wanted: Wanted, broken: list[str]
) -> Iterator[dict[str, Any]]:
    """The rows of one screenshot; its picture is read once."""
    kept: dict[str, Kept] = {}
    for position in group:
        try:
            sample = stream.rows[position]
            key = sample.image_key or sample.id
            if key not in kept:
                kept[key] = _keep(sample.images[0], folder=folder, where=f"sample {sample.id}")
            split = stream.split or split_of(kept[key].pixels, shares=wanted.shares)
            yield _row(sample, kept[key], folder=folder, split=split, look=wanted.look)
        except DataError as error:
            if not wanted.skip_broken:
                raise DataError(
                    error.problem,
                    where=error.where,
                    fix=f"{error.fix}, or leave such rows out with data.on_error=skip",
                ) from error
            broken.append(f"{error.where}: {error.problem}")


def _row(
    sample: Sample, kept: Kept, *, folder: Path, split: Split, look: FirstLook
) -> dict[str, Any]:
    facts: Mapping[str, Any] = sample.facts
    box = facts.get("box")
    loading = facts.get("loading")
    if loading is not None:
        loading = _keep(loading, folder=folder, where=f"sample {sample.id}, loading").path
    return {
        "id": sample.id,
        "prompt": chat_prompt(sample.question),
        "instruction": sample.question,
        "box": None if box is None else list(box),
        "point": list(facts["point"]) if facts.get("point") is not None else None,
        "image": kept.path,
        "platform": facts["platform"],
        "element": facts["element"],
        **{name: facts.get(name) for name in OPTIONAL},
        "width": kept.size[0],
        "height": kept.size[1],
        "image_sha256": kept.file_hash,
        "pixels_sha256": kept.pixels,
        "split": split,
        "difficulty": None if box is None else look.difficulty(Box(*box), size=kept.size),
        **{name: json.dumps(facts[name]) for name in TREES if facts.get(name) is not None},
        "loading": loading,
    }  # fmt: skip


def _keep(ref: ImageRef, *, folder: Path, where: str) -> Kept:
    """Copy a picture as it is, or write a drawn one; decoding it shows that it is sound."""
    picture = load_image(ref, where=where)
    pixels = pixels_hash(picture)
    content, ending = _encoded(ref, picture)
    known = sorted((folder / IMAGES).glob(f"{pixels[:24]}.*"))
    place = known[0] if known else folder / IMAGES / f"{pixels[:24]}{ending}"
    if known:
        content = place.read_bytes()
    else:
        place.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return Kept(f"{IMAGES}/{place.name}", digest, pixels, picture.size)


def _encoded(ref: ImageRef, picture: Image.Image) -> tuple[bytes, str]:
    if isinstance(ref, Path):
        return ref.read_bytes(), ref.suffix.lower() or ".png"
    if isinstance(ref, bytes):
        with Image.open(io.BytesIO(ref)) as opened:
            return ref, f".{(opened.format or 'png').lower()}"
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue(), ".png"


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows, screenshots and the random click's score per split, and how many pictures there are."""
    parts = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    pictures = {row["image"] for row in rows} | {row["loading"] for row in rows if row["loading"]}
    return {
        "rows": {split: len(part) for split, part in parts.items()},
        "screenshots": {
            split: len({row["pixels_sha256"] for row in part}) for split, part in parts.items()
        },
        "random_click": {split: _chance(part) for split, part in parts.items()},
        "pictures": len(pictures),
    }


def _chance(rows: list[dict[str, Any]]) -> float:
    chance = ClickChance()
    for row in rows:
        chance.add(row)
    return chance.total().accuracy


def _write(rows: list[dict[str, Any]], split: str, *, folder: Path) -> str:
    """Write one split; returns the file's SHA-256."""
    import pyarrow
    import pyarrow.parquet

    part = [row for row in rows if row["split"] == split]
    file = folder / f"{split}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part, schema=schema()), file)
    return hashlib.sha256(file.read_bytes()).hexdigest()
