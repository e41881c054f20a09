"""Every failure of a launch, as a table: what is seen, what is said, the state, the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.launch import costs, messages
from saccade.launch.machines import Strategy
from saccade.launch.spec import Handle, JobSpec, Status
from saccade.launch.states import State, may_follow
from saccade.launch.supervise import (
    CHECKPOINT_PATIENCE_S,
    Action,
    Cancel,
    Record,
    Seen,
    Submit,
    decide,
    refused,
)
from saccade.launch.view import LaunchView, after

OFFERS = [
    {"region": "us-east5", "machine": "a2-ultragpu-1g", "strategy": "spot", "usd_per_hour": 1.8},
    {"region": "us-central1", "machine": "a2-ultragpu-1g", "strategy": "spot", "usd_per_hour": 3.6},
]
HOUR = 3600.0


def spec(**changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "run": "mine", "token": "abc", "attempt": 1, "recipe": "relevance",
        "machine": "a2-ultragpu-1g", "replicas": 1, "strategy": Strategy.SPOT,
        "region": "us-east5", "image": "image@sha256:0", "code": "gs://b/code", "config": "gs://b/c",
        "store": "gs://b",
    }  # fmt: skip
    return JobSpec(**(values | changes))


@dataclass
class Story:
    """A launch without files: events and looks at a job in, actions and views out."""

    offers: list[dict[str, Any]] = field(default_factory=lambda: list(OFFERS))
    policy: dict[str, Any] = field(default_factory=dict)
    now: float = 1000.0
    view: LaunchView = field(default_factory=lambda: LaunchView(key="mine-abc"))
    jobs: int = 0
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        policy = {"max_attempts": 5, "wait_s": 600.0, "backoff_s": 30.0, "budget_usd": None}
        self.log(
            "planned", spec=spec().to_json(), target="vertex", run_dir="runs/mine",
            offers=self.offers, policy=policy | self.policy,
        )  # fmt: skip
        self.log("ready", spec=spec().to_json())

    def log(self, type: str, **fields: Any) -> None:
        before = self.view.state
        self.view = after(self.view, {"time": self.now, "type": type, **fields})
        assert may_follow(self.view.state, after=before), (before, self.view.state, type)

    def look(self, seen: Seen | None = None, *, after_s: float = 10.0) -> list[Action]:
        """Let time pass, look, and do what is decided."""
        self.now += after_s
        actions = decide(self.view, seen or Seen(), now=self.now)
        self.do(actions)
        return actions

    def do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Record):
                self.log(action.type, **action.fields)
                self.said.append(str(action.fields.get("message", "")))
            elif isinstance(action, Submit):
                self.jobs += 1
                chosen = {"attempt": action.attempt, "offer": action.offer}
                self.log("submitting", **chosen)
                handle = Handle("vertex", f"job-{self.jobs}", self.offers[action.offer]["region"])
                self.log("submitted", **chosen, handle=handle.to_json())
            else:
                self.log("cancelling", reason=action.reason, message=action.message)
                self.log("cancel_sent")
                self.said.append(action.message)

    def sees(self, state: State, *, after_s: float = 10.0, **more: Any) -> list[Action]:
        names = ("detail", "error_code", "started_at", "ended_at")
        status = {name: more.pop(name) for name in names if name in more}
        return self.look(Seen(status=Status(state, **status), **more), after_s=after_s)

    def runs(self, step: int = 0, *, checkpoint: int | None = None, after_s: float = 60.0) -> None:
        """A minute of training, with a heartbeat at its end."""
        at = self.now + after_s
        beat = {
            "attempt": self.view.attempt, "step": step, "beat_at": at, "steps": 4000, "loss": 0.5,
            "checkpoint": None if checkpoint is None else {"step": checkpoint, "at": at - 120},
        }  # fmt: skip
        self.sees(State.RUNNING, after_s=after_s, beat=beat)

    def running(self) -> Story:
        """Submitted, and on a machine."""
        self.look()
        self.sees(State.RUNNING)
        return self

    @property
    def ends(self) -> tuple[State, int | None]:
        return self.view.state, self.view.exit_code


DONE = {"target_step": 4000, "metrics": {"loss": 0.1}}


def test_a_launch_that_goes_well_ends_with_done_and_exit_0() -> None:
    story = Story().running()
    story.runs(4000, checkpoint=4000)
    story.sees(State.SUCCEEDED, done=DONE)
    assert story.ends == (State.SUCCEEDED, 0)
    assert story.view.message == "DONE at step 4000"
    assert story.look() == []


def test_a_preemption_is_said_with_step_checkpoint_loss_and_attempt() -> None:
    story = Story().running()
    story.runs(1)
    story.runs(1840, checkpoint=1800, after_s=3600)
    story.sees(State.PREEMPTED, after_s=0, detail="preempted")
    said = next(text for text in story.said if text.startswith("preempted"))
    assert said == (
        "preempted at step 1840, last checkpoint 1800 (2 min ago), lost 40 steps about $0.04,"
        " attempt 2/5"
    )
    assert story.view.state is State.RESUBMITTING
    assert story.look(after_s=1) == []  # the pause
    assert story.look(after_s=30) == [Submit(2, 0)]
    assert story.view.preemptions == 1
    assert (story.view.handle and story.view.handle.id) == "job-2"


def test_a_finished_launch_names_the_command_that_fetches_its_result(tmp_path: Path) -> None:
    story = Story()
    story.look()
    assert messages.bring_home(story.view, root=Path("runs")) == ""
    story.look(Seen(status=Status(State.SUCCEEDED), done={"target_step": 6, "time": story.now}))
    said = messages.bring_home(story.view, root=Path("runs"))
    assert said.endswith("; bring it here: saccade fetch mine")
    said = messages.bring_home(story.view, root=Path("/r"), fake="http://x")
    assert said.endswith(": SACCADE_FAKE_CLOUD=http://x saccade fetch mine --root /r")
    there = after(story.view, {"type": "fetched", "time": story.now, "folder": str(tmp_path)})
    assert messages.bring_home(there, root=Path("runs")) != ""  # and deleted since
    (tmp_path / "DONE").write_text("{}")
    assert messages.bring_home(there, root=Path("runs")) == ""


def test_exit_143_counts_as_preempted_and_is_submitted_again() -> None:
    story = Story().running()
    story.runs(100, checkpoint=100)
    story.sees(State.FAILED, error_code=143)
    assert story.view.state is State.RESUBMITTING
    assert story.view.preemptions == 1


def test_a_platform_that_restarts_the_job_in_place_is_a_preemption_of_the_same_job() -> None:
    story = Story().running()
    story.runs(100, checkpoint=100)
    story.sees(State.WAITING_CAPACITY, detail="STOCKOUT")
    assert story.view.state is State.WAITING_CAPACITY
    assert story.view.preemptions == 1
    story.runs(120, checkpoint=100)
    assert (story.view.attempt, story.jobs, story.view.state) == (1, 1, State.RUNNING)


def test_a_restart_in_place_between_two_looks_shows_in_the_steps() -> None:
    story = Story().running()
    story.runs(100, checkpoint=90)
    story.runs(0, checkpoint=90)
    assert story.view.preemptions == 1
    assert "preempted at step 100, last checkpoint 90" in story.said[-1] + story.said[-2]
    assert (story.view.state, story.view.attempt, story.jobs) == (State.RUNNING, 1, 1)
    story.runs(95, checkpoint=90)
    assert story.view.preemptions == 1
    story.sees(State.WAITING_CAPACITY)  # this one is seen
    story.runs(0, checkpoint=90)
    assert story.view.preemptions == 2


def test_the_rate_counts_no_loading_and_no_jump_to_a_checkpoint() -> None:
    story = Story().running()
    story.runs(0)
    story.runs(1000)
    assert story.view.steps_per_s is None
    story.runs(1060)
    assert story.view.steps_per_s == 1.0


def test_a_preempt_loop_without_a_new_checkpoint_stops_and_offers_the_other_strategies() -> None:
    kept = {"region": "us-east5", "machine": "a2-ultragpu-1g", "strategy": "on-demand",
            "usd_per_hour": 4.0}  # fmt: skip
    story = Story(offers=[*OFFERS, kept]).running()
    story.runs(100, checkpoint=100)
    for _ in range(3):
        story.sees(State.PREEMPTED)
        story.look(after_s=700)
        if story.view.over:
            break
        story.runs(110, checkpoint=100)
    assert story.ends == (State.FAILED, 143)
    assert "preempted 2 times without a new checkpoint" in story.view.message
    assert "launch.strategy=flex-start" in story.view.message
    assert "on-demand in us-east5: $4.00/h" in story.view.message
    assert "/h more)" in story.view.message


def test_attempts_have_a_cap() -> None:
    story = Story(policy={"max_attempts": 2}).running()
    story.runs(100, checkpoint=100)
    story.sees(State.PREEMPTED)
    story.look(after_s=100)
    story.runs(200, checkpoint=200)
    story.sees(State.PREEMPTED)
    assert story.ends == (State.FAILED, 143)
    assert "all 2 attempts are used" in story.view.message
    assert story.jobs == 2


def test_a_place_that_preempts_twice_or_is_sold_out_is_left() -> None:
    story = Story().running()
    story.runs(100, checkpoint=100)
    story.sees(State.PREEMPTED, detail="Resources are insufficient in region: us-east5")
    assert story.view.offer == 1
    assert any("moving to a2-ultragpu-1g spot in us-central1" in text for text in story.said)


def test_places_without_a_machine_are_left_and_are_no_preemptions() -> None:
    story = Story(policy={"max_attempts": 4})
    sold_out = Seen(status=Status(State.PREEMPTED, raw={"cause": "stockout"}))
    for _ in range(3):
        story.look(after_s=60)
        story.look(sold_out)
        assert story.view.state is State.RESUBMITTING
    assert (story.view.preemptions, story.view.stuck, story.view.attempt) == (0, 0, 4)
    assert "trying a2-ultragpu-1g spot in us-central1" in story.view.message
    story.look(after_s=60)
    story.look(sold_out)
    assert story.ends == (State.FAILED, 3)
    assert "no capacity" in story.view.message
    assert "fix: launch.strategy=flex-start" in story.view.message


def test_back_off_doubles_up_to_ten_minutes() -> None:
    story = Story(policy={"max_attempts": 50}).running()
    pauses = []
    for number in range(1, 8):
        story.runs(number * 100, checkpoint=number * 100)
        story.sees(State.PREEMPTED)
        pauses.append((story.view.not_before or 0) - story.now)
        story.look(after_s=700)
        story.sees(State.RUNNING)
    assert pauses == [30, 60, 120, 240, 480, 600, 600]


def test_a_container_that_dies_before_its_first_heartbeat_fails_at_starting_with_its_log() -> None:
    story = Story().running()
    tail = tuple(f"line {number}" for number in range(60))
    story.sees(State.FAILED, error_code=1, tail=tail)
    assert story.ends == (State.FAILED, 1)
    assert "FAILED at STARTING (exit code 1)" in story.view.message
    assert story.view.message.count("| line") == 50
    assert "| line 59" in story.view.message


def test_exit_0_without_done_is_incomplete_and_tried_again_only_while_it_gets_further() -> None:
    story = Story().running()
    story.runs(100, checkpoint=100)
    story.sees(State.SUCCEEDED)
    assert story.view.state is State.RESUBMITTING
    assert "INCOMPLETE" in story.view.message
    story.look(after_s=100)
    story.sees(State.RUNNING)
    story.sees(State.SUCCEEDED)
    assert story.ends == (State.INCOMPLETE, 143)
    assert "DONE is not in the store" in story.view.message


def test_a_done_that_turns_up_later_makes_an_incomplete_launch_a_success() -> None:
    story = Story().running()
    story.sees(State.SUCCEEDED)
    assert story.view.state is State.INCOMPLETE
    story.look(Seen(done=DONE))
    assert story.ends == (State.SUCCEEDED, 0)


def test_a_job_that_fails_after_writing_done_is_a_success_that_says_so() -> None:
    story = Story().running()
    story.sees(State.FAILED, error_code=1, done=DONE)
    assert story.ends == (State.SUCCEEDED, 0)
    assert "ended as FAILED after writing it" in story.view.message


def test_what_an_earlier_launch_left_in_the_store_counts_for_nothing() -> None:
    story = Story().running()
    old = {"attempt": 1, "step": 9, "beat_at": 100.0, "checkpoint": {"step": 9, "at": 90.0}}
    story.sees(State.RUNNING, beat=old)
    assert (story.view.beat, story.view.mark) == (None, None)
    story.sees(State.FAILED, error_code=2, done=DONE | {"time": 100.0}, tail=("other values",))
    assert story.ends == (State.FAILED, 2)
    assert "FAILED at STARTING" in story.view.message


def test_without_the_store_no_end_is_believed() -> None:
    story = Story().running()
    story.sees(State.SUCCEEDED, store_error="the bucket does not answer")
    assert not story.view.over
    assert story.view.unreachable_since is not None
    story.sees(State.SUCCEEDED, done=DONE)
    assert story.ends == (State.SUCCEEDED, 0)


def test_an_unreachable_service_changes_no_state_and_is_never_a_preemption() -> None:
    story = Story().running()
    story.runs(100, checkpoint=100)
    before = story.view
    for _ in range(30):
        story.look(Seen(error="Vertex AI did not answer (8 tries in 60 s: timed out)"))
    assert story.view.state is State.RUNNING
    assert (story.view.preemptions, story.jobs, story.view.attempt) == (0, 1, 1)
    assert story.view.unreachable_since == before.state_since + 70
    assert "UNREACHABLE (last known RUNNING)" in story.said[-1]
    assert sum("UNREACHABLE" in text for text in story.said) == 1
    story.runs(200, checkpoint=100)
    assert story.view.unreachable_since is None


def test_an_outage_clock_starts_anew_with_each_outage_and_attempt() -> None:
    story = Story().running()
    story.look(Seen(error="no answer"))
    first = story.view.unreachable_since
    story.sees(State.RUNNING)
    story.look(Seen(error="no answer"), after_s=500)
    assert story.view.unreachable_since == story.now != first
    story.sees(State.PREEMPTED)
    assert story.view.unreachable_since is None


def test_queued_on_quota_is_said_aloud_and_costs_nothing() -> None:
    story = Story(policy={"wait_s": 3600.0})
    story.look()
    story.sees(State.QUEUED_QUOTA, detail="custom_model_training_preemptible_nvidia_a100_gpus")
    story.sees(State.QUEUED_QUOTA, after_s=301, detail="custom_model_training_...")
    assert any(text.startswith("held by Vertex: quota") for text in story.said)
    assert costs.cost(story.view, now=story.now) == 0


def test_waiting_past_the_limit_moves_to_the_next_place() -> None:
    story = Story()
    story.look()
    story.sees(State.WAITING_CAPACITY)
    cancelled = story.sees(State.WAITING_CAPACITY, after_s=601)
    assert isinstance(cancelled[-1], Cancel)
    assert cancelled[-1].reason == "failover"
    assert "trying a2-ultragpu-1g spot in us-central1" in cancelled[-1].message
    story.sees(State.CANCELLED)
    assert (story.view.state, story.view.offer) == (State.RESUBMITTING, 1)
    assert story.look() == [Submit(2, 1)]
    assert story.view.preemptions == 0


def test_waiting_at_the_last_place_ends_with_exit_3_and_what_to_do() -> None:
    story = Story(offers=OFFERS[:1])
    story.look()
    story.sees(State.WAITING_CAPACITY)
    story.sees(State.WAITING_CAPACITY, after_s=601)
    story.sees(State.CANCELLED)
    assert story.ends == (State.FAILED, 3)
    assert "no capacity for a2-ultragpu-1g spot in us-east5 in 10 min" in story.view.message
    assert "launch.strategy=flex-start" in story.view.message


def test_a_quota_refusal_tries_the_next_place_and_then_ends_with_exit_3() -> None:
    story = Story()
    story.log("submitting", attempt=1, offer=0)
    story.log("refused", attempt=1, offer=0, reason="quota", message="quota m: 0")
    story.do(refused(story.view, quota=True, message="quota m: have 0, need 1", code=3))
    assert story.view.state is State.RESUBMITTING
    assert story.view.attempt == 1
    story.log("submitting", attempt=1, offer=1)
    story.log("refused", attempt=1, offer=1, reason="quota", message="quota m: 0")
    fix = "quota m: have 0, need 1\n  fix: saccade cloud setup --only quota"
    story.do(refused(story.view, quota=True, message=fix, code=3))
    assert story.ends == (State.FAILED, 3)
    assert "all 2 places refused the job" in story.view.message
    assert "fix: saccade cloud setup --only quota" in story.view.message


@pytest.mark.parametrize(
    ("line", "code", "name", "advice", "exit_code"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory", 1, "out of GPU memory", "batch_size", 3),
        ("OSError: [Errno 28] No space left on device", 1, "disk full", "launch.disk_gb", 3),
        ("step 7: the loss is nan; nothing", 1, "the loss diverged", "learning_rate", 1),
        ("", 137, "out of memory (killed", "training.workers=0", 3),
        ("Failed to pull image x: ErrImagePull", None, "the image cannot be", "registry", 3),
    ],
)
def test_known_causes_are_named_with_one_change(
    line: str, code: int | None, name: str, advice: str, exit_code: int
) -> None:
    story = Story().running()
    story.runs(50, checkpoint=50)
    story.sees(State.FAILED, error_code=code, tail=(line,))
    assert story.ends == (State.FAILED, exit_code)
    assert story.view.message.startswith(name)
    assert advice in story.view.message.splitlines()[-1]


def test_the_budget_warns_at_80_percent_and_cancels_after_a_checkpoint() -> None:
    story = Story(policy={"budget_usd": 1.8}).running()
    story.runs(10, checkpoint=10)
    story.runs(800, checkpoint=800, after_s=0.81 * HOUR)
    assert "of the budget of $1.80 is spent" in story.said[-1]
    assert story.view.cancelling is None
    story.runs(1050, checkpoint=800, after_s=0.19 * HOUR)
    assert "cancelling after the next checkpoint" in story.said[-1]
    assert story.view.cancelling is None
    story.runs(1060, checkpoint=1060)
    assert story.view.cancelling == "budget"
    story.sees(State.CANCELLED)
    assert story.ends == (State.CANCELLED, 143)
    assert "the budget of $1.80 is used up" in story.view.message
    assert "larger launch.budget" in story.view.message


def test_over_the_budget_patience_for_a_checkpoint_ends() -> None:
    story = Story(policy={"budget_usd": 1.8}).running()
    story.runs(10, checkpoint=5)
    story.runs(1000, checkpoint=5, after_s=HOUR)
    assert story.view.cancelling is None
    story.runs(1100, checkpoint=5, after_s=CHECKPOINT_PATIENCE_S)
    assert story.view.cancelling == "budget"


def test_a_used_up_budget_allows_no_further_attempt() -> None:
    story = Story(policy={"budget_usd": 1.0}).running()
    story.runs(10, checkpoint=10)
    story.sees(State.PREEMPTED, after_s=HOUR)
    assert story.ends == (State.CANCELLED, 143)
    assert "the budget of $1.00 is used up" in story.view.message


def test_only_held_machines_cost_and_each_attempt_has_its_price() -> None:
    story = Story()
    story.look()
    story.sees(State.WAITING_CAPACITY, after_s=HOUR)
    story.sees(State.RUNNING, after_s=HOUR)
    story.runs(100, checkpoint=100, after_s=HOUR)
    story.sees(State.PREEMPTED, after_s=0, detail="stockout")
    story.look(after_s=HOUR)
    story.sees(State.RUNNING)
    story.runs(4000, after_s=HOUR)
    story.sees(State.SUCCEEDED, after_s=0, done=DONE)
    assert costs.cost(story.view, now=story.now + 99 * HOUR) == pytest.approx(1.8 + 3.6)
    rows = costs.attempts(story.view, now=story.now)
    assert [row["usd"] for row in rows] == [1.8, 3.6]


def test_a_job_that_ran_while_nobody_watched_is_paid_by_its_own_times() -> None:
    story = Story()
    story.look()
    start = story.now
    times = {"started_at": start + HOUR, "ended_at": start + 3 * HOUR}
    story.sees(State.SUCCEEDED, after_s=9 * HOUR, done=DONE, **times)
    assert costs.cost(story.view, now=story.now) == pytest.approx(2 * 1.8)


def test_an_unknown_price_is_never_counted_as_zero() -> None:
    story = Story(offers=[OFFERS[0] | {"usd_per_hour": None}]).running()
    story.runs(10, after_s=HOUR)
    assert costs.cost(story.view, now=story.now) is None


def test_a_submission_without_an_outcome_is_repeated_with_the_same_attempt() -> None:
    story = Story()
    story.log("submitting", attempt=1, offer=0)
    assert story.look() == [Submit(1, 0)]


def test_a_launch_that_was_not_packed_is_not_submitted() -> None:
    story = Story()
    story.log("planned", spec=spec().to_json(), target="vertex", run_dir="r", offers=OFFERS,
              policy={})  # fmt: skip
    assert story.look() == []


def test_a_person_cancels_at_any_moment() -> None:
    waiting = Story().running()
    waiting.log("cancelling", reason="user", message="")
    waiting.sees(State.CANCELLED)
    assert waiting.ends == (State.CANCELLED, 143)

    pausing = Story().running()
    pausing.runs(5, checkpoint=5)
    pausing.sees(State.PREEMPTED)
    pausing.log("cancelling", reason="user", message="")
    pausing.look()
    assert pausing.ends == (State.CANCELLED, 143)
    assert pausing.jobs == 1

    submitting = Story()
    submitting.log("submitting", attempt=1, offer=0)
    submitting.log("cancelling", reason="user", message="")
    submitting.look()
    assert isinstance(submitting.sees(State.RUNNING)[-1], Cancel)


def test_a_cancel_that_nobody_heard_is_asked_for_again() -> None:
    story = Story().running()
    story.log("cancelling", reason="user", message="")
    assert isinstance(story.sees(State.RUNNING)[-1], Cancel)
    assert story.sees(State.RUNNING) == []
    assert isinstance(story.sees(State.RUNNING, after_s=61)[-1], Cancel)


def test_a_preemption_is_counted_once_when_the_watcher_dies_before_it_resubmits() -> None:
    story = Story().running()
    story.runs(100, checkpoint=100)
    story.now += 10
    actions = decide(story.view, Seen(status=Status(State.PREEMPTED)), now=story.now)
    story.do(actions[:1])  # killed here
    story.sees(State.PREEMPTED)
    assert story.view.preemptions == 1
    assert story.view.state is State.RESUBMITTING


@given(st.lists(st.tuples(st.sampled_from(list(State)), st.booleans(), st.floats(0, 900)),
                max_size=30))  # fmt: skip
def test_whatever_a_platform_says_the_states_follow_the_table(
    seen: list[tuple[State, bool, float]],
) -> None:
    story = Story()
    for state, saves, seconds in seen:
        step = int(story.now) if saves else 0
        beat = {"attempt": max(1, story.view.attempt), "step": step, "beat_at": story.now,
                "checkpoint": {"step": step, "at": story.now}}  # fmt: skip
        story.sees(state, after_s=seconds, beat=beat)
    spent = costs.cost(story.view, now=story.now)
    assert spent is not None
    assert spent <= (story.now - 1000) / HOUR * 3.6 + 1e-6
    assert story.jobs <= 5
