"""The whole life of a cloud training against the fake Google Cloud, through the real command line.

Nothing flows in: no account, no key, no network. Real `saccade` processes set a project up, launch
a training on spot machines, lose the machine twice (once in the middle of an upload), resume in
another region, finish, fetch the result, compare it bit by bit with a training that was never
touched, count the money, and take everything down. A timeline and a list of facts flow out; a fact
that does not hold makes the exit code 1. Containers are local processes, so prices are those of the
machines asked for and speeds are those of this one. `--speed` measures how fast the verbs are and
how large the extra `cloud` is (`cloud_speed.py`).

    python benchmarks/cloud_life.py
    python benchmarks/cloud_life.py --speed
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloud_speed
import yaml
from kills import compare_runs

from saccade.launch import costs
from saccade.launch.log import Launch, launches
from saccade.launch.view import LaunchView, after

ROOT = Path(__file__).resolve().parents[1]
BAR_SECONDS = 600.0
PATIENCE_SECONDS = 900.0
RUN = "life"
PROJECT, REGION = "fake-project", "us-central1"
BUCKET = f"{PROJECT}-saccade-{REGION}"
CUT = "step-20/model"
"""The file in whose upload the first machine is taken away."""
SCENARIO: dict[str, Any] = {
    "jobs": [
        [{"queued": 0.2}, {"pending": 0.5}, {"running": {"until_call": f"PUT .*{CUT}"}},
         {"preempt": {"grace": 1}}],
        [{"queued": 0.2}, {"pending": 0.5}, {"running": {"until_step": 40}},
         {"preempt": {"grace": 25}}],
        [{"queued": 0.2}, {"pending": 0.5}, "running"],
    ],
    # longer than the notice: the file cannot be up when the machine goes
    "faults": [{"match": f"PUT .*{CUT}", "status": "slow", "seconds": 5}],
}  # fmt: skip
SETTINGS = (
    "model.device=cpu", "training.threads=1", "training.steps=60", "training.save_every=10",
    "training.eval_every=30", "run.heartbeat_seconds=1",
)  # fmt: skip
LAUNCH = (
    "launch.target=fake", "launch.machine=a2-highgpu-1g", "launch.strategy=spot",
    "launch.backoff_seconds=1", "launch.hours=1",
)  # fmt: skip
PRIVATE = ("SACCADE_", "GOOGLE_", "WANDB_", "HF_TOKEN", "STORAGE_EMULATOR_HOST", "CLOUDSDK_")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str
    seconds: float

    def json(self) -> Any:
        """Its output as values."""
        return json.loads(self.out)

    @property
    def last(self) -> str:
        """The last line it said."""
        return (self.err.strip() or self.out.strip()).rpartition("\n")[2]


@dataclass(frozen=True)
class Row:
    """One line of the timeline."""

    at: float
    what: str
    attempt: str = ""
    step: str = ""
    cost: str = ""


@dataclass
class Life:
    """The folder, what was done in it, and what was found to be so."""

    folder: Path
    env: dict[str, str]
    started: float = field(default_factory=time.time)
    rows: list[Row] = field(default_factory=list)
    facts: list[tuple[bool, str, str]] = field(default_factory=list)

    def run(self, *words: str, show: str = "") -> Done:
        """Call `saccade`, and note it in the timeline."""
        at, begin = time.time(), time.monotonic()
        got = subprocess.run(
            [sys.executable, "-m", "saccade.cli", *words], cwd=self.folder, env=self.env,
            capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
        done = Done(got.returncode, got.stdout, got.stderr, time.monotonic() - begin)
        shown = show or f"$ saccade {' '.join(words)}"
        self.rows.append(Row(at, f"{shown}  -> exit {done.code}, {done.seconds:.1f} s"))
        print(f"{at - self.started:6.1f} s  {self.rows[-1].what}", flush=True)
        return done

    def fact(self, name: str, holds: bool, found: object = "") -> None:
        """Keep whether something is so, and what was seen."""
        self.facts.append((bool(holds), name, str(found)))
        if not holds:
            print(f"          FAILED: {name}: {found}", flush=True)

    def get(self, path: str) -> Any:
        """Ask the fake cloud directly, past saccade."""
        with urllib.request.urlopen(self.env["SACCADE_FAKE_CLOUD"] + path, timeout=30) as answer:
            return json.loads(answer.read() or b"{}")


def main() -> int:
    arguments = read_arguments()
    if arguments.speed:
        return cloud_speed.main()
    kept = arguments.folder
    folder = (kept or Path(tempfile.mkdtemp(prefix="cloud-life-"))).resolve()
    folder.mkdir(parents=True)
    print(f"{machine()}\nin {folder}\n", flush=True)
    life = live(folder, recipe=arguments.recipe)
    show(life)
    failed = [name for holds, name, _ in life.facts if not holds]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(to_json(life), indent=2) + "\n", encoding="utf-8")
    if kept is None and not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


def live(folder: Path, *, recipe: str) -> Life:
    """The whole life; the fake cloud ends with it."""
    life = Life(folder, environment(folder))
    scenario = folder / "scenario.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO, sort_keys=False), encoding="utf-8")
    server = start_cloud(life, scenario)
    try:
        set_up(life)
        launch = train_in_the_cloud(life, recipe)
        preempted_twice(life, launch)
        same_as_uninterrupted(life)
        money(life, launch)
        take_down(life)
    finally:
        life.run("cloud", "fake", "--stop", "--state", "cloud")
        server.terminate()
        server.communicate(timeout=60)
    seconds = time.time() - life.started
    life.fact("all of it takes less than ten minutes", seconds < BAR_SECONDS, f"{seconds:.0f} s")
    return life


def environment(folder: Path) -> dict[str, str]:
    """An environment without anybody's account, keys or settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    paths = [str(ROOT / "src"), own.get("PYTHONPATH", "")]
    return own | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)), "SACCADE_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160",
    }  # fmt: skip


