"""A pipeline stage that takes about a second and continues where it was killed: a test's tool.

    python toy_stage.py NAME --folder FOLDER --out FILE [--metrics FILE] [--in FILE ...]

It works in ticks; each is kept in the folder (written aside and renamed), so a restart goes on with
the next one. Its output depends on its name and inputs alone. Every start and end is a line in the
journal, which is how the tests know what ran. `TOY_*` variables make it fail, slow or large.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--metrics", type=Path)
    parser.add_argument("--in", type=Path, action="append", default=[], dest="inputs")
    parser.add_argument("--bytes", type=int, default=0)
    given = parser.parse_args()
    journal("start", given.name)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    digest = hashlib.sha256(given.name.encode())
    for one in sorted(given.inputs):
        digest.update(one.read_bytes())
    quick = given.name in os.environ.get("TOY_QUICK", "").split()
    pause = 0.0 if quick else float(os.environ.get("TOY_TICK_SECONDS", "0.02"))
    for tick in range(done_ticks(given.folder), ticks()):
        if stopped:
            return 143
        time.sleep(pause)
        keep(given.folder / "ticks", str(tick + 1))
    fail = Path(os.environ.get("TOY_FAIL", "no such file"))
    if fail.is_file() and given.name in fail.read_text().split():
        fail.write_text(" ".join(word for word in fail.read_text().split() if word != given.name))
        sys.stderr.write(f"{given.name} fails\n")
        return 1
    # a test may limit file sizes to fill the store's disk, which must not concern this program
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    keep(given.out, digest.hexdigest() + "x" * given.bytes)
    if given.metrics:
        keep(given.metrics, json.dumps({"score": ticks() / 10, "seconds": 1.0}))
    journal("end", given.name)
    return 0 if soft else 1


def ticks() -> int:
    return int(os.environ.get("TOY_TICKS", "5"))


def done_ticks(folder: Path) -> int:
    path = folder / "ticks"
    return int(path.read_text()) if path.is_file() else 0


def keep(path: Path, text: str) -> None:
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)


def journal(what: str, name: str) -> None:
    path = os.environ.get("TOY_JOURNAL")
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, f"{what} {name}\n".encode())
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
