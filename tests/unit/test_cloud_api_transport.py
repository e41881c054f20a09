"""The connection to Google: what it retries, what it never retries, and what it says.

A small HTTP server answers as each test scripts it; the client under test is the real one.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from saccade.cloud.api import console
from saccade.cloud.api.credentials import GoogleCredentials
from saccade.cloud.api.operations import LongOperation
from saccade.cloud.api.transport import (
    AlreadyExists,
    ApiError,
    BillingDisabled,
    Google,
    NotFound,
    Patience,
    PermissionDenied,
    ResourceExhausted,
    ServiceDisabled,
    Unauthenticated,
    Unreachable,
    connect,
)
from saccade.config.errors import InputError

QUICK = Patience(deadline_s=40.0, base_s=0.01, longest_s=0.05, timeout_s=60.0)
"""Tries again soon, and however slow this machine is, a few failures are survived."""
SHORT = Patience(deadline_s=0.5, base_s=0.01, longest_s=0.05, timeout_s=60.0)
"""Gives up soon, for what does not get better."""
Answer = tuple[Any, ...] | None  # status, body, and headers if any


class Scripted:
    """A server that gives the scripted answers in turn; None breaks the connection."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.seen.append((self.command, self.path, dict(self.headers)))
                scripted = outer.answers.pop(0) if outer.answers else (200, {})
                if scripted is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                status, body = scripted[:2]
                headers: dict[str, str] = scripted[2] if len(scripted) > 2 else {}
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def script() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


@pytest.fixture
def google(script: Scripted) -> Google:
    return connect("demo-project", env={"SACCADE_FAKE_CLOUD": script.url}).patient(QUICK)


def error(status: int, message: str, *, reason: str = "", **metadata: str) -> tuple[int, Any]:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": metadata,
    }
    details = [info] if reason else []
    return status, {"error": {"code": status, "message": message, "details": details}}


def create(google: Google, **options: Any) -> dict[str, Any]:
    path = "/v1/projects/demo-project/locations/us-central1/customJobs"
    return google.call("POST", "aiplatform", path, region="us-central1", body={}, **options)


def read(google: Google) -> dict[str, Any]:
    return google.call("GET", "secretmanager", "/v1/projects/demo-project/secrets/hf")


def test_a_read_survives_failures_and_a_broken_connection(script: Scripted, google: Google) -> None:
    script.answers = [error(503, "busy"), None, error(429, "slower"), (200, {"name": "hf"})]
    assert read(google) == {"name": "hf"}
    assert len(script.seen) == 4


def test_a_create_is_sent_once_when_its_answer_is_lost(script: Scripted, google: Google) -> None:
    script.answers = [None, (200, {"name": "second"})]
    with pytest.raises(Unreachable, match="did not answer"):
        create(google)
    assert len(script.seen) == 1


def test_a_create_with_a_check_returns_what_the_lost_attempt_made(
    script: Scripted, google: Google
) -> None:
    script.answers = [None]
    assert create(google, settle=lambda: {"name": "found"}) == {"name": "found"}
    assert len(script.seen) == 1


def test_a_create_with_a_check_is_repeated_only_if_nothing_was_made(
    script: Scripted, google: Google
) -> None:
    looks: list[int] = []
    script.answers = [error(502, "gateway"), (200, {"name": "second"})]
    assert create(google, settle=lambda: looks.append(1)) == {"name": "second"}
    assert len(looks) == 1


def test_a_create_is_not_repeated_while_the_check_cannot_look(
    script: Scripted, google: Google
) -> None:
    def blind() -> dict[str, Any] | None:
        raise Unreachable("nobody there")

    script.answers = [None]
    with pytest.raises(Unreachable, match="nobody there"):
        create(google, settle=blind)
    assert len(script.seen) == 1


def test_a_conflict_after_a_lost_answer_is_our_own_resource(
    script: Scripted, google: Google
) -> None:
    found: list[dict[str, Any] | None] = [None, {"name": "mine"}]
    script.answers = [None, error(409, "exists")]
    assert create(google, settle=lambda: found.pop(0)) == {"name": "mine"}
    script.answers = [error(409, "exists")]
    with pytest.raises(AlreadyExists):
        create(google, settle=lambda: {"name": "somebody's"})


def test_a_used_up_quota_of_machines_is_reported_at_once(script: Scripted, google: Google) -> None:
    metric = "aiplatform.googleapis.com/custom_model_training_nvidia_a100_gpus"
    script.answers = [error(429, f"The following quota metrics exceed quota limits: {metric}")]
    with pytest.raises(ResourceExhausted, match="custom_model_training_nvidia_a100_gpus") as caught:
        create(google, settle=lambda: None)
    assert caught.value.quota_metric == metric
    assert "saccade cloud setup --only quota" in str(caught.value)
    assert len(script.seen) == 1


