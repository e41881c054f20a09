"""The report in a real browser: it renders, sorts its table, fits a phone, and asks for nothing.

Runs with Debian's chromium when it is present (CI installs it); a developer's machine without a
browser skips.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from saccade.config.schema import Config
from saccade.microscope.report import ReportData, page

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--virtual-time-budget=3000",
)  # fmt: skip
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium found; install it (apt-get install chromium) to run this"
)


def chromium(folder: Path, html: str, *arguments: str) -> str:
    """Open `html` in a fresh profile; returns what the browser printed."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    profile = folder / "profile"
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def html() -> str:
    from tests.report_example import comparison, explanation, training_events

    return page(
        ReportData(
            name="relevance", path="runs/relevance", config=Config(), done={"target_step": 8},
            comparison=comparison(), events=training_events(),
            right=[explanation()], wrong=[explanation(correct=False)],
        )
    )  # fmt: skip


def test_all_pictures_load_and_the_page_makes_no_request(tmp_path: Path, html: str) -> None:
    probe = """<script>addEventListener("load", () => {
      const broken = [...document.images].filter((i) => !i.complete || !i.naturalWidth).length;
      const asked = performance.getEntriesByType("resource")
        .filter((r) => !r.name.startsWith("data:"));
      document.title = `broken=${broken} asked=${asked.length} images=${document.images.length}`;
    });</script>"""
    dom = chromium(tmp_path, html.replace("</body>", probe + "</body>"), "--dump-dom")
    found = re.search(r"<title>broken=(\d+) asked=(\d+) images=(\d+)</title>", dom)
    assert found is not None
    broken, asked, images = map(int, found.groups())
    assert (broken, asked) == (0, 0)
    assert images > 10


def test_a_click_on_a_heading_sorts_the_table(tmp_path: Path, html: str) -> None:
    probe = """<script>addEventListener("load", () => {
      const table = document.querySelector("table.sortable");
      const heads = [...table.tHead.rows[0].cells];
      const head = heads.findIndex((c) => c.textContent.startsWith("accuracy"));
      const rows = () => [...table.tBodies[0].rows];
      const values = () => rows().map((r) => Number(r.cells[head].dataset.value));
      const button = table.tHead.rows[0].cells[head].querySelector("button");
      button.click(); const down = values(); button.click(); const up = values();
      const sorted = (v, s) => v.every((x, i) => !i || s * (x - v[i - 1]) >= 0);
      document.title = `sorted=${sorted(down, -1) && sorted(up, 1) && down.length > 3}`;
    });</script>"""
    dom = chromium(tmp_path, html.replace("</body>", probe + "</body>"), "--dump-dom")
    assert "<title>sorted=true</title>" in dom


def test_the_page_fits_a_phone_without_sideways_scrolling(tmp_path: Path, html: str) -> None:
    # headless windows have a least width, so the phone is a frame inside the window
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    outer = """<title>?</title><iframe src="report.html" width="390" height="800"
      onload="const d = this.contentDocument.documentElement;
      document.title = `wide=${d.scrollWidth}`"></iframe>"""
    dom = chromium(tmp_path, outer, "--dump-dom", "--allow-file-access-from-files")
    assert "<title>wide=390</title>" in dom or "<title>wide=375</title>" in dom


@pytest.mark.parametrize(("scheme", "bright"), [("light", True), ("dark", False)])
def test_the_page_follows_the_readers_light_or_dark_scheme(
    tmp_path: Path, html: str, scheme: str, bright: bool
) -> None:
    shot = tmp_path / "shot.png"
    setting = f"--blink-settings=preferredColorScheme={1 if bright else 0}"
    chromium(tmp_path, html, f"--screenshot={shot}", "--window-size=900,700", setting)
    corner = Image.open(shot).convert("L").getpixel((5, 5))
    assert isinstance(corner, int)
    assert (corner > 200) == bright
