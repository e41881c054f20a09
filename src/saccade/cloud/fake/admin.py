"""Routes that only the fake has: faults, preemptions, recorded calls, images, reset.

`POST /fake/faults`, `DELETE /fake/faults`, `GET /fake/calls`, `POST /fake/jobs/ID/preempt`,
`POST /fake/images`, `POST /fake/scenario`, `POST /fake/reset`, `GET /fake/health`. Tests and
curious users call them; saccade itself only asks for the health.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pydantic import ValidationError

from saccade.cloud.fake.http import GoogleError, Request, Response, Router, json_response
from saccade.cloud.fake.scenario import Fault, Scenario

if TYPE_CHECKING:
    from saccade.cloud.fake.server import FakeCloud


def mount(router: Router, cloud: FakeCloud) -> None:
    """Routes below `/fake/`."""
    _mount_faults(router, cloud)

    def health(request: Request) -> Response:
        return json_response({"pid": os.getpid(), "state": str(cloud.state), "url": cloud.url})

    def preempt(request: Request, id: str) -> Response:
        body = request.json()
        retry, grace = bool(body.get("retry", False)), body.get("grace")
        cloud.preempt(id, retry=retry, grace=None if grace is None else float(grace))
        return json_response({})

    def image(request: Request) -> Response:
        return json_response({"digest": cloud.register_image(str(request.json().get("uri")))})

    def scenario(request: Request) -> Response:
        try:
            cloud.set_scenario(Scenario.model_validate(request.json()))
        except ValidationError as error:
            raise GoogleError(400, str(error)) from error
        return json_response({})

    def reset(request: Request) -> Response:
        cloud.reset()
        return json_response({})

    router.add("GET", "/fake/health", health)
    router.add("POST", "/fake/jobs/{id}/preempt", preempt)
    router.add("POST", "/fake/images", image)
    router.add("POST", "/fake/scenario", scenario)
    router.add("POST", "/fake/reset", reset)


def _mount_faults(router: Router, cloud: FakeCloud) -> None:
    world = cloud.world

    def add_fault(request: Request) -> Response:
        try:
            fault = Fault.model_validate(request.json())
        except ValidationError as error:
            raise GoogleError(400, str(error)) from error
        world.faults.add(fault)
        return json_response({"faults": world.faults.listing()})

    def clear_faults(request: Request) -> Response:
        world.faults.clear()
        return json_response({"faults": []})

    def calls(request: Request) -> Response:
        try:
            since = int(request.first("since", "0"))
            found = world.faults.calls(match=request.first("match"), since=since)
        except (ValueError, re.error) as error:
            raise GoogleError(400, str(error)) from error
        return json_response({"calls": found})

    def clear_calls(request: Request) -> Response:
        world.faults.clear_calls()
        return json_response({})

    router.add("GET", "/fake/faults", lambda r: json_response({"faults": world.faults.listing()}))
    router.add("POST", "/fake/faults", add_fault)
    router.add("DELETE", "/fake/faults", clear_faults)
    router.add("GET", "/fake/calls", calls)
    router.add("DELETE", "/fake/calls", clear_calls)
