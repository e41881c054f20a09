"""One headless Chromium that draws pages and says where their elements lie.

HTML flows in; a PNG, the boxes of the targets that can be seen in full and the accessibility tree
flow out. Playwright's objects belong to the thread that made them, hence the browser lives in a
thread of its own, which any thread may ask; a forked process starts its own. The browser is closed
at exit, when nobody holds it any more, and after a minute in which nothing was asked.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import queue
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from saccade.config.errors import InputError
from saccade.data.screens.html import SHEET

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-lcd-text", "--font-render-hinting=none", "--force-color-profile=srgb",
    "--hide-scrollbars", "--disable-dev-shm-usage", "--disable-extensions", "--mute-audio",
    "--enable-blink-features=ComputedAccessibilityInfo",
)  # fmt: skip
IDLE_SECONDS = 60.0
PATIENCE_MS = 60_000.0
FIX = "  fix: set renderer: drawn, or pip install playwright and apt install chromium"
MEASURE = """(html) => {
  document.body.innerHTML = html;
  const W = innerWidth, H = innerHeight, targets = {}, tree = [];
  const insets = [[.5, .5], [.06, .06], [.94, .06], [.06, .94], [.94, .94]];
  for (const el of document.body.querySelectorAll('*:not(svg):not(polygon)')) {
    const r = el.getBoundingClientRect();
    if (el.dataset.target !== undefined) {
      let seen = r.left >= 0 && r.top >= 0 && r.right <= W && r.bottom <= H;
      for (const [x, y] of insets) {
        const hit = document.elementFromPoint(r.left + x * r.width, r.top + y * r.height);
        seen = seen && hit !== null && (hit === el || el.contains(hit));
      }
      if (seen) targets[el.dataset.target] = [r.left, r.top, r.right, r.bottom];
    }
    if (el.closest('[aria-hidden="true"]') || r.right <= 0 || r.bottom <= 0) continue;
    if (r.left >= W || r.top >= H || r.width < 1 || r.height < 1) continue;
    if (el.tagName === 'DIV' && !el.hasAttribute('role')) continue;
    const own = [...el.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join(' ').trim();
    let role = el.computedRole || el.getAttribute('role') || el.tagName.toLowerCase();
    if (role === 'generic' || role === 'none') role = own ? 'text' : '';
    if (!role) continue;
    const name = (el.computedName || el.getAttribute('aria-label') || own).slice(0, 160);
    tree.push([role, name, Math.max(0, r.left), Math.max(0, r.top),
               Math.min(W, r.right), Math.min(H, r.bottom)]);
  }
  return {targets, tree};
}"""


@dataclass(frozen=True)
class Seen:
    """A page as a renderer shows it; boxes in pixels (left, top, right, bottom)."""

    png: bytes
    targets: dict[int, tuple[float, float, float, float]]
    tree: list[tuple[str, str, tuple[float, float, float, float]]]


def find_chromium() -> str | None:
    """The browser's program, if there is one and playwright to drive it."""
    if importlib.util.find_spec("playwright") is None:
        return None
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class BrowserLost(InputError):
    """A browser that was there is not any more; another may serve."""


class Chromium:
    """Draws pages of one size; starts with the first page."""

    def __init__(self, *, width: int, height: int) -> None:
        self.size = (width, height)
        self._lock = threading.Lock()
        self._desk: _Desk | None = None

    def draw(self, html: str, *, wanted: int) -> Seen | None:
        """The page, or None where fewer than `wanted` targets can be seen in full."""
        try:
            return self._open_desk().ask(html, wanted)
        except BrowserLost:
            with self._lock:
                self._desk = None
        return self._open_desk().ask(html, wanted)

    def _open_desk(self) -> _Desk:
        with self._lock:
            if self._desk is None or not self._desk.mine():
                self._desk = _Desk(self.size)
                weakref.finalize(self, self._desk.close)
            return self._desk

    def close(self) -> None:
        """End the browser; the next page starts another."""
        with self._lock:
            if self._desk is not None:
                self._desk.close()
            self._desk = None


class _Desk:
    """The thread in which one browser lives; it holds no reference to who asks."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.process = os.getpid()
        self.jobs: queue.Queue[tuple[str, int, Future[Any]] | None] = queue.Queue()
        self.over = threading.Event()
        # a daemon: a main thread that ends does not wait for it, its exit handlers end it
        self.thread = threading.Thread(
            target=_serve, args=(self.jobs, self.over, size), name="chromium", daemon=True
        )
        self.thread.start()

    def mine(self) -> bool:
        """Whether the thread runs in this process; a fork copies the object, not the thread."""
        return self.process == os.getpid() and not self.over.is_set()

    def ask(self, html: str, wanted: int) -> Seen | None:
        answer: Future[Any] = Future()
        self.jobs.put((html, wanted, answer))
        while True:
            try:
                return answer.result(timeout=1.0)
            except TimeoutError:
                # it went to rest at the moment in which it was asked
                if self.over.is_set() and not answer.done():
                    raise BrowserLost(f"the browser has ended\n{FIX}") from None

    def close(self) -> None:
        if self.process == os.getpid() and self.thread.is_alive():
            self.jobs.put(None)
            self.thread.join(timeout=20)


def _serve(
    jobs: queue.Queue[tuple[str, int, Future[Any]] | None],
    over: threading.Event,
    size: tuple[int, int],
) -> None:
    """Start a browser, answer until told to stop or until nobody asks for long."""
    first = jobs.get()
    try:
        if first is not None:
            with_browser(size, lambda draw: _answer_all(jobs, first, draw))
    except Exception as error:  # whoever waits is told, whatever it was
        if first is not None and not first[2].done():
            first[2].set_exception(error)
    finally:
        over.set()


def _answer_all(
    jobs: queue.Queue[tuple[str, int, Future[Any]] | None],
    job: tuple[str, int, Future[Any]] | None,
    draw: Callable[[str, int], Seen | None],
) -> None:
    while job is not None:
        html, wanted, answer = job
        try:
            answer.set_result(draw(html, wanted))
        except Exception as error:
            answer.set_exception(BrowserLost(f"the browser cannot draw a page: {error}\n{FIX}"))
            return
        try:
            job = jobs.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            return


def with_browser(
    size: tuple[int, int], use: Callable[[Callable[[str, int], Seen | None]], None]
) -> None:
    """Start a browser with one empty page of `size` and hand `use` what draws on it."""
    from playwright.sync_api import Error, sync_playwright

    program = find_chromium()
    width, height = size
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=program, args=list(FLAGS), timeout=PATIENCE_MS,
                handle_sigint=False, handle_sigterm=False, handle_sighup=False,
            )  # fmt: skip
        except Error as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"{program} does not start: {reason}\n{FIX}") from error
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE_MS)
        page.set_content(f"<!doctype html><style>{SHEET}</style><body></body>")
        session = page.context.new_cdp_session(page)

        def draw(html: str, wanted: int) -> Seen | None:
            found = page.evaluate(MEASURE, html)
            if len(found["targets"]) < wanted:
                return None
            shot = session.send(
                "Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True}
            )
            return Seen(
                base64.b64decode(shot["data"]),
                {int(number): tuple(box) for number, box in found["targets"].items()},
                [(role, name, tuple(box)) for role, name, *box in found["tree"]],
            )

        use(draw)
        browser.close()