def start_cloud(life: Life, scenario: Path) -> subprocess.Popen[str]:
    """`saccade cloud fake`, as in a second terminal; its first line says what to export."""
    words = ["cloud", "fake", "--fresh", "--state", "cloud", "--scenario", str(scenario)]
    server = subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", *words], cwd=life.folder, env=life.env,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    line = server.stdout.readline()
    if "SACCADE_FAKE_CLOUD=" not in line:
        raise RuntimeError(f"the fake cloud did not start: {line}")
    life.env["SACCADE_FAKE_CLOUD"] = line.strip().partition("=")[2]
    life.rows.append(Row(life.started, f"$ saccade {' '.join(words[:-1])} scenario.yaml &"))
    return server


def set_up(life: Life) -> None:
    """A new project: set it up, see that a second time changes nothing, ask the doctor."""
    before = life.run("cloud", "status")
    life.fact(
        "a new project is not ready: status leaves with 3", before.code == 3, f"exit {before.code}"
    )
    setup = life.run("cloud", "setup", "--yes")
    life.fact("setup makes everything", setup.code == 0, setup.last)
    again = life.run("cloud", "setup", "--yes", "--json")
    steps = again.json()["steps"]
    life.fact("setup twice changes nothing", again.code == 0 and not steps, f"{len(steps)} steps")
    status = life.run("cloud", "status", "--machine", "a2-highgpu-1g", "--strategy", "spot")
    life.fact("status finds nothing that blocks", status.code == 0, f"exit {status.code}")
    doctor = life.run("doctor", "--json")
    rows = {row["name"]: row for row in doctor.json()}
    cloud = rows.get("cloud", {"status": "absent", "found": ""})
    life.fact("the doctor finds machine and cloud in order",
              doctor.code == 0 and cloud["status"] == "ok", cloud["found"])  # fmt: skip


def train_in_the_cloud(life: Life, recipe: str) -> Launch:
    """Plan, launch, and watch to the end, in one command that resubmits by itself."""
    # a token of its own: the default one changes with the code, which may be edited meanwhile
    words = ("launch", recipe, f"run.name={RUN}", *SETTINGS, *LAUNCH, "--token", "steady")
    plan = life.run(*words, "--dry-run", "--json", show=f"$ saccade launch {recipe} --dry-run ...")
    made = life.get("/fake/calls?match=POST.*customJobs")["calls"]
    life.fact("a dry run makes no job", plan.code == 0 and not made, f"{len(made)} jobs")
    strategy = plan.json()["spec"]["strategy"] if plan.code == 0 else plan.err
    life.fact("it asks for a spot machine", strategy == "spot", strategy)
    done = life.run(*words, "--yes", show=f"$ saccade launch {recipe} --yes ...")
    (life.folder / "launch.log").write_text(done.out + done.err, encoding="utf-8")
    life.fact("the launch ends with 0", done.code == 0, done.last)
    launch = launches(life.folder / "runs")[0]
    life.rows += timeline(launch)
    view = launch.view()
    life.fact("it is SUCCEEDED, with DONE", view.state == "SUCCEEDED", view.message)
    again = life.run(*words, "--yes", show=f"$ saccade launch {recipe} --yes ... (again)")
    jobs = life.get("/fake/calls?match=POST.*customJobs%24")["calls"]
    life.fact("the same launch again makes no further job",
              again.code == 0 and len(jobs) == 3, f"{len(jobs)} jobs in all")  # fmt: skip
    return launch


