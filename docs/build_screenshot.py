"""The picture of the terminal interface in the README, made by the interface itself.

Nothing flows in: runs and launches are made in a temporary folder with the real file formats. An
SVG flows out to `docs/images/tui.svg`. Numbers are invented, everything else is what the interface
shows.

    python docs/build_screenshot.py
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from saccade.launch.drive import watching
from saccade.launch.log import Launch
from saccade.tui.app import SaccadeApp
from saccade.tui.sources import Sources
from tests.run_folders import event, make_run

IMAGE = Path(__file__).parent / "images" / "tui.svg"
SIZE = (128, 26)


def launched(
    root: Path, run: str, *, state: str, step: int, steps: int, held_s: float, price: float,
    preempted: int = 0,
) -> Launch:  # fmt: skip
    """Write the log of a launch on a rented machine, with its heartbeats."""
    launch = Launch(root / ".launches" / f"{run}-4b8e21")
    begin = time.time() - held_s
    spec = {
        "run": run, "token": "4b8e21", "attempt": 1, "recipe": "relevance", "replicas": 1,
        "machine": "a2-highgpu-1g", "strategy": "spot", "region": "europe-west4", "image": None,
        "code": "", "config": "", "store": "gs://bucket",
    }  # fmt: skip
    offer = {"region": "europe-west4", "machine": "a2-highgpu-1g", "strategy": "spot",
             "usd_per_hour": price}  # fmt: skip
    launch.append("planned", at=begin, spec=spec, target="vertex", run_dir=str(root / run),
                  offers=[offer], policy={"max_attempts": 5})  # fmt: skip
    launch.append("ready", at=begin, spec=spec)
    for attempt in range(1, preempted + 2):
        handle = {"target": "vertex", "id": f"jobs/{attempt}", "region": "europe-west4"}
        launch.append("submitted", at=begin, attempt=attempt, offer=0, handle=handle)
        launch.append("state", at=begin, state="RUNNING", detail="")
        if attempt <= preempted:
            launch.append("preempted", at=begin + held_s / 3, attempt=attempt, step=step // 3,
                          checkpoint=step // 4, lost_steps=9, lost_usd=0.01,
                          message=f"preempted at step {step // 3}")  # fmt: skip
            launch.append("resubmitting", at=begin + held_s / 3 + 1, attempt=attempt + 1, offer=0,
                          not_before=None, message="")  # fmt: skip
    for beat in range(1, 41):
        at = begin + held_s * beat / 40
        reached = step * beat // 40
        loss = 2.2 * math.exp(-3 * reached / steps) + 0.15 + 0.08 * math.sin(beat)
        launch.append("heartbeat", at=at, attempt=preempted + 1, step=reached, beat_at=at,
                      steps=steps, loss=loss,
                      checkpoint={"step": step - 20, "at": at - 60})  # fmt: skip
    if state != "RUNNING":
        launch.append("state", at=time.time() - 240, state=state, detail="")
    return launch


def make_world(root: Path) -> list[Launch]:
    """Runs and launches of one busy afternoon."""
    make_run(root, "relevance", steps=400, total=400, done=True, at=time.time() - 7200)
    make_run(root, "relevance-10", steps=260, total=400, last="preempted", at=time.time() - 5400)
    make_run(root, "sft-receipts", steps=90, total=300, last="failed", at=time.time() - 86400)
    folder = make_run(root, "tiny-ablation", steps=40, total=400, at=time.time() - 600)
    with (folder / "events.jsonl").open("a") as log:
        log.write(event("warning", at=time.time(), message="gradients are vanishing"))
    return [
        launched(root, "qwen-2b-keep10", state="RUNNING", step=1840, steps=4000, held_s=5100,
                 price=2.28, preempted=2),
        launched(root, "qwen-2b-keep25", state="RUNNING", step=2210, steps=4000, held_s=5700,
                 price=2.28),
        launched(root, "qwen-4b-keep10", state="WAITING_CAPACITY", step=40, steps=4000,
                 held_s=900, price=3.41, preempted=1),
    ]  # fmt: skip


async def draw(root: Path) -> str:
    """The monitor as SVG."""
    app = SaccadeApp(Sources(root=root))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("1")
        while not app.store.get("board").value:
            await pilot.pause(0.05)
        await pilot.pause(1.5)
        return app.export_screenshot(title="saccade tui")


def main() -> None:
    """Write the picture."""
    for name in ("SACCADE_FAKE_CLOUD", "GOOGLE_CLOUD_PROJECT", "NO_COLOR"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        launches = make_world(Path("runs"))
        with watching(launches[0]), watching(launches[1]):
            svg = asyncio.run(draw(Path("runs")))
    IMAGE.parent.mkdir(exist_ok=True)
    IMAGE.write_text(svg, encoding="utf-8")
    print(f"wrote {IMAGE}")


if __name__ == "__main__":
    main()
