"""Every way a launch is known to fail, provoked end to end: what is said, the state, the exit code.

The fake cloud breaks on purpose, real clients and the real supervisor meet it, and containers are
quick processes that follow a script. One test per row of the failure table, in its order.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from saccade.launch import begin, costs, shown
from saccade.launch.drive import watcher
from saccade.launch.states import State
from saccade.launch.view import LaunchView
from tests.toy_jobs import BUCKET, IMAGE, REGIONS, Typed, toys, type_command

METRIC = "custom_model_training_preemptible_nvidia_a100_gpus"
Type = Callable[..., Typed]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """The command line, in a folder of its own."""

    def run(*words: str, env: dict[str, str], folder: Path = tmp_path) -> Typed:
        return type_command(*words, folder=folder, env=env, monkeypatch=monkeypatch)

    return run


def refused(done: Typed, *, code: int = 3) -> str:
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert "\n  fix: " in done.err, done.err
    return done.err


def words_of_vertex(folder: Path) -> list[str]:
    return ["launch", "smoke/relevance", f"run.root={folder}/runs", "launch.target=vertex",
            f"launch.image={IMAGE}", "--yes"]  # fmt: skip


def test_without_a_network_the_reason_is_said_once_and_soon(
    tmp_path: Path, typed: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saccade.cloud.api import transport

    given: list[float] = []

    def short(google: transport.Google, patience: transport.Patience) -> transport.Google:
        given.append(patience.deadline_s)
        return google

    monkeypatch.setattr(transport.Google, "patient", short)
    monkeypatch.setattr(transport.Patience, "pause", lambda patience, tries: patience.deadline_s)
    env = {"SACCADE_FAKE_CLOUD": "http://127.0.0.1:9"}  # nobody listens there
    words = ["launch", "smoke/relevance", f"run.root={tmp_path}/runs", "launch.target=fake",
             f"launch.image={IMAGE}", "--yes"]  # fmt: skip
    text = refused(typed(*words, env=env))
    assert "did not answer" in text
    assert given == [0.0]  # after the first silence the rest is not waited for
    assert no_job(tmp_path)


def no_job(folder: Path) -> bool:
    return not (folder / "runs" / ".launches").exists()


def running(view: LaunchView) -> bool:
    return view.state is State.RUNNING


def beaten(step: int) -> Callable[[LaunchView], bool]:
    return lambda view: view.over or (view.beat is not None and view.beat.step >= step)


# --- credentials, APIs, billing ---


def test_without_credentials_one_line_names_the_login_command(tmp_path: Path, typed: Type) -> None:
    env = {"HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path / "none"),
           "GOOGLE_CLOUD_PROJECT": "my-project", "NO_GCE_CHECK": "true"}  # fmt: skip
    text = refused(typed(*words_of_vertex(tmp_path), env=env))
    assert "no usable Google credentials for project my-project" in text
    assert "fix: gcloud auth application-default login" in text
    assert no_job(tmp_path)


@contextmanager
def token_server() -> Iterator[str]:
    """Google's token endpoint as it answers for a login that has expired."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"error": "invalid_grant", "error_description": "Token expired."})
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/token"
    finally:
        server.shutdown()
        server.server_close()


def test_expired_credentials_name_the_login_command_too(tmp_path: Path, typed: Type) -> None:
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization as form

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )
    with token_server() as address:
        # the address of a person's login is fixed in google-auth, that of an account's key is not
        login = {"type": "service_account", "client_email": "a@b.example", "project_id": "b",
                 "private_key": key.decode(), "token_uri": address}  # fmt: skip
        (tmp_path / "login.json").write_text(json.dumps(login))
        env = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "login.json"),
               "GOOGLE_CLOUD_PROJECT": "my-project"}  # fmt: skip
        text = refused(typed(*words_of_vertex(tmp_path), env=env))
    assert "no usable Google credentials" in text
    assert "invalid_grant" in text
    assert "fix: gcloud auth application-default login" in text
    assert no_job(tmp_path)


