"""The microscope in a browser: pick a picture, ask, and see what was kept and why.

In goes a function that loads a `Workbench`; out comes a local web page (Gradio) that is up at once
and says that the model is loading until it is. One request at a time reaches the model, the others
queue. What goes wrong is said in the page's status line. Nothing is asked of other hosts, and the
only files that leave this machine's disk are those the page itself stored: uploads and thumbnails,
in a folder of its own that is removed at the end. Left out: what is computed (`workbench.py`) and
how it looks (`app_parts.py`, `app.css`).
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError, OutsideError, SaccadeError
from saccade.data.samples import DataError
from saccade.microscope import app_parts as parts
from saccade.microscope.app_guard import LOCAL_NAMES, Guard
from saccade.microscope.workbench import Picture, Workbench, read_upload, take_in

log = logging.getLogger(__name__)
LARGEST_UPLOAD = "30mb"
WAITING_REQUESTS = 16
NO_BASELINE = "none"
START = "Pick a picture, write a question and press Ask."
FORMATS_HINT = "choose a PNG, JPEG, WebP, GIF, BMP or TIFF picture below 40 megapixels and 30 MB"


@dataclass(frozen=True)
class Session:
    """What one open page has chosen and asked."""

    picture: Picture | None = None
    question: str = ""
    other: str = ""
    other_came_first: bool = False


@dataclass
class Desk:
    """The workbench that all pages share, once it is there."""

    facts: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    bench: Workbench | None = None
    examples: list[Picture] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)

    def open(self, bench: Workbench) -> None:
        """Let the pages in."""
        self.bench, self.examples = bench, bench.examples()
        self.ready.set()


def serve(
    load: Callable[[], Workbench],
    *,
    facts: dict[str, Any],
    note: str = "",
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    announce: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl+C or SIGTERM; the model loads while the page is already up.

    `announce` is told the address. Raises OutsideError when gradio is missing or the port is taken,
    and whatever `load` raises.
    """
    with tempfile.TemporaryDirectory(prefix="saccade-app-") as folder:
        # read by gradio when it is imported or launched; this process serves nothing else
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_SHARE", "GRADIO_SERVER_PORT"):
            os.environ.pop(name, None)  # only our own options decide what is reachable
        desk = Desk(facts=facts, note=note)
        page, address = _launch(desk, folder=Path(folder), host=host, port=port, share=share)
        try:
            announce(address)
            desk.open(load())
            _wait_for_the_end()
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)


def _launch(
    desk: Desk, *, folder: Path, host: str, port: int | None, share: bool
) -> tuple[Any, str]:
    gradio = _gradio()
    middleware = importlib.import_module("starlette.middleware").Middleware
    guard = middleware(Guard, folder=folder, local_only=host in LOCAL_NAMES and not share)
    page = build_page(desk, folder=folder)
    page.queue(max_size=WAITING_REQUESTS, api_open=False)
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    theme = gradio.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
    try:
        _, local, shared = page.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True,
            inbrowser=False, show_error=False, ssr_mode=False, footer_links=[], theme=theme,
            css=_style(), max_file_size=LARGEST_UPLOAD, enable_monitoring=False, pwa=False,
            mcp_server=False, run_history=False, state_session_capacity=64, allowed_paths=[],
            app_kwargs={"middleware": [guard]},
        )  # fmt: skip
    except OSError as error:
        if error.errno not in (None, errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        where = f"{host}:{port}" if port else host
        raise OutsideError(
            f"cannot serve on {where}: {error}\n  fix: choose another --port or --host"
        ) from error
    if share and not shared:
        page.close(verbose=False)
        raise OutsideError(
            "no public address could be opened\n  fix: check the network, or leave --share away"
        )
    return page, shared or local


def _gradio() -> Any:
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise OutsideError(
            'the app needs gradio, which is not installed\n  fix: pip install "saccade[app]"'
        ) from error


def _style() -> str:
    return (resources.files("saccade.microscope") / "app.css").read_text("utf-8")


def _wait_for_the_end() -> None:
    end = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: end.set())
    while not end.wait(timeout=1.0):  # a wait without end would not hear Ctrl+C everywhere
        pass


@dataclass(frozen=True)
class Widgets:
    """The page's widgets that events touch."""

    session: Any
    status: Any
    gallery: Any
    upload: Any
    chosen: Any
    known: Any
    question: Any
    other: Any
    budget: Any
    baseline: Any
    ask: Any
    results: tuple[Any, ...]  # answers, kept, why, change, textures, numbers


SHOWN = (parts.answers, parts.kept, parts.why, parts.change, parts.textures, parts.numbers)
TABS = ("Kept cells", "Scores", "Two questions", "Textures", "Numbers")


