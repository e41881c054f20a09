"""Launching whatever goes wrong: a fault at every call, then the same command again; one job.

The calls of a launch that goes well are counted first; then each in turn fails once, or all of its
kind fail for good. Afterwards the fake cloud's jobs are compared with the launch log: every job
has its submission in the log, the log's job is the only open one, and the same command converges.
The fast tests take the calls that change something and one look of each kind; slow ones take all.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from saccade.cloud.api import transport
from saccade.cloud.api.transport import Google, Patience
from saccade.config.errors import SaccadeError
from saccade.launch import begin
from saccade.launch.drive import Driver, tick
from saccade.launch.states import State
from saccade.launch.targets import fake as fake_target
from saccade.launch.view import LaunchView
from tests.cloud_project import PATIENT
from tests.toy_jobs import Toys, toys

FAULTS: dict[str, dict[str, Any]] = {
    "an outage": {"status": 503},
    "a broken connection": {"status": "drop"},
    "a lost answer": {"status": "drop", "when": "after"},
    "too many requests": {"status": 429},
    "a refusal": {"status": 403},
}
ONCE = ("an outage", "a lost answer", "too many requests")
"""What must be survived without a second command."""
HASTY = Patience(deadline_s=1.0, base_s=0.01, longest_s=0.05, timeout_s=60.0)
"""Gives up soon, so that a call that fails for good costs no minutes."""
given = [PATIENT]
"""The patience of new connections."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again within milliseconds."""
    plain = transport.connect

    def connect(project: str | None, *, env: Any) -> Google:
        return plain(project, env=env).patient(given[-1])

    monkeypatch.setattr(transport, "connect", connect)
    monkeypatch.setattr(fake_target, "connect", connect)


@contextmanager
def in_haste() -> Iterator[None]:
    given.append(HASTY)
    try:
        yield
    finally:
        given.pop()


def goes_on(view: LaunchView) -> bool:
    good = view.state is State.RUNNING and view.unreachable_since is None
    return view.over or (good and view.beat is not None)


def attempt_one(cloud: Toys, *, rounds: int = 60, within: float = 60.0) -> LaunchView:
    """What `saccade launch --yes` does, up to the first heartbeat or some rounds of watching."""
    driver = cloud.launch()
    try:
        return cloud.until(driver, goes_on, rounds=rounds, within=within)
    except AssertionError:  # still dark
        return driver.launch.view()


@contextmanager
def beating(folder: Path) -> Iterator[Toys]:
    with toys(folder) as cloud:
        cloud.script(("beat", [1, None]), ("sleep", 600))
        yield cloud


def kind_of(call: dict[str, Any]) -> str:
    """A call's method and path without what is different each time."""
    path = re.sub(r"[0-9a-f]{64}|/\d{6,}", "*", call["path"])
    return f"{call['method']} {path}"


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The calls of a launch that goes well, without those of its container."""
    with beating(tmp_path_factory.mktemp("calls") / "one") as cloud:
        before = len(cloud.cloud.calls())
        assert attempt_one(cloud).state is State.RUNNING
        return cloud.cloud.calls()[before:]


def telling(calls: list[dict[str, Any]]) -> list[int]:
    """Positions of all changing calls, and of the first look of each kind."""
    seen: set[str] = set()
    found = []
    for position, call in enumerate(calls):
        if call["method"] != "GET" or kind_of(call) not in seen:
            found.append(position)
        seen.add(kind_of(call))
    return found


def every(calls: list[dict[str, Any]]) -> list[int]:
    """All positions, but of looks that are repeated until something happens only three."""
    kinds = [kind_of(call) for call in calls]
    return [n for n, kind in enumerate(kinds) if kinds[:n].count(kind) < 3]


def check(cloud: Toys, view: LaunchView, *, driver: Driver, what: object) -> None:
    """Compare the fake's jobs with the log; the launch runs in the one job that is open."""
    assert view.state is State.RUNNING, (what, view.state, view.message)
    no_orphans(cloud, driver, what=what)
    assert [view.handle and view.handle.id] == cloud.open_jobs(), what


def no_orphans(cloud: Toys, driver: Driver, *, what: object) -> None:
    """Every job that exists has its submission in the log."""
    begun = {
        str(event["attempt"])
        for event in driver.launch.events()
        if event["type"] in ("submitting", "submitted")
    }
    for job in cloud.jobs():
        assert job["labels"]["token"] == "t", what
        assert job["labels"]["attempt"] in begun, what


def survive(folder: Path, position: int, fault: str) -> None:
    """One fault at one call of a launch, and the launch gets to its first heartbeat alone."""
    with beating(folder) as cloud:
        cloud.cloud.add_fault(".", after=position, **FAULTS[fault])
        view = attempt_one(cloud)
        check(cloud, view, driver=cloud.launch(), what=(position, fault))


