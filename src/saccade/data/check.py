"""Go through all rows of a source, name everything that is wrong, and sum up what is there.

In goes a source, out comes a `CheckReport`: every problem with its row, id and fix, and the
statistics of the good rows. The check never stops at a problem. Images are decoded in full, each
distinct one once, by a few threads, and forgotten again, so memory stays flat. Left out: whether
the answers are true.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from saccade.config.schema import Source
from saccade.data.images import verify_image
from saccade.data.rows import image_key
from saccade.data.samples import DataError, ImageRef, Sample
from saccade.data.show import show_samples
from saccade.data.sources import SampleSource, TableSource, open_source
from saccade.data.statistics import MAX_ASPECT, Statistics, visual_tokens

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["CheckReport", "Problem", "check_source", "render_report", "show_samples"]

LOOKAHEAD = 64
"""Rows whose images are being decoded ahead of the row that is being judged."""

MOST_KINDS = 20
"""Kinds listed on the terminal (the JSON report has all)."""

Verdict = tuple[int, int] | DataError
"""Size of a sound image in pixels, or what is wrong with it."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one row; `row` is the line or row number that people count from 1."""

    row: int
    id: str
    problem: str
    fix: str
    where: str


@dataclass(frozen=True)
class CheckReport:
    """What a check found; `ok` is false as soon as one row is broken."""

    source: str
    rows: int
    rows_ok: int
    problems: list[Problem]
    statistics: dict[str, Any]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def check_source(
    source: Source,
    *,
    limit: int | None = None,
    min_pixels: int = 65_536,
    max_pixels: int = 16_777_216,
    cell_pixels: int = 32,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check every row (or the first `limit`) and return what was found.

    The pixel limits and the cell size are the model's (defaults: Qwen3-VL); they decide the
    visual tokens per image. `progress(done, rows)` is called after every row. Raises `InputError`
    only when the source cannot be opened at all.
    """
    opened = open_source(source)
    rows = len(opened) if limit is None else min(limit, len(opened))
    statistics = Statistics()
    problems: list[Problem] = []
    ids: dict[str, int] = {}
    bad_rows = 0
    for position, sample, verdicts in _checked_rows(opened, rows=rows, threads=threads):
        number = position + 1 if not isinstance(opened, TableSource) else opened.number(position)
        found = _row_problems(sample, verdicts, number=number, ids=ids)
        problems += found
        bad_rows += bool(found)
        for verdict, is_new in verdicts:
            if is_new and isinstance(verdict, tuple) and not _too_long(verdict):
                tokens = visual_tokens(
                    verdict, cell_pixels=cell_pixels, min_pixels=min_pixels, max_pixels=max_pixels
                )
                statistics.add_image(verdict, tokens=tokens)
        if isinstance(sample, Sample) and not found:
            statistics.add_row(sample)
        if progress is not None:
            progress(position + 1, rows)
    return CheckReport(
        source=_label(source),
        rows=rows,
        rows_ok=rows - bad_rows,
        problems=problems,
        statistics=statistics.to_json(),
    )


def _label(source: Source) -> str:
    place = getattr(source, "path", None) or getattr(source, "name", None)
    return f"{source.type} {place}" if place else f"{source.type} {getattr(source, 'split', '')}"


def _checked_rows(
    source: SampleSource, *, rows: int, threads: int | None
) -> Iterator[tuple[int, Sample | DataError, list[tuple[Verdict, bool]]]]:
    """Rows in order, each with its images' verdicts and whether the image is seen first here."""
    workers = threads or min(4, os.cpu_count() or 1)
    known: dict[str, Future[Verdict]] = {}
    waiting: deque[tuple[int, Sample | DataError, list[tuple[Future[Verdict], bool]]]] = deque()
    with ThreadPoolExecutor(workers) as pool, warnings.catch_warnings():
        # files of 90 to 100 million pixels are fine here; PIL would warn on the terminal
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for position in range(rows):
            sample = _row(source, position)
            jobs: list[tuple[Future[Verdict], bool]] = []
            for number, ref in enumerate(sample.images if isinstance(sample, Sample) else ()):
                key = _key(sample, ref, number)
                is_new = key not in known
                if is_new:
                    known[key] = pool.submit(_judge, ref)
                jobs.append((known[key], is_new))
            waiting.append((position, sample, jobs))
            if len(waiting) > LOOKAHEAD:
                yield _settled(waiting.popleft())
        while waiting:
            yield _settled(waiting.popleft())


def _settled(
    row: tuple[int, Sample | DataError, list[tuple[Future[Verdict], bool]]],
) -> tuple[int, Sample | DataError, list[tuple[Verdict, bool]]]:
    position, sample, jobs = row
    return position, sample, [(job.result(), is_new) for job, is_new in jobs]


def _row(source: SampleSource, position: int) -> Sample | DataError:
    try:
        return source[position]
    except DataError as error:
        return error


def _key(sample: Sample | DataError, ref: ImageRef, number: int) -> str:
    """Equal for the same picture; drawn ones are known only by the sample's own key."""
    if callable(ref) and isinstance(sample, Sample):
        return f"{sample.image_key or sample.id}#{number}"
    return image_key((ref,)) or ""


def _judge(ref: ImageRef) -> Verdict:
    try:
        return verify_image(ref, where="")
    except DataError as error:
        return error


def _too_long(size: tuple[int, int]) -> bool:
    return max(size) > MAX_ASPECT * min(size)


def _row_problems(
    sample: Sample | DataError,
    verdicts: list[tuple[Verdict, bool]],
    *,
    number: int,
    ids: dict[str, int],
) -> list[Problem]:
    if isinstance(sample, DataError):
        name = sample.where.rpartition("(id ")[2].rstrip(")") if "(id " in sample.where else ""
        return [Problem(number, name, sample.problem, sample.fix, sample.where)]
    found: list[tuple[str, str]] = []
    first = ids.setdefault(sample.id, number)
    if first != number:
        found.append((f"the id {sample.id!r} is also that of row {first}", "give each row its own"))
    for verdict, _ in verdicts:
        if isinstance(verdict, DataError):
            found.append((verdict.problem, verdict.fix))
        elif _too_long(verdict):
            width, height = verdict
            found.append(
                (
                    f"the image is {width} x {height} pixels: one side is more than {MAX_ASPECT} "
                    "times the other",
                    "crop the image or drop the row",
                )
            )
    where = f"row {number} (id {sample.id})"
    return [Problem(number, sample.id, problem, fix, where) for problem, fix in found]


def render_report(report: CheckReport, *, most: int = 50) -> Group:
    """The report for a terminal: problems first (at most `most`), then the statistics."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    verdict = "no problems" if report.ok else f"{len(report.problems)} problems"
    title = Text(
        f"{report.source}: {report.rows} rows, {report.rows_ok} sound, {verdict}",
        style="green" if report.ok else "red",
    )
    parts: list[Any] = [title]
    if report.problems:
        table = Table("row", "id", "problem", "fix")
        for item in report.problems[:most]:
            table.add_row(*map(Text, (str(item.row), item.id, item.problem, item.fix)))
        parts.append(table)
        if len(report.problems) > most:
            parts.append(Text(f"... and {len(report.problems) - most} more (--json lists all)"))
    if report.rows_ok:
        parts.append(_statistics_table(report.statistics))
    return Group(*parts)


def _random_click(found: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Lines about what a click anywhere would score, over all and by what is known of targets."""
    if found is None:
        return
    if found["rows"]:
        yield "random click", f"right {found['accuracy']:.2%} of {found['rows']} rows with a box"
    if found["without_box"]:
        yield "only a point", f"{found['without_box']} rows"
    for key, values in found["by"].items():
        shown = list(values.items())[:MOST_KINDS]
        text = ", ".join(f"{value} {share:.2%}" for value, share in shown)
        yield f"random click by {key}", text


def _statistics_table(statistics: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    def spread(name: str) -> str:
        values = statistics[name]
        if not values:
            return "none"
        if values["p0"] == values["p100"]:
            return f"{values['p0']} throughout"
        ends = f"{values['p0']} to {values['p100']}"
        return f"{ends}, half up to {values['p50']}, 95% up to {values['p95']}"

    table = Table("what", "figures")
    for kind, count in list(statistics["kinds"].items())[:MOST_KINDS]:
        majority = statistics["majority"].get(kind)
        text = f"; {majority['answer']!r} is right {majority['share']:.1%}" if majority else ""
        table.add_row(Text(f"kind {kind}"), Text(f"{count} rows{text}"))
    if statistics["majority"]:
        guess = f"the kind's top answer is right {statistics['majority_share']:.1%}"
        table.add_row("blind guess", guess)
        top = ", ".join(
            f"{text} {count}" for text, count in list(statistics["top_answers"].items())[:8]
        )
        table.add_row("answers", Text(f"{statistics['distinct_answers']} distinct; {top}"))
    for name, found in _random_click(statistics["random_click"]):
        table.add_row(name, Text(found))
    per_row = ", ".join(f"{n}: {rows} rows" for n, rows in statistics["images_per_row"].items())
    table.add_row("images per row", per_row)
    table.add_row("distinct images", str(statistics["distinct_images"]))
    table.add_row("image width (pixels)", spread("image_width"))
    table.add_row("image height (pixels)", spread("image_height"))
    table.add_row("visual tokens per image", spread("visual_tokens_per_image"))
    table.add_row("question length (characters)", spread("question_characters"))
    return table