def test_a_create_that_must_slow_down_waits_as_long_as_asked(
    script: Scripted, google: Google
) -> None:
    script.answers = [(*error(429, "too fast"), {"Retry-After": "1"}), (200, {"name": "job"})]
    start = time.monotonic()
    assert create(google) == {"name": "job"}
    assert time.monotonic() - start >= 1.0


def test_retry_info_beyond_the_deadline_gives_up_at_once(script: Scripted, google: Google) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "60s"}
    script.answers = [(429, {"error": {"message": "later", "details": [info]}})]
    start = time.monotonic()
    with pytest.raises(ResourceExhausted) as caught:
        read(google)
    assert time.monotonic() - start < 30.0
    assert caught.value.retry_after_s == 60.0


def test_retries_end_at_the_deadline_and_say_how_long(script: Scripted, google: Google) -> None:
    script.answers = [error(503, "The service is currently unavailable.")] * 1000
    start = time.monotonic()
    with pytest.raises(Unreachable, match=r"Secret Manager did not answer \(\d+ tries") as caught:
        read(google.patient(SHORT))
    assert time.monotonic() - start < 30.0
    assert "is not affected" in str(caught.value)
    assert caught.value.status == 503


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            error(403, "x", reason="SERVICE_DISABLED", service="aiplatform.googleapis.com"),
            ServiceDisabled,
            ("API aiplatform.googleapis.com is off in project demo-project", "setup --only apis"),
        ),
        (
            (403, {"error": {"message": "no", "errors": [{"reason": "accessNotConfigured"}]}}),
            ServiceDisabled,
            ("API secretmanager.googleapis.com is off", "setup --only apis"),
        ),
        (
            error(
                403, "This API method requires billing to be enabled.", reason="BILLING_DISABLED"
            ),
            BillingDisabled,
            ("billing is off for project demo-project", "gcloud billing projects link"),
        ),
        (
            error(403, "denied", reason="IAM_PERMISSION_DENIED", permission="secrets.get"),
            PermissionDenied,
            ("permission secrets.get is missing", "gcloud projects add-iam-policy-binding"),
        ),
        (
            error(401, "Request had invalid authentication credentials."),
            Unauthenticated,
            ("Secret Manager", "demo-project", "gcloud auth application-default login"),
        ),
        (error(404, "Secret not found"), NotFound, ("projects/demo-project/secrets/hf",)),
        ((404, "<html>not here</html>"), NotFound, ("Secret Manager",)),
        ((400, [{"error": {"message": "bad field"}}]), ApiError, ("bad field",)),
    ],
)
def test_errors_are_one_sentence_with_the_command_that_helps(
    script: Scripted, google: Google, answer: Answer, kind: type[ApiError], words: tuple[str, ...]
) -> None:
    script.answers = [answer]
    with pytest.raises(ApiError) as caught:
        read(google)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) <= 2
    for word in words:
        assert word in str(caught.value)


def test_nothing_listens_there_is_unreachable_not_a_traceback() -> None:
    google = connect("demo-project", env={"SACCADE_FAKE_CLOUD": "http://127.0.0.1:9"})
    quick = Patience(deadline_s=0.2, base_s=0.01)
    with pytest.raises(Unreachable, match="connection refused"):
        read(google.patient(quick))


def test_pages_follow_the_token(script: Scripted, google: Google) -> None:
    script.answers = [
        (200, {"secrets": [{"name": "a"}], "nextPageToken": "t 1"}),
        (200, {"secrets": [{"name": "b"}]}),
    ]
    path = "/v1/projects/demo-project/secrets"
    names = [item["name"] for item in google.pages("secretmanager", path, items="secrets")]
    assert names == ["a", "b"]
    assert script.seen[1][1].endswith("?pageToken=t+1")


def test_an_operation_is_polled_through_failures_until_done(
    script: Scripted, google: Google
) -> None:
    running = (200, {"name": "operations/o"})
    done = (200, {"name": "operations/o", "done": True, "response": {"name": "made"}})
    script.answers = [running, *[error(503, "busy")] * 3, running, done]
    operation = LongOperation(google, "serviceusage", "operations/o")
    assert operation.wait(timeout_s=60.0, poll_s=0.01) == {"name": "made"}


def test_a_failed_operation_raises_the_error_it_carries(script: Scripted, google: Google) -> None:
    failed = {"code": 7, "message": "not allowed to enable"}
    script.answers = [(200, {"name": "operations/o", "done": True, "error": failed})]
    with pytest.raises(PermissionDenied, match="not allowed to enable"):
        LongOperation(google, "serviceusage", "operations/o").wait(poll_s=0.01)


def test_a_late_operation_goes_on_without_us(script: Scripted, google: Google) -> None:
    script.answers = [(200, {"name": "operations/o"})] * 50
    with pytest.raises(Unreachable, match="it goes on"):
        LongOperation(google, "serviceusage", "operations/o").wait(timeout_s=0.1, poll_s=0.02)