def timeline(launch: Launch) -> list[Row]:
    """The launch log as lines: what happened, with attempt, step and cost at that moment."""
    rows: list[Row] = []
    view = LaunchView(key=launch.key)
    for event in launch.events():
        mark = view.mark
        view = after(view, event)
        text = _told(event, view, before=mark.step if mark else None)
        if not text:
            continue
        dollars = costs.cost(view, now=event["time"])
        step = f"{view.beat.step}/{view.beat.steps}" if view.beat else ""
        cost = "" if dollars is None else f"${dollars:.4f}"
        rows.append(Row(event["time"], text, str(view.attempt or ""), step, cost))
    return rows


def _told(event: Mapping[str, Any], view: LaunchView, *, before: int | None) -> str:
    kind = event["type"]
    if kind == "state":
        return str(event["state"])
    if kind == "heartbeat":
        now = view.mark.step if view.mark else None
        return f"checkpoint {now} is in the store" if now not in (None, before) else ""
    if kind == "submitted":
        return f"submitted to {event['handle']['region']}"
    if kind in ("preempted", "resubmitting", "ended"):
        name = str(event["state"]) if kind == "ended" else kind.upper()
        text = str(event["message"]).removeprefix("preempted ")
        if kind == "resubmitting":  # it repeats what was said of the preemption
            text = text.rpartition("; ")[2]
        return f"{name}: {text}".rstrip(": ")
    return ""


def preempted_twice(life: Life, launch: Launch) -> None:
    """Twice mid-training, once during an upload, and each time continued from what was whole."""
    events = launch.events()
    lost = [event for event in events if event["type"] == "preempted"]
    sent = [event["handle"]["region"] for event in events if event["type"] == "submitted"]
    life.fact("three attempts, two preemptions", len(lost) == 2 and len(sent) == 3,
              f"{len(sent)} attempts, {len(lost)} preemptions")  # fmt: skip
    steps = [event["step"] for event in lost]
    life.fact("both in the middle", all(0 < step < 60 for step in steps), f"at steps {steps}")
    life.fact("resumed in other regions", len(set(sent)) > 1, " -> ".join(sent))
    cut = life.get("/fake/calls?match=PUT.*" + CUT)["calls"]
    marks = life.get("/fake/calls?match=PUT.*step-20/COMPLETE")["calls"]
    second = [event["time"] for event in events if event["type"] == "submitted"][1:2]
    early = [call for call in marks if second and call["time"] < second[0]]
    life.fact("the first machine went while step 20 was being uploaded",
              bool(cut) and "slow" in cut[0]["faults"] and not early,
              f"{CUT} under way, no COMPLETE")  # fmt: skip
    life.fact("so step 10 counted", bool(lost) and lost[0]["checkpoint"] == 10,
              lost[0]["message"] if lost else "")  # fmt: skip
    for number, event in enumerate(lost, start=2):
        text = life.run("logs", RUN, "--attempt", str(number)).out
        wanted = f"continuing from step {event['checkpoint']}"
        life.fact(f"attempt {number} went on from there", wanted in text, wanted)
    stored = life.get(f"/storage/v1/b/{BUCKET}/o?prefix=runs/{RUN}/DONE")
    life.fact("DONE is in the bucket", len(stored.get("items", [])) == 1, f"runs/{RUN}/DONE")


def same_as_uninterrupted(life: Life) -> None:
    """Fetch the finished run, train the same configuration here in peace, compare every bit."""
    said = (life.folder / "launch.log").read_text("utf-8")
    words = re.findall(r"bring it here: saccade (fetch .*)$", said, flags=re.MULTILINE)
    life.fact(
        "the launch says how to fetch its result", bool(words), f"saccade {''.join(words[-1:])}"
    )
    if not words:
        return
    fetched, peaceful = life.folder / "runs" / RUN, life.folder / "peaceful" / RUN
    got = life.run(*shlex.split(words[-1]))
    life.fact("the finished run comes from the bucket, nothing is trained",
              got.code == 0 and f"{RUN}: finished" in got.out + got.err, got.last)  # fmt: skip
    config = f"runs/.launches/{RUN}-steady/config.yaml"
    local = life.run("train", "-c", config, "run.store=null", "run.root=peaceful")
    life.fact("an uninterrupted local run of the same file", local.code == 0, local.last)
    if got.code or local.code:
        return
    result = compare_runs(peaceful, fetched)
    for name in result.compared:
        life.fact(f"equal to the last bit: {name}", name not in result.differences)
    weights = [path.relative_to(peaceful) for path in peaceful.glob("model/*.safetensors")]
    same = [(peaceful / one).read_bytes() == (fetched / one).read_bytes() for one in weights]
    life.fact(
        "final weights are byte-equal", bool(same) and all(same), ", ".join(map(str, weights))
    )