def test_an_api_that_is_off_is_named_with_its_project_and_the_setup_that_enables_it(
    tmp_path: Path, typed: Type
) -> None:
    off = ("aiplatform.googleapis.com",)
    with toys(tmp_path / "cloud", disabled_apis=off) as cloud:
        words = ["launch", "smoke/relevance", *cloud.words(), "--yes"]
        text = refused(typed(*words, env=cloud.env))
        assert "Vertex AI" in text or "aiplatform" in text
        assert "off in project fake-project" in text
        assert "saccade cloud setup --only apis" in text
        assert cloud.cloud.calls("^POST .*customJobs") == []


def test_billing_that_is_off_blocks_before_anything_is_made(tmp_path: Path, typed: Type) -> None:
    with toys(tmp_path / "cloud", billing=False) as cloud:
        before = len(cloud.cloud.calls("^POST .*(upload|customJobs|builds)"))
        words = ["launch", "smoke/relevance", *cloud.words(), "--yes"]
        text = refused(typed(*words, env=cloud.env))
        assert "billing: off: nothing can be created" in text
        assert "gcloud billing projects link fake-project" in text
        assert len(cloud.cloud.calls("^POST .*(upload|customJobs|builds)")) == before


# --- image and quota ---


def test_an_image_that_is_not_there_blocks_before_any_spend(tmp_path: Path, typed: Type) -> None:
    absent = f"us-central1-docker.pkg.dev/fake-project/saccade/trainer@sha256:{'1' * 64}"
    with toys(tmp_path / "cloud") as cloud:
        words = ["launch", "smoke/relevance", *cloud.words(), f"launch.image={absent}", "--yes"]
        text = refused(typed(*words, env=cloud.env))
        assert "image" in text
        assert "1" * 12 in text
        assert "us-central1" in text
        assert cloud.jobs() == []
        assert no_job(cloud.folder)


def test_an_image_that_cannot_be_pulled_is_named_with_the_registry_to_mend(tmp_path: Path) -> None:
    with toys(tmp_path, missing_images=("elsewhere",)) as cloud:
        view = cloud.until(cloud.launch())
        assert (view.state, view.exit_code) == (State.FAILED, 3)
        assert view.message.startswith("the image cannot be pulled: ")
        assert "ErrImagePull" in view.message
        assert IMAGE in view.message
        assert "fix: saccade cloud setup --only registry" in view.message


def test_a_quota_of_zero_names_metric_region_have_and_need_and_makes_no_job(
    tmp_path: Path, typed: Type
) -> None:
    with toys(tmp_path / "cloud", quotas={METRIC: 0}) as cloud:
        text = refused(typed("launch", "smoke/relevance", *cloud.words(), "--yes", env=cloud.env))
        assert re.search(rf"quota {METRIC} in ({'|'.join(REGIONS)}): have 0, need 1", text)
        assert "saccade cloud setup --only quota" in text
        assert cloud.jobs() == []


def test_a_quota_of_zero_where_one_may_run_names_the_regions_that_have_some(
    tmp_path: Path, typed: Type
) -> None:
    short = {METRIC: {"us-central1": 0, "default": 4}}
    with toys(tmp_path / "cloud", quotas=short) as cloud:
        words = ["launch", "smoke/relevance", *cloud.words(), "launch.regions=[us-central1]"]
        text = refused(typed(*words, "--yes", env=cloud.env))
        assert f"quota {METRIC} in us-central1: have 0, need 1" in text
        assert "there is quota in " in text
        assert "europe-west4" in text


def test_a_quota_refused_at_the_submission_leads_to_the_next_place_and_then_to_exit_3(
    tmp_path: Path,
) -> None:
    with toys(tmp_path) as cloud:
        cloud.cloud.add_fault(
            "POST .*customJobs", status=429, times="always", reason="RESOURCE_EXHAUSTED",
            message=f"The following quotas are exceeded: aiplatform.googleapis.com/{METRIC}",
        )  # fmt: skip
        view = cloud.until(cloud.launch())
        assert (view.state, view.exit_code) == (State.FAILED, 3)
        assert "all 3 places refused the job" in view.message
        assert METRIC in view.message
        assert "fix: saccade cloud setup --only quota" in view.message
        assert cloud.jobs() == []