def build_page(desk: Desk, *, folder: Path) -> Any:
    """Lay the page out and wire its events; nothing is served yet."""
    gradio = _gradio()
    with gradio.Blocks(
        title="Saccade microscope", analytics_enabled=False, fill_width=True,
        delete_cache=(600, 3600),
    ) as page:  # fmt: skip
        gradio.HTML(parts.run_facts(desk.facts), padding=False)
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=4, min_width=330):
                left = _left_column(gradio)
            with gradio.Column(scale=9, min_width=420):
                # beside the button on wide pages, right below it on narrow ones
                status = gradio.HTML(
                    parts.status("busy", "Loading the model ..."), elem_id="status", padding=False
                )
                results = [gradio.HTML(parts.waiting(START), elem_id="answers")]
                with gradio.Tabs():
                    for name in TABS:
                        with gradio.Tab(name):
                            key = name.lower().replace(" ", "-")
                            results.append(gradio.HTML(parts.waiting(START), elem_id=key))
        widgets = Widgets(
            session=gradio.State(Session()), status=status, results=tuple(results), **left
        )
        _wire(page, widgets, Handlers(desk, gradio=gradio, folder=folder))
    return page


def _left_column(gradio: Any) -> dict[str, Any]:
    """Picture, question and budget."""
    gallery = gradio.Gallery(
        label="Pick a picture", object_fit="cover", allow_preview=False, interactive=False,
        buttons=[], elem_id="examples",
    )  # fmt: skip
    upload = gradio.File(
        label="or bring your own (PNG, JPEG, WebP, ...)", height=76, elem_id="upload"
    )
    chosen = gradio.HTML(parts.chosen(None), elem_id="chosen")
    known = gradio.Dropdown(
        label="Questions with a known answer",
        choices=[],
        visible=False,
        elem_id="known",
    )
    question = gradio.Textbox(
        label="Question", placeholder="What color is the star?", elem_id="question", max_lines=3
    )
    ask = gradio.Button("Ask", variant="primary", interactive=False, elem_id="ask")
    other = gradio.Textbox(
        label="Compare with another question",
        placeholder="empty: the one asked before", elem_id="other", max_lines=3,
    )  # fmt: skip
    budget = gradio.Slider(
        label="Visual tokens kept, in %", minimum=1, maximum=100, step=1, value=25,
        elem_id="budget",
    )  # fmt: skip
    baseline = gradio.Dropdown(
        label="Side by side with", choices=[NO_BASELINE], value=NO_BASELINE, elem_id="baseline"
    )
    return {
        "gallery": gallery, "upload": upload, "chosen": chosen, "known": known,
        "question": question, "other": other, "budget": budget, "baseline": baseline, "ask": ask,
    }  # fmt: skip


def _wire(page: Any, w: Widgets, handlers: Handlers) -> None:
    private = {"api_visibility": "private"}
    model = {"concurrency_id": "model", "concurrency_limit": 1, **private}
    page.load(
        handlers.wait, outputs=[w.status, w.gallery, w.budget, w.baseline, w.ask],
        concurrency_limit=None, show_progress="hidden", **private,
    )  # fmt: skip
    choice = [w.session, w.status, w.chosen, w.known, w.question, w.other, *w.results]
    w.gallery.select(handlers.picker(), outputs=choice, **private)
    w.upload.upload(
        handlers.take, inputs=[w.upload], outputs=[w.upload, *choice], concurrency_limit=2,
        **private,
    )  # fmt: skip
    w.known.input(lambda words: words, inputs=[w.known], outputs=[w.question], **private)
    asked = [w.session, w.status, *w.results]
    for event in (w.ask.click, w.question.submit, w.other.submit):
        event(
            handlers.ask, inputs=[w.session, w.question, w.other, w.budget, w.baseline],
            outputs=asked, show_progress="minimal", **model,
        )  # fmt: skip
    for event in (w.budget.input, w.baseline.input):
        event(
            handlers.again, inputs=[w.session, w.budget, w.baseline], outputs=asked,
            trigger_mode="always_last", show_progress="hidden", **model,
        )  # fmt: skip


