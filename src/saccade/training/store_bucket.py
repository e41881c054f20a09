"""A prefix of a Cloud Storage bucket as a store, through Google's official client.

Names, files and small texts flow in and out over HTTPS; with STORAGE_EMULATOR_HOST (or
SACCADE_FAKE_CLOUD) set they go to that address, without credentials. Uploads are always resumable
ones, and waiting between tries is our own: the client draws multipart boundaries and its back-off
from the global random generator, which belongs to the training and must come out of a checkpoint
as it went in. No torch here.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saccade.config.errors import OutsideError, SaccadeError
from saccade.training.store import CHUNK_BYTES, StoreConflict, Stored, StoreError, safe_name

UPLOAD_CHUNK_BYTES = 8 << 20
"""Larger files go up in chunks of this size, and continue after a broken one."""
REQUEST_SECONDS = (10, 60)
"""Patience for a connection, and for an answer."""
RETRY_SECONDS = 60.0
"""How long one call is repeated before it counts as failed."""
LONGEST_PAUSE_SECONDS = 8.0
RETRIED = {408, 429, 500, 502, 503, 504}


class Patience:
    """Repeats a call that failed for a passing reason; what the client takes as its `retry`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.chance = random.SystemRandom()

    def __call__(
        self, call: Callable[..., Any], on_error: Callable[[Exception], None] | None = None
    ) -> Callable[..., Any]:
        """Wrap a call of the client."""

        @functools.wraps(call)
        def patient(*arguments: Any, **keywords: Any) -> Any:
            until, pause = time.monotonic() + self.seconds, 0.25
            while True:
                try:
                    return call(*arguments, **keywords)
                except Exception as error:
                    if not _passing(error) or time.monotonic() + pause > until:
                        raise
                    if on_error is not None:
                        on_error(error)
                time.sleep(pause * self.chance.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

        return patient


class _Digest:
    """A file to download into that only keeps the hash."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Hash a piece."""
        self.sha256.update(data)
        return len(data)


class BucketStore:
    """A prefix of a Cloud Storage bucket."""

    def __init__(self, bucket: str, *, prefix: str, env: Mapping[str, str]) -> None:
        self.address = f"gs://{bucket}" + (f"/{prefix}" if prefix else "")
        self.prefix = f"{prefix}/" if prefix else ""
        self.bucket_name = bucket
        self.env = env
        self._bucket: Any = None
        self._seen = False
        self._retry = Patience(RETRY_SECONDS)

    def stat(self, name: str) -> Stored | None:
        """Size, checksum and generation as the server computed them from what it holds."""
        with self._errors(name):
            blob = self._open().get_blob(
                self._full(name), timeout=REQUEST_SECONDS, retry=self._retry
            )
        return None if blob is None else Stored(blob.size, blob.crc32c, blob.generation)

    def names(self, prefix: str) -> list[str]:
        """All objects below a prefix, sorted."""
        safe_name(prefix.rstrip("/"))
        with self._errors(prefix):
            blobs = self._open().list_blobs(
                prefix=self.prefix + prefix, timeout=REQUEST_SECONDS, retry=self._retry
            )
            return sorted(blob.name.removeprefix(self.prefix) for blob in blobs)

    def read(self, name: str) -> bytes | None:
        """An object's content, or None."""
        from google.api_core.exceptions import NotFound

        with self._errors(name):
            try:
                return self._blob(name).download_as_bytes(
                    timeout=REQUEST_SECONDS, retry=self._retry
                )
            except NotFound:
                self._require_bucket()
                return None

    def fetch(self, name: str, target: Path) -> None:
        """Download an object; the client compares its checksum."""
        with self._errors(name):
            self._blob(name).download_to_filename(
                str(target), timeout=REQUEST_SECONDS, retry=self._retry
            )

    def write(self, name: str, data: bytes, *, replaces: int | None = None) -> Stored:
        """Write a small object."""
        with self._errors(name):
            blob = self._blob(name)
            return self._upload(blob, io.BytesIO(data), replaces)

    def send(self, name: str, source: Path, *, replaces: int | None = None) -> Stored:
        """Upload a file, in chunks when it is large."""
        with self._errors(name):
            blob = self._blob(name)
            with source.open("rb") as file:
                return self._upload(blob, file, replaces)

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone already is fine."""
        from google.api_core.exceptions import NotFound

        with self._errors(name):
            try:
                self._blob(name).delete(timeout=REQUEST_SECONDS, retry=self._retry)
            except NotFound:
                return

    def checksum(self, source: Path) -> str:
        """CRC32C of a local file, as the server computes it."""
        import google_crc32c

        value = google_crc32c.Checksum()
        with source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                value.update(chunk)
        return base64.b64encode(value.digest()).decode()

    def sha256(self, name: str) -> str:
        """SHA-256 of what is stored, downloaded for the purpose."""
        digest = _Digest()
        with self._errors(name):
            self._blob(name).download_to_file(
                digest, timeout=REQUEST_SECONDS, retry=self._retry, checksum=None
            )
        return digest.sha256.hexdigest()

    def _upload(self, blob: Any, file: Any, replaces: int | None) -> Stored:
        blob.chunk_size = UPLOAD_CHUNK_BYTES
        # no size: the client then opens a resumable session however small the file is
        blob.upload_from_file(
            file, content_type="application/octet-stream", if_generation_match=replaces,
            timeout=REQUEST_SECONDS, retry=self._retry,
        )  # fmt: skip
        return Stored(blob.size, blob.crc32c, blob.generation)

    def _full(self, name: str) -> str:
        return self.prefix + safe_name(name)

    def _blob(self, name: str) -> Any:
        return self._open().blob(self._full(name))

    def _require_bucket(self) -> None:
        """Tell a missing object from a missing bucket; the latter is not an empty store."""
        if not self._seen:  # by listing, which object roles may; they may not read the bucket
            one = self._open().list_blobs(max_results=1, timeout=REQUEST_SECONDS, retry=self._retry)
            self._seen = len(list(one)) <= 1

    def _open(self) -> Any:
        if self._bucket is None:
            try:
                from google.auth.credentials import AnonymousCredentials
                from google.cloud import storage
            except ImportError as error:
                raise OutsideError(
                    f"{self.address}: needs a package that is not installed ({error.name})"
                    "\n  fix: pip install 'saccade[cloud]'"
                ) from error
            fake = self.env.get("STORAGE_EMULATOR_HOST") or self.env.get("SACCADE_FAKE_CLOUD")
            own: dict[str, Any] = {}
            if fake:
                base = fake if "://" in fake else f"http://{fake}"
                own = {
                    "project": "fake", "credentials": AnonymousCredentials(),
                    "client_options": {"api_endpoint": base},
                }  # fmt: skip
            client: Any = storage.Client(**own)
            # it asks for the bucket's metadata from a thread of its own, which object roles may
            # not read, and draws its back-off from the global generator, too
            client._bucket_metadata_cache = None
            self._bucket = client.bucket(self.bucket_name)
        return self._bucket

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn what the client raises into one sentence for people."""
        where = f"{self.address}/{name}"
        try:
            yield
        except SaccadeError:  # ours, or a stop that arrived in the middle
            raise
        except Exception as error:
            raise _translated(error, where=where) from error


def _translated(error: Exception, *, where: str) -> OutsideError:
    status = _status(error)
    kind = error.__class__.__name__
    if status == 412:
        return StoreConflict(f"{where}: changed by another writer")
    if kind in ("DefaultCredentialsError", "RefreshError"):
        return StoreError(
            f"{where}: no valid Google credentials ({kind})"
            "\n  fix: gcloud auth application-default login"
        )
    if status == 404:
        return StoreError(
            f"{where}: the bucket or the object does not exist"
            "\n  fix: saccade cloud setup --only bucket, or another run.store"
        )
    if status in (401, 403):
        return StoreError(
            f"{where}: access refused ({status})\n  fix: saccade cloud setup --only iam"
        )
    first = str(error).splitlines()[0] if str(error) else ""
    return StoreError(
        f"{where}: cannot be reached or answers with an error ({kind}: {first[:200]})"
        "\n  fix: check the network and `saccade cloud status`, then run the same command"
    )


def _passing(error: Exception) -> bool:
    """Whether the same call may succeed a moment later."""
    import requests
    import urllib3

    status = _status(error)
    if status is not None:
        return status in RETRIED
    broken = (ConnectionError, requests.ConnectionError, requests.Timeout)
    return isinstance(
        error,
        (*broken, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError),
    )


def _status(error: Exception) -> int | None:
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return int(code)
    return getattr(getattr(error, "response", None), "status_code", None)
