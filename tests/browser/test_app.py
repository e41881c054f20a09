"""The microscope in a real browser: ask, move the budget, compare, and everything that goes wrong.

Serves a run with a random model (what it answers is nonsense) through the real command, drives it
with headless chromium, and sends the requests a browser would not. Skips where gradio, playwright
or chromium is missing.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.free_port import free_port
from tests.picture_files import black_png, plain_png
from tests.scored_run import make_run

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
MISSING = [
    name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None
] + ([] if CHROMIUM else ["chromium"])  # fmt: skip
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"missing here: {', '.join(MISSING)}")

SOURCE = Path(__file__).parents[2] / "src"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PATIENCE_MS = 150_000


class Served:
    """A running app and the browser page that looks at it."""

    def __init__(self, *, port: int, folder: Path, process: subprocess.Popen[str]) -> None:
        self.port, self.folder, self.process = port, folder, process
        self.asked_elsewhere: list[str] = []
        self.page: Any = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, bytes]:
        """The path as it is written: no normalising, as an attacker would send it."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=150)
        try:
            link.request("GET", path)
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()

    def status(self) -> str:
        return self.page.locator("#status").inner_text()

    def wait_for_status(self, words: str) -> str:
        found = self.page.locator("#status .sm-status", has_text=words)
        found.wait_for(timeout=PATIENCE_MS)
        return found.inner_text()

    def wait_for_number(self, number: int, selector: str) -> None:
        """Wait until so many elements are there: a tab is filled when it is opened."""
        count = f"document.querySelectorAll({json.dumps(selector)}).length"
        self.page.wait_for_function(f"{count} === {number}")

    def pick(self, place: int = 0) -> None:
        self.page.locator("#examples button.thumbnail-item").nth(place).click()
        self.wait_for_status("Write a question")

    def ask(self, question: str, *, other: str = "") -> None:
        self.page.locator("#question textarea, #question input").fill(question)
        self.page.locator("#other textarea, #other input").fill(other)
        self.page.locator("#ask").click()

    def upload(self, name: str, content: bytes) -> None:
        file = self.folder / "uploads" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        self.page.locator("#upload input[type=file]").set_input_files(file)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("app")
    run, port = make_run(folder), free_port()
    (folder / "tmp").mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(SOURCE), "TMPDIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1",
        "GRADIO_ALLOWED_PATHS": "/",  # what a careless environment would open
    }  # fmt: skip
    command = [sys.executable, "-m", "saccade.cli", "app", str(run.path), "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        first = process.stdout.readline().strip()
        assert first == f"http://127.0.0.1:{port}/", (folder / "log").read_text()
        yield from looked_at(Served(port=port, folder=folder, process=process))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_MS / 1000) == 0
    finally:
        process.kill()
    said = (folder / "log").read_text()
    # the framework logs forged paths that it refuses; nothing a page can do leaves a traceback
    assert said.count("Traceback") <= 2 * said.count("InvalidPathError"), said
    assert not list((folder / "tmp").glob("saccade-app-*")), "the app left its folder behind"


def looked_at(app: Served) -> Iterator[Served]:
    """Open the page and wait until it is ready."""
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found]

    def note(request: Any) -> None:
        if not request.url.startswith((app.address, "data:", "blob:")):
            app.asked_elsewhere.append(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, timeout=2 * PATIENCE_MS
        )
        app.page = browser.new_page(viewport={"width": 1400, "height": 900})
        app.page.set_default_timeout(PATIENCE_MS)
        app.page.on("request", note)
        app.page.goto(app.address)
        app.wait_for_status("Ready")
        yield app
        browser.close()


def test_a_picked_picture_and_a_question_bring_an_answer(served: Served) -> None:
    served.pick()
    served.page.wait_for_function(
        "document.querySelector('#question textarea, #question input').value.length > 5"
    )
    start = time.perf_counter()
    served.page.locator("#ask").click()
    served.page.locator("#answers table").wait_for()
    sys.stdout.write(f"first answer after {time.perf_counter() - start:.2f} s\n")
    heads = served.page.locator("#answers thead th").all_inner_texts()
    assert heads == ["every token", "trained selector, 25%", "uniform grid, 25%"]
    served.wait_for_number(3, "#kept-cells .sm-frame")
    served.tab("Scores")
    served.wait_for_number(7, "#scores .sm-frame")
    served.tab("Textures")
    served.wait_for_number(13, "#textures .sm-frame")
    served.tab("Numbers")
    served.page.locator("#numbers", has_text="4x4 coverage").wait_for()


def test_the_budget_slider_answers_as_it_moves(served: Served) -> None:
    served.pick()
    served.page.locator("#ask").click()
    served.page.locator("#answers th", has_text="trained selector, 25%").wait_for()
    slider = served.page.locator("#budget input[type=range]")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    served.page.locator("#answers th", has_text="trained selector, 30%").wait_for()
    for _ in range(5):
        slider.press("ArrowLeft")
    served.page.locator("#answers th", has_text="trained selector, 25%").wait_for()


def test_another_question_shows_what_changes(served: Served) -> None:
    served.pick()
    served.ask("what color is the star?", other="which digit is on the heart?")
    served.tab("Two questions")
    change = served.page.locator("#two-questions")
    change.locator(".sm-legend").wait_for()
    assert "Overlap (IoU)" in change.inner_text()
    served.ask("how many are red?")  # the question asked before stands in for the second one
    change.locator(".sm-pair", has_text="how many are red?").wait_for()
    pair = change.locator(".sm-pair").inner_text()
    assert pair.index("what color is the star?") < pair.index("how many are red?")


