"""A deployed Space in a real browser: `python app.py` alone serves it, and it answers.

Two folders are made by the real command, one from the tiny base that ships (its answers are right)
and one from a run with a selector (which tokens were read is shown); each is moved away from the
checkout and started without it. Skips where gradio, playwright or chromium is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser.test_app import CHROMIUM, FLAGS, MISSING, PATIENCE_MS
from tests.free_port import free_port
from tests.picture_files import plain_png
from tests.scored_run import make_run

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"missing here: {', '.join(MISSING)}")
ROOT = Path(__file__).parents[2]
TINY = ROOT / "src" / "saccade" / "assets" / "tiny-base"


def deployed(source: Path, folder: Path, *words: str) -> Path:
    """Run the command and carry the folder away, as a Space would be."""
    made = folder / "made"
    command = [sys.executable, "-m", "saccade.cli", "deploy", str(source), "--out", str(made)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, "--limit", "4", *words], cwd=folder, env=environment, check=True)
    return made.rename(folder / "elsewhere")


@contextmanager
def served(space: Path) -> Iterator[str]:
    """Start `python app.py` with nothing of the checkout in reach; yields the address."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = kept | {
        "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    with (space.parent / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(space / "app.py")], cwd=space.parent, env=environment,
            stdout=log, stderr=log,
        )  # fmt: skip
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_MS / 1000
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/config", timeout=60).close()
                break
            except OSError:
                said = (space.parent / "log").read_text()
                assert process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.2)
        yield address
        assert "Traceback" not in (space.parent / "log").read_text()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=100)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def opened(address: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found]

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, timeout=2 * PATIENCE_MS
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        yield page
        browser.close()


def ask(page: Any, picture: Path, question: str) -> str:
    """Upload, ask, and return the answer that appears."""
    page.locator("#picture input[type=file]").set_input_files(picture)
    page.locator("#picture img").wait_for()
    page.locator("#question textarea, #question input").fill(question)
    page.locator("#ask").click()
    page.locator("#numbers", has_text="visual tokens were read").wait_for()
    return page.locator("#answer textarea, #answer input").input_value()


@pytest.mark.skipif(not (TINY / "config.json").is_file(), reason="the tiny base is not here")
def test_the_tiny_base_answers_right_in_a_browser_away_from_the_checkout(tmp_path: Path) -> None:
    from saccade.config.schema import ScenesSource
    from saccade.data.images import load_image
    from saccade.data.sources import open_source

    space = deployed(TINY, tmp_path, "model.device=cpu")
    scenes = open_source(ScenesSource(seed=77, scenes=4))
    sample = next(
        one for one in (scenes[place] for place in range(len(scenes))) if one.kind == "color"
    )
    picture = tmp_path / "scene.png"
    load_image(sample.images[0], where="scene").save(picture)
    with served(space) as address, opened(address) as page:
        assert ask(page, picture, sample.question) == sample.answer
        assert page.locator("#kept").count() == 0  # there is no selector whose choice to show


def test_a_selector_shows_what_was_read_and_mistakes_get_a_message(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    space = deployed(run.path, tmp_path)
    picture = tmp_path / "mine.png"
    picture.write_bytes(plain_png())
    shutil.rmtree(tmp_path / "base")  # the Space has its own
    with served(space) as address, opened(address) as page:
        page.locator("#ask").click()
        page.locator(".toast-body", has_text="Choose a picture first").wait_for()
        page.locator(".toast-close").first.click()
        ask(page, picture, "what color is it?")
        page.locator("#kept img").wait_for()
        kept, full = counts(page)
        assert kept == max(1, round(full * 0.25))
        slider = page.locator("#budget input[type=range]")
        slider.focus()
        for _ in range(25):
            slider.press("ArrowRight")
        page.locator("#ask").click()
        half = f"{round(full * 0.5)} of {full} visual tokens"
        page.locator("#numbers", has_text=half).wait_for()
        page.locator("#question textarea, #question input").fill("   ")
        page.locator("#ask").click()
        page.locator(".toast-body", has_text="Write a question").wait_for()
    assert json.loads((space / "space.json").read_text())["selects"] is True


def counts(page: Any) -> tuple[int, int]:
    """Kept and all visual tokens, once the page has stopped working on it."""
    page.wait_for_function("/^\\d+ of/.test(document.querySelector('#numbers').innerText.trim())")
    words = page.locator("#numbers").inner_text().split()
    return int(words[0]), int(words[2])
