"""What every launch target must do; a target inherits `TargetContract` and gives two fixtures.

`target` is an open target, `spec` a job that its place can start and that ends by itself, and
`slow_spec` one that goes on until it is cancelled. Left out: training to the end, which the tests
of whole launches do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

from saccade.cloud.findings import Finding
from saccade.launch.spec import Handle, JobSpec, Status
from saccade.launch.states import TERMINAL, State
from saccade.launch.targets.base import CAPABILITIES, Target

PATIENCE_S = 300.0
ENDED = TERMINAL | {State.PREEMPTED}


def until(
    target: Target, handle: Handle, wanted: Callable[[Status], bool], *, seconds: float = 300
) -> Status:
    """Poll until the status is the wanted one."""
    deadline = time.monotonic() + seconds
    while True:
        status = target.poll(handle)
        if wanted(status):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def is_over(status: Status) -> bool:
    """Whether the platform says that it has ended."""
    return status.ended_at is not None


def until_over(target: Target, handle: Handle) -> Status:
    """Poll until the job is over."""
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE_S:
        status = target.poll(handle)
        if status.state in ENDED:
            return status
        time.sleep(0.1)
    raise AssertionError(f"{handle} is not over after {PATIENCE_S} s: {target.poll(handle)}")


def until_runs(target: Target, handle: Handle) -> Status:
    """Poll until the job runs."""
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE_S:
        status = target.poll(handle)
        if status.state is State.RUNNING:
            return status
        assert status.state not in ENDED, status
        time.sleep(0.05)
    raise AssertionError(f"{handle} does not run after {PATIENCE_S} s")


class TargetContract:
    """Tests that every target inherits."""

    def test_it_names_itself_and_known_capabilities(self, target: Target) -> None:
        assert target.name
        assert target.capabilities <= CAPABILITIES

    def test_checking_and_planning_make_nothing(self, target: Target, spec: JobSpec) -> None:
        before = target.list()
        findings = target.check(spec)
        assert all(isinstance(finding, Finding) for finding in findings)
        planned = target.plan(spec)
        assert json.loads(json.dumps(planned)) == planned
        assert target.list() == before

    def test_a_finding_that_blocks_says_what_to_do(self, target: Target, spec: JobSpec) -> None:
        for finding in target.check(spec):
            assert finding.level != "block" or finding.fix, finding

    def test_submitting_twice_makes_one_job(self, target: Target, spec: JobSpec) -> None:
        first = target.submit(spec)
        assert target.submit(spec) == first
        assert target.list().count(first) == 1
        assert len(target.list()) == 1
        until_over(target, first)
        assert target.submit(spec) == first  # also when it is over

    def test_another_attempt_and_another_token_are_other_jobs(
        self, target: Target, spec: JobSpec
    ) -> None:
        handles = [
            target.submit(spec),
            target.submit(spec.at(attempt=2)),
            target.submit(replace(spec, token="other").at(attempt=1)),
        ]
        assert len({handle.id for handle in handles}) == 3
        for handle in handles:
            until_over(target, handle)

    def test_a_handle_from_the_log_is_as_good_as_the_first(
        self, target: Target, spec: JobSpec
    ) -> None:
        handle = target.submit(spec)
        stored = Handle.from_json(json.loads(json.dumps(handle.to_json())))
        assert stored == handle
        assert until_over(target, stored).state in ENDED

    def test_a_job_that_fails_has_its_exit_code_times_and_log(
        self, target: Target, spec: JobSpec
    ) -> None:
        handle = target.submit(spec)
        status = until_over(target, handle)
        assert status.state is State.FAILED
        assert status.error_code not in (None, 0)
        assert status.started_at is not None
        assert status.ended_at is not None
        assert status.started_at <= status.ended_at <= time.time() + 1
        assert target.poll(handle) == status
        if "logs" in target.capabilities:
            lines, _ = target.logs(handle, cursor=None)
            assert any(line.text.strip() for line in lines)

    def test_log_lines_come_once(self, target: Target, spec: JobSpec) -> None:
        if "logs" not in target.capabilities:
            return
        handle = target.submit(spec)
        seen, cursor, over = [], None, False
        while True:
            over = over or target.poll(handle).state in ENDED
            lines, cursor = target.logs(handle, cursor=cursor)
            seen += [line.text for line in lines]
            if over and not lines:
                break
            time.sleep(0.1)
        everything, _ = target.logs(handle, cursor=None)
        assert seen == [line.text for line in everything]

    def test_a_running_job_is_cancelled_and_cancelling_again_is_no_error(
        self, target: Target, slow_spec: JobSpec
    ) -> None:
        handle = target.submit(slow_spec)
        until_runs(target, handle)
        target.cancel(handle)
        target.cancel(handle)
        status = until_over(target, handle)
        assert status.state is State.CANCELLED
        target.cancel(handle)
        assert target.poll(handle).state is State.CANCELLED

    def test_cancelling_a_finished_job_changes_nothing(self, target: Target, spec: JobSpec) -> None:
        handle = target.submit(spec)
        before = until_over(target, handle)
        target.cancel(handle)
        assert target.poll(handle) == before