def test_many_threads_share_a_connection(script: Scripted, google: Google) -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(5):
                read(google)
        except Exception as broken:
            failures.append(broken)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(script.seen) == 40


def test_only_loopback_addresses_pass_for_the_local_cloud() -> None:
    for base in ("http://example.com:80", "https://10.0.0.1", "127.0.0.1:80", "file:///etc"):
        with pytest.raises(InputError, match="loopback"):
            connect("demo-project", env={"SACCADE_FAKE_CLOUD": base})


def test_the_token_goes_to_google_hosts_only() -> None:
    google = Google(project="demo-project")
    for region in ("evil.com/x", "us-central1.evil.com#", "", None, "US-CENTRAL1"):
        with pytest.raises(InputError, match="region"):
            google.address("aiplatform", region=region)
    address = google.address("aiplatform", region="northamerica-northeast2")
    assert address == "https://northamerica-northeast2-aiplatform.googleapis.com"
    assert google.address("storage", region="us-central1") == "https://storage.googleapis.com"


def test_connecting_needs_no_credentials_until_the_first_request() -> None:
    google = connect(None, env={"GOOGLE_CLOUD_PROJECT": "demo-project"})
    assert google.project == "demo-project"
    assert not google.fake
    with pytest.raises(InputError, match="project id"):
        connect("Not A Project", env={})


def test_a_missing_or_broken_key_file_names_the_login_command(tmp_path: Any) -> None:
    absent = str(tmp_path / "absent.json")
    with pytest.raises(Unauthenticated, match="gcloud auth application-default login") as caught:
        connect(None, env={"GOOGLE_APPLICATION_CREDENTIALS": absent})
    assert absent in str(caught.value)
    (tmp_path / "key.json").write_text("{}")
    broken = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")}
    google = connect("demo-project", env=broken).patient(QUICK)
    with pytest.raises(Unauthenticated, match="demo-project"):
        read(google)


class Token:
    """Stands for a google-auth object: a token that one server accepts after renewal."""

    def __init__(self) -> None:
        self.valid, self.token, self.renewals = False, "", 0

    def refresh(self, request: object) -> None:
        self.renewals += 1
        self.valid, self.token = True, f"token-{self.renewals}"


class Loaded(GoogleCredentials):
    """Credentials whose google-auth object is given."""

    def __init__(self, token: Token) -> None:
        super().__init__()
        self._loaded = token


def with_token(script: Scripted, token: Token, monkeypatch: pytest.MonkeyPatch) -> Google:
    monkeypatch.setattr(Google, "address", lambda self, service, region=None: script.url)
    return Google(project="demo-project", credentials=Loaded(token), patience=QUICK)


def test_a_rejected_token_is_renewed_once(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = Token()
    google = with_token(script, token, monkeypatch)
    script.answers = [error(401, "expired"), (200, {"name": "hf"})]
    assert read(google) == {"name": "hf"}
    assert [seen[2]["Authorization"] for seen in script.seen] == [
        "Bearer token-1",
        "Bearer token-2",
    ]
    script.answers = [error(401, "no"), error(401, "no"), (200, {})]
    with pytest.raises(Unauthenticated):
        read(google)


def test_a_token_server_out_of_reach_is_no_fault_of_the_login(
    script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flaky(Token):
        def refresh(self, request: object) -> None:
            from google.auth.exceptions import TransportError

            super().refresh(request)
            if self.renewals < limit:
                self.valid = False
                raise TransportError("Connection refused")

    limit = 3
    script.answers = [(200, {"name": "hf"})]
    assert read(with_token(script, Flaky(), monkeypatch)) == {"name": "hf"}
    limit = 10**9
    with pytest.raises(Unreachable, match="did not answer"):
        read(with_token(script, Flaky(), monkeypatch).patient(SHORT))


def test_a_netrc_entry_does_not_replace_the_token(
    script: Scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    read(with_token(script, Token(), monkeypatch))
    assert script.seen[0][2]["Authorization"] == "Bearer token-1"


def test_errors_and_connections_never_show_the_token(
    script: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    google = with_token(script, Token(), monkeypatch)
    script.answers = [error(400, "bad")]
    with pytest.raises(ApiError) as caught:
        read(google)
    shown = f"{caught.value} {caught.value.detail} {caught.value.url} {google!r} {caplog.text}"
    assert "token-1" not in shown


def test_console_links_follow_google_s_names() -> None:
    name = "projects/123/locations/us-central1/customJobs/456"
    assert console.job(name, project="demo-project") == (
        "https://console.cloud.google.com/agent-platform/locations/us-central1/training/456"
        "?project=demo-project"
    )
    links: list[Callable[[str], str]] = [console.jobs, console.billing, console.apis]
    assert all(link("demo-project").endswith("?project=demo-project") for link in links)
