"""The fake Cloud Storage: the JSON API of buckets and objects, over a folder.

HTTP requests flow in from the server, answers in Google's own form flow out; state survives a
restart. Understood are buckets (labels, location, lifecycle, uniform access, soft delete, IAM),
objects (plain, multipart and resumable uploads, ranges, metadata, copy, rewrite, compose, restore),
generation and metageneration preconditions, listing in pages, and batches. Left out, and refused
where silence would mislead: noncurrent versions, ACLs, the XML API. Lifecycle rules act when
`POST /fake/storage/lifecycle` asks for it (`?days=N` pretends that N days have passed).
"""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from saccade.cloud.fake.http import GoogleError, Request, Response, Router, json_response
from saccade.cloud.fake.storage_buckets import API, BucketCalls
from saccade.cloud.fake.storage_rules import (
    DAY,
    StorageError,
    byte_range,
    check_object_name,
    check_preconditions,
    due_actions,
    merge,
    page_of,
)
from saccade.cloud.fake.storage_state import (
    Bucket,
    Clock,
    Resource,
    StorageState,
    crc32c,
    md5,
    stamp,
)
from saccade.cloud.fake.storage_uploads import (
    Sessions,
    Upload,
    inner_request,
    multipart_upload,
    plain_upload,
    split_parts,
)

WRITABLE = (
    "cacheControl", "contentDisposition", "contentEncoding", "contentLanguage", "contentType",
    "customTime", "eventBasedHold", "metadata", "storageClass", "temporaryHold",
)  # fmt: skip


