"""What all services of the fake cloud share: documents, clock, ids, projects, operations, logs.

Every service module mounts its routes with a `World`. Long-running operations are documents with
the moment at which they are done; projects exist when they are named, unless the scenario says
they are missing, and have a number as well as an id because many Google APIs answer with it.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.cloud.fake.faults import Faults
from saccade.cloud.fake.http import GoogleError, Request, Response, Router
from saccade.cloud.fake.logbook import Logbook
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.store import Document, Store
from saccade.cloud.fake.wire import now_text, reply

CREATED = "_created"  # private keys of documents begin with "_" and never leave the server


@dataclass
class World:
    """The state behind all services of one server."""

    state: Path
    scenario: Scenario
    store: Store
    faults: Faults
    logs: Logbook
    router: Router
    url: str = ""
    held_quota: dict[str, Document] = field(default_factory=dict)
    """Job id -> the quota it holds."""
    quota_lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)
    watchers: list[Callable[[Request], None]] = field(default_factory=list)
    """Called with every request before it is handled; jobs wait for calls with it."""
    handle: Callable[[Request], Response | None] = lambda request: None
    """Ask another service of this server; storage included."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def stamp(self) -> str:
        """Now, as Google writes it."""
        return now_text(self.now())

    def project(self, text: str) -> str:
        """The id of a project named by id or number; raises 403 for one that is missing."""
        known = self.store.get("projects", text)
        project = known["projectId"] if known else text
        if project in self.scenario.missing_projects:
            raise GoogleError(
                403,
                f"Permission denied on resource project {project}.",
                reason="CONSUMER_INVALID",
                metadata={"consumer": f"projects/{project}"},
            )
        if known is None and not project.isdigit():  # a number alone does not tell its id
            number = project_number(project)
            document = {"projectId": project, "number": number, CREATED: self.now()}
            self.store.add("projects", project, document)
            self.store.add("projects", number, document)
        return project

    def number(self, project: str) -> str:
        """The number of a project id."""
        return project_number(self.project(project))

    def visible(self, documents: list[Document]) -> list[Document]:
        """What a list call shows yet: new documents lag behind."""
        lag = self.scenario.list_lag
        if not lag:
            return documents
        newest = self.now() - lag
        return [document for document in documents if document.get(CREATED, 0) <= newest]

    def operation(
        self,
        name: str,
        *,
        response: Document | None = None,
        metadata: Document | None = None,
        wait: float | None = None,
    ) -> Document:
        """Begin a long-running operation that ends after a while; returns what a call answers."""
        seconds = self.scenario.operation_seconds if wait is None else wait
        self.store.put(
            "operations",
            name,
            {
                "name": name,
                "metadata": metadata,
                "response": response if response is not None else empty(),
                "_done_at": self.now() + seconds,
            },
        )
        return self.operation_now(name)

    def operation_now(self, name: str) -> Document:
        """An operation as it is now; raises 404."""
        document = self.store.get("operations", name)
        if document is None:
            raise GoogleError(404, f"Operation not found: {name}")
        answer: Document = {"name": name}
        if document.get("metadata"):
            answer["metadata"] = document["metadata"]
        if self.now() >= document["_done_at"]:
            answer["done"] = True
            outcome = "error" if "error" in document else "response"
            answer[outcome] = document[outcome]
        return answer


def build_world(state: Path, *, scenario: Scenario) -> World:
    """Open the state below a folder."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    return World(
        state=state,
        scenario=scenario,
        store=Store(state / "documents"),
        faults=Faults(scenario.faults),
        logs=Logbook(state / "logs"),
        router=Router(),
    )


def mount_operations(router: Router, world: World) -> None:
    """Routes of long-running operations, wherever they live."""

    def get(request: Request, **parts: str) -> Response:
        return reply(request, world.operation_now(request.path.partition("/v1/")[2]))

    for pattern in (
        "/v1/projects/{project}/locations/{region}/operations/{id~}",
        "/v1/projects/{project}/locations/{region}/customJobs/{job}/operations/{id~}",
        "/v1/operations/{id*}",
    ):
        router.add("GET", pattern, get)


def empty() -> Document:
    """The response of an operation that returns nothing."""
    return {"@type": "type.googleapis.com/google.protobuf.Empty"}


def public(document: Document) -> Document:
    """A document without its private keys."""
    return {key: value for key, value in document.items() if not key.startswith("_")}


def new_id() -> str:
    """A number as Google gives to jobs and operations."""
    return str(random.SystemRandom().randrange(10**18, 9 * 10**18))


def project_number(project: str) -> str:
    """A twelve-digit number that belongs to a project id."""
    if project.isdigit():
        return project
    return str(10**11 + int(hashlib.sha256(project.encode()).hexdigest(), 16) % (8 * 10**11))


def etag_of(document: Any) -> str:
    """A short tag of a document's content."""
    import base64
    import json

    text = json.dumps(document, sort_keys=True).encode()
    return base64.b64encode(hashlib.sha256(text).digest()[:9]).decode()


def check_labels(labels: Document) -> None:
    """Refuse labels that Google refuses: at most 64, lower case, 63 characters."""
    import re

    if len(labels) > 64:
        raise GoogleError(400, "No more than 64 user labels can be associated with a resource.")
    for key, value in labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key):
            raise GoogleError(400, f"Label key {key!r} is invalid: lower case, digits, _ and -.")
        if not re.fullmatch(r"[a-z0-9_-]{0,63}", str(value)):
            raise GoogleError(400, f"Label value {value!r} is invalid: lower case, digits, _, -.")