def test_any_baseline_stands_beside_the_trained_selector(served: Served) -> None:
    served.pick()
    served.page.locator("#ask").click()
    served.page.locator("#answers table").wait_for()
    for title, said in (("average pooling", "no cell chosen"), ("random cells", "cells")):
        served.page.locator("#baseline input").click()
        served.page.get_by_role("option", name=title).click()
        served.page.locator("#answers th", has_text=title).wait_for()
        served.tab("Kept cells")
        served.page.locator("#kept-cells", has_text=said).wait_for()


@pytest.mark.parametrize(
    ("question", "message"), [("   ", "The question is empty"), ("why " * 200, "at most 500")]
)
def test_a_question_that_is_none_gets_a_message(
    served: Served, question: str, message: str
) -> None:
    served.pick()
    served.ask(question)
    assert "fix:" in served.wait_for_status(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.png", b"these are only words", "not an image"),
        ("notes.txt", b"these are only words", "not an image"),
        ("half.png", plain_png()[:70], "truncated or damaged"),
        ("hundred.png", black_png(10_000, 10_000), "100 megapixels (10000 x 10000)"),
        ("bomb.png", black_png(30_000, 30_000), "30000 x 30000"),
        ("strip.png", plain_png(3000, 1), "resized"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(("png", "txt")) else "",
)
def test_a_file_that_is_no_usable_picture_gets_a_message(
    served: Served, name: str, content: bytes, message: str
) -> None:
    served.upload(name, content)
    if message == "resized":  # a picture, but of a shape that no grid of cells fits
        served.wait_for_status("Write a question")
        served.ask("what is it?")
    start = time.perf_counter()
    assert served.wait_for_status(message)
    assert time.perf_counter() - start < 20
    assert str(served.folder) not in served.status()  # no path of the disk is told


def test_after_all_that_an_own_picture_is_answered(served: Served) -> None:
    served.upload("mine.png", plain_png())
    served.page.locator("#chosen", has_text="mine.png").wait_for()
    served.ask("what color is it?")
    served.wait_for_status("Answered from")
    served.tab("Numbers")
    served.page.locator("#numbers", has_text="not known").wait_for()


def test_the_page_says_that_the_model_is_loading_until_it_is(served: Served) -> None:
    assert b"Loading the model" in served.get("/config")[1]  # how every page starts


def test_a_file_too_large_to_take_gets_a_message(served: Served) -> None:
    served.upload("large.png", bytes(32_000_000))
    served.page.locator(".toast-body", has_text="maximum allowed size").wait_for()


def test_the_page_asks_nothing_of_other_hosts_and_fits_a_narrow_window(served: Served) -> None:
    served.page.set_viewport_size({"width": 480, "height": 900})
    served.page.wait_for_function("document.documentElement.scrollWidth <= 480")
    served.page.set_viewport_size({"width": 1400, "height": 900})
    assert served.asked_elsewhere == []


def test_no_other_file_leaves_the_disk_over_http(served: Served) -> None:
    secret = served.folder / "secret.txt"
    secret.write_text("sesame")
    own = next((served.folder / "tmp").glob("saccade-app-*"))
    thumbnail = next(own.rglob("*.webp"))
    assert served.get(f"/gradio_api/file={thumbnail}")[0] == 200  # the page's own are served
    targets = [
        "/etc/passwd", "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "file:///etc/passwd", f"{own}/../../secret.txt",
        f"{own}/%2e%2e/%2e%2e/secret.txt", str(secret), "config.yaml", "runs/toy/config.yaml",
        f"{served.folder}/runs/toy/config.yaml", "%00/etc/passwd", f"{served.address}/config",
        "http://169.254.169.254/",
    ]  # fmt: skip
    for target in targets:
        for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/file/"):
            status, body = served.get(route + target)
            assert status in (400, 403, 404, 405), (route + target, status)
            assert b"sesame" not in body and b"root:" not in body and b"selector" not in body
    for path in (
        "/static/../../../../../../etc/passwd", "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/proxy=http://127.0.0.1/", "/static/img/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    ):  # fmt: skip
        status, body = served.get(path)
        assert status >= 400 and b"root:" not in body, path


def test_a_forged_upload_cannot_name_a_file_of_the_disk(served: Served) -> None:
    config = json.loads(served.get("/config")[1])
    upload = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "upload")
    event = next(
        d for d in config["dependencies"] if [upload, "upload"] in [list(t) for t in d["targets"]]
    )
    secret = served.folder / "secret.png"
    secret.write_bytes(plain_png())
    forged = {"path": str(secret), "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    for value in (forged, str(secret), {**forged, "path": "", "url": f"file://{secret}"}):
        answer = forged_event(served, number=event["id"], data=[value])
        assert "data:image" not in answer
        assert '"success":false' in answer or "only uploaded pictures" in answer.lower()


def forged_event(served: Served, *, number: int, data: list[Any]) -> str:
    """Send an event as the page would, and return everything the server streams back."""
    session = f"forged{time.monotonic_ns()}"
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session})
    link = http.client.HTTPConnection("127.0.0.1", served.port, timeout=150)
    link.request("POST", "/gradio_api/queue/join", body, {"Content-Type": "application/json"})
    joined = link.getresponse()
    text = joined.read().decode()
    if joined.status != 200:
        return text + '"success":false'
    link.request("GET", f"/gradio_api/queue/data?session_hash={session}")
    stream, lines = link.getresponse(), []
    while "process_completed" not in (lines[-1] if lines else "") and (line := stream.readline()):
        lines.append(line.decode())
    link.close()
    return "".join(lines)