def test_a_job_held_on_quota_says_so_who_uses_it_and_that_waiting_is_free(tmp_path: Path) -> None:
    with toys(tmp_path, default_quota=1) as cloud:
        one = "launch.regions=[us-central1]"
        first = cloud.launch(one, "run.name=first", token="a")
        cloud.until(first, running)
        driver = cloud.launch(one)
        cloud.until(driver, lambda view: view.state is State.QUEUED_QUOTA)
        cloud.later += 301
        view = cloud.until(driver, lambda view: "quota" in view.warned)
        assert view.message == (
            f"held by Vertex: quota ({METRIC} in us-central1, used by saccade-first-1);"
            " waiting costs $0"
        )
        assert view.state is State.QUEUED_QUOTA
        assert costs.cost(view, now=cloud.now()) == 0
        begin.stop(first)
        assert cloud.until(driver, running).state is State.RUNNING


# --- capacity ---


def test_a_job_that_stays_pending_counts_down_to_the_next_place_and_moves_there(
    tmp_path: Path,
) -> None:
    hours = [{"pending": 3600}]
    with toys(tmp_path, jobs=[hours, hours, ["running"]]) as cloud:
        two = "launch.regions=[europe-west4,us-central1]"
        driver = cloud.launch(two, "launch.wait_minutes=10")
        view = cloud.until(driver, lambda view: view.state is State.WAITING_CAPACITY)
        cloud.later += 240
        line = shown.line(cloud.until(driver, lambda view: True), now=cloud.now())
        first, second = (offer.region for offer in view.offers)
        assert line.startswith("WAITING_CAPACITY 4 min | costs $0, trying a2-highgpu-1g spot in "
                               f"{second} in 6 min | attempt 1/5"), line  # fmt: skip
        cloud.later += 361
        view = cloud.until(driver, lambda view: view.offer == 1)
        assert f"trying a2-highgpu-1g spot in {second}" in " ".join(cloud.said)
        cloud.until(driver, lambda view: view.state is State.WAITING_CAPACITY and view.attempt == 2)
        assert [re.search(first, name) for name in cloud.open_jobs()] == [None]
        cloud.later += 601
        view = cloud.until(driver)
        assert (view.state, view.exit_code) == (State.FAILED, 3)
        assert "no other place is left" in view.message
        assert "fix: launch.strategy=flex-start" in view.message
        assert cloud.open_jobs() == []
        assert costs.cost(view, now=cloud.now()) == 0


def test_places_that_are_sold_out_are_left_without_counting_as_preempted(tmp_path: Path) -> None:
    short = [{"region": "europe-west4|us-west4", "pending": 0.05}]
    with toys(tmp_path, stockouts=short) as cloud:
        driver = cloud.launch()
        view = cloud.until(driver, lambda view: view.over or running(view))
        assert running(view), view.message
        assert view.here is not None
        assert view.here.region == "us-central1"
        assert (view.preemptions, view.stuck) == (0, 0)
        assert any(text.startswith("no capacity for a2-highgpu-1g spot in") for text in cloud.said)
        assert len(cloud.open_jobs()) == 1


def test_a_machine_that_is_sold_out_everywhere_ends_with_exit_3_and_what_to_do(
    tmp_path: Path,
) -> None:
    with toys(tmp_path, stockouts=[{"pending": 0.02}]) as cloud:
        view = cloud.until(cloud.launch())
        assert (view.state, view.exit_code) == (State.FAILED, 3)
        assert "no capacity for a2-highgpu-1g spot in" in view.message
        assert "all 5 attempts are used" in view.message
        assert "fix: launch.strategy=flex-start" in view.message
        assert (view.preemptions, costs.cost(view, now=cloud.now())) == (0, 0)


# --- preemption ---


def test_a_preemption_says_step_checkpoint_loss_and_attempt_and_goes_on(tmp_path: Path) -> None:
    with toys(tmp_path) as cloud:
        cloud.script(("beat", [1, None]), ("sleep", 0.3), ("beat", [1840, 1800]), ("sleep", 600),
                     attempt=1)  # fmt: skip
        cloud.script(("beat", [1801, 1800]), ("done", 4000), ("exit", 0), attempt=2)
        driver = cloud.launch()
        cloud.until(driver, beaten(1840))
        cloud.cloud.preempt(cloud.job_id(driver))
        view = cloud.until(driver)
        said = next(text for text in cloud.said if text.startswith("preempted"))
        assert re.fullmatch(
            r"preempted at step 1840, last checkpoint 1800 \(\d+ s ago\), lost 40 steps"
            r" about \$[0-9.]+, attempt 2/5; moving to a2-highgpu-1g spot in [a-z0-9-]+", said
        ), said  # fmt: skip
        assert (view.state, view.exit_code, view.message) == (
            State.SUCCEEDED, 0, "DONE at step 4000",
        )  # fmt: skip
        assert (view.attempt, view.preemptions) == (2, 1)