def money(life: Life, launch: Launch) -> None:
    """What `saccade jobs` says it cost is what the held seconds cost at the shown prices."""
    row = life.run("jobs", "--json").json()[0]
    full = life.run("watch", RUN, "--once", "--json").json()
    told = row["usd"] or 0.0
    held = sum((one.ended_at or 0) - one.started_at for one in launch.view().held)
    paid = sum(one["held_s"] / 3600 * one["usd_per_hour"] for one in full["attempts"])
    life.fact("the cost is reported", told > 0, f"${told:.4f} for {held:.0f} s of machine time")
    life.fact("it is the sum of the attempts", abs(paid - told) < 1e-3, ", ".join(
        f"attempt {one['attempt']}: {one['held_s']} s at ${one['usd_per_hour']:.2f}/h"
        for one in full["attempts"]))  # fmt: skip


def take_down(life: Life) -> None:
    """Teardown asks for the bucket's name, then leaves nothing; the cloud itself is asked."""
    refused = life.run("cloud", "teardown", "--yes")
    life.fact(
        "a bucket with finished runs is not deleted unnamed",
        refused.code == 2,
        refused.last.strip(),
    )
    done = life.run("cloud", "teardown", "--yes", "--confirm", BUCKET)
    life.fact("teardown deletes the rest", done.code == 0, done.last)
    scan = life.run("cloud", "teardown", "--yes", "--json")
    left = scan.json()["leftovers"]
    life.fact("the scan finds nothing left", scan.code == 0 and not left, left or "exit 0")
    place = f"/v1/projects/{PROJECT}/locations"
    there = {
        "buckets": life.get(f"/storage/v1/b?project={PROJECT}").get("items", []),
        "repositories": life.get(f"{place}/{REGION}/repositories").get("repositories", []),
        "accounts": life.get(f"/v1/projects/{PROJECT}/serviceAccounts").get("accounts", []),
        "secrets": life.get(f"/v1/projects/{PROJECT}/secrets").get("secrets", []),
        "running jobs": [
            job
            for region in regions(life)
            for job in life.get(f"{place}/{region}/customJobs").get("customJobs", [])
            if job["state"] not in ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED")
        ],
    }
    counts = ", ".join(f"{len(found)} {name}" for name, found in there.items())
    life.fact("the cloud itself says so", not any(there.values()), counts)


def regions(life: Life) -> list[str]:
    """The regions that this life's jobs ran in."""
    calls = life.get("/fake/calls?match=POST.*customJobs%24")["calls"]
    return sorted({call["path"].split("/locations/")[1].split("/")[0] for call in calls})


def show(life: Life) -> None:
    """Print timeline and facts."""
    print("\ntimeline")
    rows = sorted(life.rows, key=lambda row: row.at)
    shown = [(f"{row.at - life.started:.1f}", row.what, row.attempt, row.step, row.cost)
             for row in rows]  # fmt: skip
    table([("s", "what", "attempt", "step", "cost"), *shown])
    print("\nfacts")
    for holds, name, found in life.facts:
        print(f"  {'ok' if holds else 'FAILED':6} {name}" + (f" ({found})" if found else ""))
    good = sum(holds for holds, _, _ in life.facts)
    print(f"\n{good} of {len(life.facts)} facts hold\n{machine()}", flush=True)


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(("  " + "  ".join([cells[0].strip().rjust(widths[0]), *cells[1:]])).rstrip())


def machine() -> str:
    """This machine in one line."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {load},"
        f" Python {platform.python_version()}"
    )


def to_json(life: Life) -> dict[str, Any]:
    """Timeline and facts as plain values."""
    rows = sorted(life.rows, key=lambda row: row.at)
    return {
        "machine": machine(),
        "timeline": [{**row.__dict__, "at": round(row.at - life.started, 1)} for row in rows],
        "facts": [{"holds": a, "fact": b, "found": c} for a, b, c in life.facts],
    }


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--recipe", default="smoke/relevance", help="recipe to train")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="also write timeline and facts to this file")
    parser.add_argument("--speed", action="store_true", help="measure verbs and install size")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