class FakeStorage:
    """Answers storage requests; `handle` returns None for paths of other services."""

    def __init__(self, root: Path, *, clock: Clock = time.time) -> None:
        self.state = StorageState(root / "buckets", clock=clock)
        self.sessions = Sessions(root / "uploads")
        self.lock = threading.RLock()
        self.router = Router()
        BucketCalls(self.state).add_to(self.router)
        self._add_object_routes()

    def handle(self, request: Request) -> Response | None:
        """Answer one request, one at a time."""
        with self.lock:
            return self.router.handle(request)

    def reset(self) -> None:
        """Forget every bucket, object and upload in progress."""
        with self.lock:
            for bucket in list(self.state.buckets.values()):
                self.state.drop_bucket(bucket)
            self.sessions.clear()

    def apply_lifecycle(self, *, now: float) -> list[str]:
        """Do what the rules of all buckets demand at that time; returns what was done."""
        done = []
        with self.lock:
            for bucket in self.state.buckets.values():
                self.state.purge(bucket)
                for name, action in due_actions(bucket, now=now):
                    done.append(f"{action['type']} gs://{bucket.name}/{name}")
                    if action["type"] == "Delete":
                        self.state.delete(bucket, name)
                    else:
                        self._touch(bucket, name, {"storageClass": action["storageClass"]})
        return done

    def _add_object_routes(self) -> None:
        add, objects = self.router.add, "/b/{bucket~}/o"
        one = f"{API}{objects}/{{name~}}"
        add("GET", f"{API}{objects}", self._list)
        add("GET", one, self._get)
        add("GET", f"/download{one}", self._download)
        add("PATCH", one, self._patch)
        add("PUT", one, self._update)
        add("DELETE", one, self._delete)
        add("POST", f"{one}/compose", self._compose)
        add("POST", f"{one}/restore", self._restore)
        target = "b/{to_bucket~}/o/{to_name~}"
        add("POST", f"{one}/copyTo/{target}", self._copy)
        add("POST", f"{one}/rewriteTo/{target}", self._rewrite)
        add("POST", f"/upload{API}{objects}", self._upload)
        add("PUT", f"/upload{API}{objects}", self._chunk)
        add("DELETE", f"/upload{API}{objects}", self._cancel)
        add("POST", "/batch/storage/v1", self._batch)
        add("POST", "/fake/storage/lifecycle", self._lifecycle)

    # objects

    def _lifecycle(self, request: Request) -> Response:
        now = self.state.clock() + float(request.first("days") or 0) * DAY
        return json_response({"done": self.apply_lifecycle(now=now)})

    def _bucket(self, name: str) -> Bucket:
        bucket = self.state.buckets.get(name)
        if bucket is None:
            raise StorageError(404, "The specified bucket does not exist.")
        return bucket

    def _object(self, request: Request, bucket: str, name: str) -> tuple[Bucket, Resource]:
        found = self._bucket(bucket)
        resource = found.objects.get(name)
        generation = request.first("generation")
        if resource is None or (generation and generation != resource["generation"]):
            raise StorageError(404, f"No such object: {bucket}/{name}")
        return found, resource

    def _list(self, request: Request, *, bucket: str) -> Response:
        found = self._bucket(bucket)
        self.state.purge(found)
        page = page_of(found, request)
        answer: Resource = {"kind": "storage#objects"}
        if page.items:
            answer["items"] = page.items
        if page.prefixes:
            answer["prefixes"] = page.prefixes
        if page.next_token:
            answer["nextPageToken"] = page.next_token
        return json_response(answer)

    def _get(self, request: Request, *, bucket: str, name: str) -> Response:
        if request.first("alt") == "media":
            return self._download(request, bucket=bucket, name=name)
        _, resource = self._object(request, bucket, name)
        check_preconditions(request, resource, reading=True)
        return json_response(resource, headers={"ETag": resource["etag"]})

    def _download(self, request: Request, *, bucket: str, name: str) -> Response:
        found, resource = self._object(request, bucket, name)
        check_preconditions(request, resource, reading=True)
        data = self.state.read(found, resource)
        headers = _media_headers(resource)
        span = byte_range(request.header("range"), len(data))
        if span is None:
            return Response(200, headers, data)
        start, stop = span
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return Response(206, headers, data[start:stop])

    def _patch(self, request: Request, *, bucket: str, name: str) -> Response:
        found, resource = self._object(request, bucket, name)
        check_preconditions(request, resource)
        return json_response(self._touch(found, name, request.json()))

    def _update(self, request: Request, *, bucket: str, name: str) -> Response:
        found, resource = self._object(request, bucket, name)
        check_preconditions(request, resource)
        absent = {field: None for field in WRITABLE if field not in ("contentType", "storageClass")}
        return json_response(self._touch(found, name, absent | request.json()))

    def _touch(self, bucket: Bucket, name: str, patch: Resource) -> Resource:
        """Change metadata: a new metageneration of the same generation."""
        before = bucket.objects[name]
        allowed = {field: value for field, value in patch.items() if field in WRITABLE}
        number = int(before["metageneration"]) + 1
        resource = merge(before, allowed) | {
            "metageneration": str(number),
            "updated": stamp(self.state.clock()),
            "etag": f"{before['generation']}/{number}=",
        }
        self.state.save_object(bucket, resource)
        return resource

    def _delete(self, request: Request, *, bucket: str, name: str) -> Response:
        found, resource = self._object(request, bucket, name)
        check_preconditions(request, resource)
        if resource.get("temporaryHold") or resource.get("eventBasedHold"):
            raise StorageError(403, "The object is under active hold.", reason="forbidden")
        self.state.delete(found, name)
        return Response(204)

    def _restore(self, request: Request, *, bucket: str, name: str) -> Response:
        found = self._bucket(bucket)
        self.state.purge(found)
        for resource in found.deleted:
            if (resource["name"], resource["generation"]) == (name, request.first("generation")):
                check_preconditions(request, found.objects.get(name))
                return json_response(self.state.restore(found, resource))
        raise StorageError(404, f"No such soft-deleted object: {bucket}/{name}")

    def _compose(self, request: Request, *, bucket: str, name: str) -> Response:
        found, wanted = self._bucket(bucket), request.json()
        sources = wanted.get("sourceObjects", [])
        if not 1 <= len(sources) <= 32:
            raise StorageError(400, "The number of source objects must be between 1 and 32.")
        data, parts = b"", 0
        for source in sources:
            asked = Request("GET", "", {"generation": [str(source.get("generation", ""))]})
            _, resource = self._object(asked, bucket, source["name"])
            match = source.get("objectPreconditions", {}).get("ifGenerationMatch")
            if match is not None and str(match) != resource["generation"]:
                raise StorageError(412, "A source object has another generation.")
            data += self.state.read(found, resource)
            parts += int(resource.get("componentCount", 1))
        metadata = wanted.get("destination", {}) | {"name": name}
        upload = Upload(bucket, metadata, data, request.query)
        return json_response(self._create(upload, parts=parts))

    def _copy(self, request: Request, **names: str) -> Response:
        return json_response(self._copied(request, **names))

    def _rewrite(self, request: Request, **names: str) -> Response:
        resource = self._copied(request, **names)
        size = resource["size"]
        return json_response(
            {
                "kind": "storage#rewriteResponse", "done": True, "resource": resource,
                "objectSize": size, "totalBytesRewritten": size,
            }
        )  # fmt: skip

    def _copied(
        self, request: Request, *, bucket: str, name: str, to_bucket: str, to_name: str
    ) -> Resource:
        generation = request.query.get("sourceGeneration", [""])
        asked = Request("GET", "", {"generation": generation})
        found, source = self._object(asked, bucket, name)
        check_preconditions(request, source, prefix="ifSource")
        kept = {field: source[field] for field in WRITABLE if field in source}
        metadata = merge(kept, request.json()) | {"name": to_name}
        upload = Upload(to_bucket, metadata, self.state.read(found, source), request.query)
        return self._create(upload)

    def _create(self, upload: Upload, *, parts: int = 0) -> Resource:
        """Write a new generation, if the conditions hold and the checksums are right."""
        bucket, metadata, data = self._bucket(upload.bucket), upload.metadata, upload.data
        name = metadata.get("name") or ""
        check_object_name(name)
        before = bucket.objects.get(name)
        check_preconditions(Request("POST", "", upload.conditions), before)
        sums = {"crc32c": crc32c(data), "md5Hash": md5(data)}
        for field, value in sums.items():
            if metadata.get(field) not in (None, value):
                raise StorageError(
                    400, f'Provided {field} "{metadata[field]}" doesn\'t match "{value}".'
                )
        resource = _new_object(
            bucket, name, metadata, generation=self.state.new_generation(), now=self.state.clock()
        )
        resource |= sums | {"size": str(len(data))}
        if parts:  # composed objects have no MD5
            resource["componentCount"] = parts
            del resource["md5Hash"]
        self.state.put(bucket, resource, data)
        return resource

    # uploads and batches

    def _upload(self, request: Request, *, bucket: str) -> Response:
        found = self._bucket(bucket)
        uniform = (found.resource.get("iamConfiguration") or {}).get("uniformBucketLevelAccess", {})
        if uniform.get("enabled") and request.first("predefinedAcl"):
            raise StorageError(400, "Cannot use ACLs when uniform bucket-level access is enabled.")
        kind = request.first("uploadType")
        if request.first("upload_id"):
            return self._chunk(request, bucket=bucket)
        if kind == "media":
            return json_response(self._create(plain_upload(request, bucket)))
        if kind == "multipart":
            return json_response(self._create(multipart_upload(request, bucket)))
        if kind != "resumable":
            raise StorageError(400, f"Invalid uploadType: {kind!r}")
        answer = self.sessions.begin(request, bucket)
        return answer

    def _chunk(self, request: Request, *, bucket: str) -> Response:
        got = self.sessions.receive(request)
        if isinstance(got, Response):
            return got
        if isinstance(got, Upload):
            got = self._create(got)
            self.sessions.finish(request, got)
        return json_response(got)

    def _cancel(self, request: Request, *, bucket: str) -> Response:
        return self.sessions.cancel(request)

    def _batch(self, request: Request) -> Response:
        """Several calls in one multipart body, answered likewise."""
        boundary, answer = "batch_saccade_fake", b""
        for headers, content in split_parts(request):
            inner = inner_request(content)
            done = self.router.handle(inner) or GoogleError(404, "Not Found").response()
            ident = headers.get("content-id", "").strip("<>")
            lines = [f"HTTP/1.1 {done.status} {HTTPStatus(done.status).phrase}"]
            lines += [f"{name}: {value}" for name, value in done.headers.items()]
            lines += [f"Content-Length: {len(done.body)}", "", ""]
            answer += (
                f"--{boundary}\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{ident}>\r\n\r\n"
            ).encode()
            answer += "\r\n".join(lines).encode() + done.body + b"\r\n"
        answer += f"--{boundary}--\r\n".encode()
        return Response(200, {"Content-Type": f'multipart/mixed; boundary="{boundary}"'}, answer)