def test_a_preempt_loop_stops_and_offers_the_other_strategies_with_the_price_difference(
    tmp_path: Path,
) -> None:
    with toys(tmp_path) as cloud:
        cloud.script(("beat", [100, 100]), ("sleep", 600))
        driver = cloud.launch()
        for attempt in range(1, 4):
            view = cloud.until(
                driver, lambda view, n=attempt: view.over or
                (view.beat is not None and view.beat.attempt == n and running(view)),
            )  # fmt: skip
            if view.over:
                break
            cloud.cloud.preempt(cloud.job_id(driver))
            cloud.until(driver, lambda view, n=attempt: view.over or view.attempt == n + 1)
        view = driver.launch.view()
        assert (view.state, view.exit_code) == (State.FAILED, 143)
        assert "preempted 2 times without a new checkpoint" in view.message
        assert "fix: launch.strategy=flex-start or launch.strategy=on-demand" in view.message
        assert re.search(r"a2-highgpu-1g flex-start in [a-z0-9-]+: \$[0-9.]+/h \(", view.message)
        assert re.search(r"a2-highgpu-1g on-demand in [a-z0-9-]+: .*/h more\)", view.message)
        assert cloud.open_jobs() == []


# --- containers ---


def test_a_container_that_dies_before_its_first_heartbeat_fails_at_starting_with_50_lines(
    tmp_path: Path,
) -> None:
    with toys(tmp_path) as cloud:
        cloud.script(*(("say", f"word {n}") for n in range(60)), ("sleep", 0.3), ("exit", 7))
        view = cloud.until(cloud.launch())
        assert (view.state, view.exit_code) == (State.FAILED, 3)
        assert "FAILED at STARTING (exit code 7" in view.message
        assert "  | word 59" in view.message
        assert view.message.count("\n  | ") == 50
        assert "saccade logs mine" in view.message


def test_exit_0_without_done_is_incomplete_and_never_a_success(tmp_path: Path) -> None:
    with toys(tmp_path) as cloud:
        cloud.script(("beat", [100, 100]), ("sleep", 0.3), ("exit", 0))
        view = cloud.until(cloud.launch())
        assert (view.state, view.exit_code) == (State.INCOMPLETE, 143)
        assert "DONE is not in the store (step 100, checkpoint 100)" in view.message
        assert "fix: `saccade launch` again" in view.message
        # the first time it got further, so it was tried again
        assert view.attempt == 2


@pytest.mark.parametrize(
    ("line", "code", "name", "advice", "exit_code"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory", 1, "out of GPU memory", "batch_size", 3),
        ("", 137, "out of memory (killed", "training.workers=0", 3),
        ("OSError: [Errno 28] No space left on device", 1, "disk full", "launch.disk_gb", 3),
        ("error: step 7: the loss is nan", 1, "the loss diverged (NaN)", "learning_rate", 1),
        ("error: 1 GPU(s) were asked for, but torch sees 0", 3, "no GPU in", "launch.machine", 3),
    ],
)
def test_a_known_cause_of_death_is_named_with_one_suggested_change(
    tmp_path: Path, line: str, code: int, name: str, advice: str, exit_code: int
) -> None:
    with toys(tmp_path) as cloud:
        cloud.script(("beat", [50, 50]), ("say", line), ("sleep", 0.3), ("exit", code))
        view = cloud.until(cloud.launch())
        assert (view.state, view.exit_code) == (State.FAILED, exit_code), view.message
        assert view.message.startswith(name)
        assert advice in view.message.rpartition("\n  fix: ")[2]


# --- watching ---


