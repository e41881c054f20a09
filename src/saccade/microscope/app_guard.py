"""What may leave the app over HTTP: a gate in front of every request.

In go ASGI requests; refused are files outside the app's own folder, requests on behalf of other
hosts, and pages of others that reach this machine under a name of theirs, whatever the framework
behind it would allow; every answer carries a policy under which the browser loads nothing from
elsewhere. Left out: logging in (the app serves this machine only, unless told otherwise).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

FILE_REQUEST = re.compile(r"^/+(?:gradio_api/+)?file[=/](?P<target>.*)$", re.DOTALL)
FORBIDDEN = re.compile(
    r"^/+(?:gradio_api/+)?(?:proxy=|dev/|monitoring|custom_component)", re.DOTALL
)
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
"""Scripts inside the page are the framework's own way of starting; hosts are what is closed."""


class Guard:
    """ASGI middleware: serves files from `folder` alone, and adds the policy to every answer.

    With `local_only`, the address asked for must be this machine's own: a name that somebody has
    pointed at 127.0.0.1 would let any web page read what the app serves.
    """

    def __init__(self, app: Any, *, folder: Path, local_only: bool = False) -> None:
        self.app = app
        self.folder = folder.resolve()
        self.local_only = local_only

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self.knows(scope.get("headers", ())) or not self.allows(str(scope.get("path", ""))):
            await _refuse(send)
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, with_policy)

    def knows(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the request is addressed to a host that this app goes by."""
        asked = [value.decode("latin-1") for name, value in headers if name.lower() == b"host"]
        names = {re.sub(r":\d+$", "", host).strip("[]").lower() for host in asked}
        return not self.local_only or names <= LOCAL_NAMES

    def allows(self, path: str) -> bool:
        """Whether a request path (already percent-decoded) may go on."""
        if FORBIDDEN.match(path):
            return False
        found = FILE_REQUEST.match(path)
        if found is None:
            return True
        target = found["target"]
        if "\0" in target or "://" in target or not target.startswith("/"):
            return False
        try:
            real = Path(target).resolve()
        except (OSError, RuntimeError):
            return False
        return real.is_relative_to(self.folder)


LOCAL_NAMES = {"127.0.0.1", "localhost", "::1"}
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


async def _refuse(send: Send) -> None:
    head = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    await send({"type": "http.response.start", "status": 403, "headers": head})
    await send({"type": "http.response.body", "body": b"not served here\n"})