def recover(folder: Path, position: int, fault: str) -> None:
    """One fault, which may end the command; the same command then completes the launch."""
    with beating(folder) as cloud:
        cloud.cloud.add_fault(".", after=position, **FAULTS[fault])
        try:
            attempt_one(cloud)
        except SaccadeError as error:
            assert "\n  fix: " in str(error), error
        cloud.cloud.world.faults.clear()
        check(cloud, attempt_one(cloud), driver=cloud.launch(), what=(position, fault))


def outlast(folder: Path, kind: str, fault: str) -> None:
    """All calls of a kind fail for good; what is left is consistent, and goes on later."""
    with beating(folder) as cloud:
        pattern = "^" + re.escape(kind).replace(r"\*", "[^ ]*") + r"(\?|$)"
        cloud.cloud.add_fault(pattern, times="always", **FAULTS[fault])
        try:
            with in_haste():
                view = attempt_one(cloud, rounds=3, within=0.0)
        except SaccadeError as error:
            view = None
            assert "\n  fix: " in str(error), error
        cloud.cloud.world.faults.clear()
        plan = cloud.plan()
        driver = Driver(plan.launch, plan.target, env=plan.env)
        no_orphans(cloud, driver, what=(kind, fault))
        if view is not None and view.over:  # an end that was reported leaves no machine behind
            assert cloud.open_jobs() == [], (kind, fault)
            assert view.exit_code, (kind, fault)
        check(cloud, attempt_one(cloud), driver=driver, what=(kind, fault))


@pytest.mark.parametrize("fault", ONCE)
def test_a_fault_at_any_telling_call_is_survived_without_a_second_command(
    tmp_path: Path, calls: list[dict[str, Any]], fault: str
) -> None:
    places = telling(calls)
    mine = places[ONCE.index(fault) :: len(ONCE)]  # the slow tests make every pair
    for position in mine:
        survive(tmp_path / str(position), position, fault)


def test_a_lost_answer_or_an_outage_of_the_submission_makes_one_job(
    tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    place = next(n for n, call in enumerate(calls)
                 if kind_of(call).startswith("POST ") and "customJobs" in call["path"])  # fmt: skip
    for fault in FAULTS:
        recover(tmp_path / fault, place, fault)


def test_a_kind_of_call_that_fails_for_good_leaves_what_the_next_command_completes(
    tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    for number, kind in enumerate(sorted({kind_of(call) for call in calls})):
        outlast(tmp_path / str(number), kind, "a refusal")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ONCE)
def test_a_fault_at_every_call_is_survived_without_a_second_command(
    tmp_path: Path, calls: list[dict[str, Any]], fault: str
) -> None:
    for position in every(calls):
        survive(tmp_path / str(position), position, fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_at_every_call_leaves_what_the_next_command_completes(
    tmp_path: Path, calls: list[dict[str, Any]], fault: str
) -> None:
    for position in every(calls):
        recover(tmp_path / str(position), position, fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_kind_of_call_that_fails_for_good_leaves_what_the_next_command_completes(
    tmp_path: Path, calls: list[dict[str, Any]], fault: str
) -> None:
    for number, kind in enumerate(sorted({kind_of(call) for call in calls})):
        outlast(tmp_path / str(number), kind, fault)


def together(work: Callable[[], object], *, number: int) -> list[BaseException]:
    """Do the same several times at once; returns what was raised."""
    raised: list[BaseException] = []
    gate = threading.Barrier(number)

    def run() -> None:
        gate.wait()
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    return raised


def test_two_launches_with_one_token_make_one_job_even_at_once_and_without_a_common_log(
    tmp_path: Path,
) -> None:
    with beating(tmp_path / "one") as cloud:
        again = attempt_one(cloud)
        assert attempt_one(cloud).handle == again.handle
        assert len(cloud.jobs()) == 1
        # another computer: the same token, and a log of its own
        roots = [f"run.root={tmp_path}/other-{n}" for n in range(2)]
        drivers = [cloud.launch(root) for root in roots]
        for driver in drivers:
            cloud.until(driver, goes_on)
            assert driver.launch.view().handle == again.handle
        assert len(cloud.jobs()) == 1


def test_rounds_of_two_watchers_at_once_make_one_job(tmp_path: Path) -> None:
    from saccade.launch.drive import watching

    with beating(tmp_path / "one") as cloud:
        driver = cloud.launch()

        def work() -> None:
            with watching(driver.launch) as acting:
                if acting:
                    tick(driver)

        assert together(work, number=4) == []
        cloud.until(driver, goes_on)
        assert len(cloud.jobs()) == 1


def test_a_launch_that_failed_for_good_is_launched_again_as_a_further_attempt(
    tmp_path: Path,
) -> None:
    with beating(tmp_path / "one") as cloud:
        cloud.script(("beat", [3, 3]), ("sleep", 0.2), ("exit", 9), attempt=1)
        first = cloud.launch()
        assert cloud.until(first).state is State.FAILED
        assert begin.standing(cloud.plan()) is begin.Standing.ENDED
        view = attempt_one(cloud)
        check(cloud, view, driver=first, what="again")
        assert (view.attempt, len(cloud.jobs())) == (2, 2)