def test_a_status_service_that_fails_is_unreachable_with_an_age_and_nothing_is_done(
    tmp_path: Path,
) -> None:
    with toys(tmp_path) as cloud:
        driver = cloud.launch()
        before = view = cloud.until(driver, running)
        cloud.cloud.add_fault("GET .*customJobs/", status=403, times="always")
        for _ in range(4):
            view = cloud.until(driver, lambda view: True)
            cloud.later += 60
        line = shown.line(view, now=cloud.now())
        assert line.startswith("UNREACHABLE 4 min (last known RUNNING)"), line
        assert (view.state, view.handle, view.preemptions) == (State.RUNNING, before.handle, 0)
        cloud.cloud.world.faults.clear()
        view = cloud.until(driver, lambda view: view.unreachable_since is None)
        assert (view.state, view.attempt, len(cloud.jobs())) == (State.RUNNING, 1, 1)


def test_a_launch_whose_watcher_is_dead_says_that_nobody_watches(
    tmp_path: Path, typed: Type
) -> None:
    with toys(tmp_path / "cloud") as cloud:
        driver = cloud.launch()
        cloud.until(driver, running)
        # a watcher that holds the lock and is killed leaves its file behind
        code = (
            "import sys, time; from pathlib import Path; from saccade.launch.log import Launch;"
            "from saccade.launch.drive import watching\n"
            "with watching(Launch(Path(sys.argv[1]))): print('ok', flush=True); time.sleep(600)"
        )
        held = subprocess.Popen(
            [sys.executable, "-c", code, str(driver.launch.folder)], stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert held.stdout is not None
        assert held.stdout.readline() == b"ok\n"
        assert watcher(driver.launch) == held.pid
        held.send_signal(signal.SIGKILL)
        held.communicate()
        assert driver.launch.lock_file.read_text().strip() == str(held.pid)
        done = typed("jobs", "--root", f"{cloud.folder}/runs", env=cloud.env)
        assert done.code == 0
        assert "nobody is watching; run `saccade watch mine`" in done.err
        assert "nobody" in done.out


# --- money and leftovers ---


def test_the_spending_cap_warns_at_80_percent_and_cancels_after_a_checkpoint_at_100(
    tmp_path: Path,
) -> None:
    with toys(tmp_path) as cloud:
        cloud.script(("beat", [5, None]), ("sleep", 600))
        driver = cloud.launch("launch.budget=2", "launch.timeout_hours=100")
        view = cloud.until(driver, beaten(5))
        assert view.here is not None
        hourly = view.here.usd_per_hour or 0.0
        cloud.later += 0.85 * 2 / hourly * 3600
        view = cloud.until(driver, lambda view: "budget" in view.warned)
        assert re.search(r"\$1\.7\d of the budget of \$2.00 is spent", view.message)
        cloud.later += 0.2 * 2 / hourly * 3600
        view = cloud.until(driver, lambda view: "over-budget" in view.warned)
        assert "cancelling after the next checkpoint" in view.message
        assert view.cancelling is None
        cloud.later += 301  # no checkpoint comes, and patience ends
        view = cloud.until(driver)
        assert (view.state, view.exit_code) == (State.CANCELLED, 143)
        assert "the budget of $2.00 is used up" in view.message
        assert "launch.budget" in view.message.rpartition("\n  fix: ")[2]
        assert cloud.open_jobs() == []


def test_leftovers_are_a_table_with_a_price_and_finals_need_their_name_typed(
    tmp_path: Path, typed: Type
) -> None:
    with toys(tmp_path / "cloud", bucket=False) as cloud:
        env, name = cloud.env, BUCKET
        assert typed("cloud", "setup", "--yes", env=env).code == 0
        cloud.script(("beat", [5, 5]), ("done", 5), ("exit", 0))
        view = cloud.until(cloud.launch())
        assert view.state is State.SUCCEEDED, view.message
        text = refused(typed("cloud", "teardown", "--yes", env=env), code=2)
        assert f"gs://{name} holds 1 finished run(s): mine" in text
        assert f"fix: saccade cloud teardown --confirm {name}" in text
        # a bucket that cannot be deleted stays, is listed with its price, and is no success
        cloud.cloud.add_fault(f"DELETE /storage/v1/b/{name}(\\?|$)", status=403, times="always")
        done = typed("cloud", "teardown", "--yes", "--confirm", name, env=env)
        assert done.code == 3, done.out
        assert re.search(rf"bucket:?.*{name}.*\$\d", done.out), done.out
        cloud.cloud.world.faults.clear()
        done = typed("cloud", "teardown", "--yes", "--confirm", name, env=env)
        assert done.code == 0, done.err
        assert "nothing of saccade's is left" in done.err