def _new_object(
    bucket: Bucket, name: str, metadata: Resource, *, generation: int, now: float
) -> Resource:
    path = f"{API}/b/{bucket.name}/o/{quote(name, safe='')}"
    base = bucket.resource["selfLink"].partition(f"{API}/b/")[0]
    given = {field: metadata[field] for field in WRITABLE if metadata.get(field) is not None}
    return {
        "contentType": "application/octet-stream",
        "storageClass": bucket.resource["storageClass"],
        **given,
        "kind": "storage#object",
        "id": f"{bucket.name}/{name}/{generation}",
        "selfLink": f"{base}{path}",
        "mediaLink": f"{base}/download{path}?generation={generation}&alt=media",
        "name": name,
        "bucket": bucket.name,
        "generation": str(generation),
        "metageneration": "1",
        "etag": f"{generation}/1=",
        "timeCreated": stamp(now),
        "updated": stamp(now),
        "timeFinalized": stamp(now),
        "timeStorageClassUpdated": stamp(now),
    }


def _media_headers(resource: Resource) -> dict[str, str]:
    sums = f"crc32c={resource['crc32c']}"
    if "md5Hash" in resource:
        sums += f",md5={resource['md5Hash']}"
    headers = {
        "Content-Type": resource["contentType"],
        "ETag": resource["etag"],
        "X-Goog-Generation": resource["generation"],
        "X-Goog-Metageneration": resource["metageneration"],
        "X-Goog-Hash": sums,
        "X-Goog-Storage-Class": resource["storageClass"],
        "X-Goog-Stored-Content-Length": resource["size"],
        "X-Goog-Stored-Content-Encoding": resource.get("contentEncoding", "identity"),
    }
    optional = {"Content-Encoding": "contentEncoding", "Cache-Control": "cacheControl"}
    return headers | {
        header: resource[field] for header, field in optional.items() if field in resource
    }