class Handlers:
    """What happens on each event; every failure becomes a line in the page."""

    def __init__(self, desk: Desk, *, gradio: Any, folder: Path) -> None:
        self.desk = desk
        self.gradio = gradio
        self.folder = folder.resolve()

    async def wait(self) -> AsyncIterator[tuple[Any, ...]]:
        """Say that the model is loading until it is there; then offer pictures and baselines."""
        skip = self.gradio.skip
        if not self.desk.ready.is_set():
            yield parts.status("busy", "Loading the model ..."), skip(), skip(), skip(), skip()
        while not self.desk.ready.is_set():
            await asyncio.sleep(0.1)
        bench = self.desk.bench
        assert bench is not None
        pictures = [(_thumbnail(one), one.name) for one in self.desk.examples]
        names = [(NO_BASELINE, NO_BASELINE), *((t, n) for n, t in bench.baselines.items())]
        update, note = self.gradio.update, self.desk.note
        yield (
            parts.status("note", note) if note else parts.status("ready", f"Ready. {START}"),
            update(value=pictures),
            update(value=max(1, round(100 * bench.share))),
            update(choices=names, value="grid" if "grid" in bench.baselines else NO_BASELINE),
            update(interactive=True),
        )

    def picker(self) -> Callable[..., tuple[Any, ...]]:
        """`pick` as gradio wants it: it tells the event apart by the type of the argument."""

        def pick(event: Any) -> tuple[Any, ...]:
            return self.pick(event.index)

        pick.__annotations__["event"] = self.gradio.SelectData
        return pick

    def pick(self, place: Any) -> tuple[Any, ...]:
        """Choose an example by its place."""
        if not isinstance(place, int) or not 0 <= place < len(self.desk.examples):
            return self._nothing_chosen("There is no such picture")
        return self._chosen(self.desk.examples[place])

    def take(self, path: str | None) -> tuple[Any, ...]:
        """Take in an uploaded file, or say why it is not; either way the place is free again."""
        return None, *self._take(path)

    def _take(self, path: str | None) -> tuple[Any, ...]:
        try:
            if path is None or not Path(path).resolve().is_relative_to(self.folder):
                raise InputError("only uploaded pictures can be read\n  fix: choose a picture")
            file = Path(path)
            return self._chosen(take_in(read_upload(file), name=file.name))
        except DataError as error:
            return self._nothing_chosen(f"{_sentence(error.problem)}\nfix: {FORMATS_HINT}")
        except SaccadeError as error:
            return self._nothing_chosen(_sentence(str(error)))
        except Exception:
            log.exception("an upload could not be read")
            return self._nothing_chosen(f"The file could not be read\nfix: {FORMATS_HINT}")

    def ask(
        self, session: Session, question: str, other: str, budget: float, baseline: str
    ) -> tuple[Any, ...]:
        """Answer; without a second question the one asked before stands in for it."""
        question, other = (question or "").strip(), (other or "").strip()
        came_first = False
        if not other and session.question:
            before = session.question if session.question != question else session.other
            came_first = bool(before) and before != question
            other = before if came_first else ""
        changed = replace(session, question=question, other=other, other_came_first=came_first)
        return self._answer(changed, before=session, budget=budget, baseline=baseline)

    def again(self, session: Session, budget: float, baseline: str) -> tuple[Any, ...]:
        """The same question under another budget or beside another baseline."""
        if session.picture is None or not session.question:
            return self._unchanged(session)
        return self._answer(session, before=session, budget=budget, baseline=baseline)

    def _answer(
        self, session: Session, *, before: Session, budget: float, baseline: str
    ) -> tuple[Any, ...]:
        try:
            if self.desk.bench is None:
                raise InputError("The model is still loading\n  fix: try again in a moment")
            if session.picture is None:
                raise InputError("No picture is chosen\n  fix: pick one, or bring your own")
            asked = self.desk.bench.ask(
                session.picture, session.question, share=float(budget) / 100,
                baseline=None if baseline in (None, NO_BASELINE) else str(baseline),
                other_question=session.other, other_came_first=session.other_came_first,
            )  # fmt: skip
            shown = tuple(show(asked) for show in SHOWN)
        except SaccadeError as error:
            return self._unchanged(before, message=_sentence(str(error)))
        except Exception:
            log.exception("a question could not be answered")
            message = "This could not be answered; the terminal says more\nfix: try another picture"
            return self._unchanged(before, message=message)
        kept = f"{sum(asked.ours.prediction.kept)} of {sum(asked.ours.prediction.full)}"
        said = parts.status("ready", f"Answered from {kept} visual tokens.")
        return session, said, *shown

    def _unchanged(self, session: Session, *, message: str = "") -> tuple[Any, ...]:
        status = self._refusal(message) if message else self.gradio.skip()
        return session, status, *(self.gradio.skip() for _ in SHOWN)

    def _refusal(self, message: str) -> str:
        """The status line for a failure; a passing note says it to who has scrolled away."""
        self.gradio.Warning(parts.text(message.partition("\n")[0]), duration=6)
        return parts.status("error", message)

    def _chosen(self, picture: Picture) -> tuple[Any, ...]:
        questions = list(dict.fromkeys(sample.question for sample in picture.known))
        update = self.gradio.update
        return (
            Session(picture=picture),
            parts.status("ready", "Write a question and press Ask."),
            parts.chosen(picture),
            update(choices=questions, value=None, visible=bool(questions)),
            questions[0] if questions else self.gradio.skip(),
            "",
            *(parts.waiting("Press Ask.") for _ in SHOWN),
        )

    def _nothing_chosen(self, message: str) -> tuple[Any, ...]:
        return (
            Session(),
            self._refusal(message),
            parts.chosen(None),
            self.gradio.update(choices=[], value=None, visible=False),
            self.gradio.skip(),
            self.gradio.skip(),
            *(parts.waiting(START) for _ in SHOWN),
        )


def _sentence(message: str) -> str:
    """An error message as a sentence of its own: a capital first, the fix on the next line."""
    clean = message.replace("\n  fix:", "\nfix:")
    return clean[:1].upper() + clean[1:]


def _thumbnail(picture: Picture) -> Any:
    small = picture.image.copy()
    small.thumbnail((256, 256))
    return small
