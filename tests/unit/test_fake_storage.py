"""The fake storage answers Google's own client, and gcsfs, as Cloud Storage does."""

from __future__ import annotations

import datetime
import importlib.util
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.cloud.storage", reason="needs pip install saccade[cloud]")

import requests
from google.api_core import exceptions
from google.cloud import storage
from google.cloud.storage.exceptions import InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from tests.storage_server import StorageServer

QUARTER = 256 * 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StorageServer]:
    with StorageServer(tmp_path / "storage") as one:
        yield one


@pytest.fixture
def client(server: StorageServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    return storage.Client(project="project-a")


@pytest.fixture
def bucket(client: Any) -> Any:
    return client.create_bucket("bucket-a", location="us-central1")


def test_a_bucket_keeps_what_it_was_created_with(client: Any) -> None:
    wanted = client.bucket("bucket-b")
    wanted.labels = {"app": "saccade"}
    wanted.iam_configuration.uniform_bucket_level_access_enabled = True
    wanted.soft_delete_policy.retention_duration_seconds = 0
    wanted.add_lifecycle_delete_rule(age=14, matches_prefix=["attempts/"])
    client.create_bucket(wanted, location="europe-west4")
    found = client.get_bucket("bucket-b")
    assert found.location == "EUROPE-WEST4"
    assert found.location_type == "region"
    assert found.labels == {"app": "saccade"}
    assert found.iam_configuration.uniform_bucket_level_access_enabled
    assert found.soft_delete_policy.retention_duration_seconds == 0
    (rule,) = found.lifecycle_rules
    assert rule["condition"] == {"age": 14, "matchesPrefix": ["attempts/"]}
    assert [one.name for one in client.list_buckets()] == ["bucket-b"]
    assert list(client.list_buckets(project="another")) == []


def test_a_bucket_that_exists_is_a_conflict_and_one_that_does_not_is_missing(
    client: Any, bucket: Any
) -> None:
    with pytest.raises(exceptions.Conflict):
        client.create_bucket("bucket-a")
    with pytest.raises(exceptions.NotFound):
        client.get_bucket("bucket-z")
    with pytest.raises(exceptions.BadRequest):
        client.create_bucket("Not-A-Bucket")


def test_labels_and_rules_are_patched_one_by_one(client: Any, bucket: Any) -> None:
    bucket.labels = {"app": "saccade", "run": "one"}
    bucket.patch()
    again = client.get_bucket("bucket-a")
    labels = again.labels
    del labels["run"]
    again.labels = labels
    again.patch(if_metageneration_match=again.metageneration)
    assert client.get_bucket("bucket-a").labels == {"app": "saccade"}
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.patch(if_metageneration_match=1)
    bucket.lifecycle_rules = [{"action": {"type": "Erase"}, "condition": {"age": 1}}]
    with pytest.raises(exceptions.BadRequest, match="Erase"):
        bucket.patch()


def test_soft_delete_of_one_day_is_refused(client: Any) -> None:
    wanted = client.bucket("bucket-b")
    wanted.soft_delete_policy.retention_duration_seconds = 86400
    with pytest.raises(exceptions.BadRequest, match="7 to 90 days"):
        client.create_bucket(wanted)


def test_a_bucket_with_objects_is_not_deleted(bucket: Any) -> None:
    bucket.blob("a").upload_from_string(b"a")
    with pytest.raises(exceptions.Conflict):
        bucket.delete()
    bucket.delete(force=True)
    assert not bucket.exists()


def test_a_policy_is_written_only_over_the_one_that_was_read(bucket: Any) -> None:
    policy = bucket.get_iam_policy(requested_policy_version=3)
    members = {"serviceAccount:trainer@project-a.iam.gserviceaccount.com"}
    policy.bindings.append({"role": "roles/storage.objectUser", "members": members})
    bucket.set_iam_policy(policy)
    stale = policy
    assert bucket.get_iam_policy(requested_policy_version=3).bindings[0]["members"] == members
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.set_iam_policy(stale)


def test_small_and_large_objects_come_back_whole(bucket: Any, tmp_path: Path) -> None:
    for size, resumable in itertools.product((0, 1, QUARTER, 3 * QUARTER + 7), (True, False)):
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        blob = bucket.blob(f"deep/er/size {size} #+%.bin", chunk_size=QUARTER)
        blob.metadata = {"step": "1"}
        blob.upload_from_file(io.BytesIO(data), size=None if resumable else size)
        found = bucket.get_blob(blob.name)
        assert found is not None
        assert (found.size, found.metadata) == (size, {"step": "1"})
        assert found.download_as_bytes(checksum="crc32c") == data
        target = tmp_path / "file"
        found.download_to_filename(target, checksum="md5")
        assert target.read_bytes() == data


def test_an_upload_of_unknown_size_ends_with_its_last_chunk(bucket: Any) -> None:
    blob = bucket.blob("stream", chunk_size=QUARTER)
    with blob.open("wb") as file:
        file.write(b"a" * QUARTER)
        file.write(b"b" * 10)
    assert bucket.blob("stream").download_as_bytes() == b"a" * QUARTER + b"b" * 10


def test_parts_of_an_object_are_read_by_range(bucket: Any) -> None:
    blob = bucket.blob("digits")
    blob.upload_from_string(b"0123456789")
    assert blob.download_as_bytes(start=2, end=4) == b"234"
    assert blob.download_as_bytes(start=7) == b"789"
    with pytest.raises(exceptions.RequestRangeNotSatisfiable):
        blob.download_as_bytes(start=10)
    with blob.open("rb", chunk_size=3) as file:
        file.seek(-2, io.SEEK_END)
        assert file.read() == b"89"


def test_generations_guard_every_write(bucket: Any) -> None:
    first, second = bucket.blob("a"), bucket.blob("a")
    first.upload_from_string(b"1", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        second.upload_from_string(b"2", if_generation_match=0)
    second.upload_from_string(b"2", if_generation_match=first.generation)
    assert second.generation > first.generation
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.delete_blob("a", if_generation_match=first.generation)
    with pytest.raises(exceptions.NotFound):
        bucket.blob("a", generation=first.generation).download_as_bytes()
    with pytest.raises(exceptions.NotModified):
        second.reload(if_generation_not_match=second.generation)
    second.metadata = {"a": "b"}
    second.patch(if_metageneration_match=1)
    assert second.metageneration == 2
    with pytest.raises(exceptions.PreconditionFailed):
        second.patch(if_metageneration_match=1)
    bucket.delete_blob("a", if_generation_match=second.generation)
    assert not second.exists()


def test_a_condition_is_checked_again_when_a_resumable_upload_ends(
    bucket: Any,
) -> None:
    blob = bucket.blob("a", chunk_size=QUARTER)
    with pytest.raises(InvalidResponse, match="412"), blob.open("wb", if_generation_match=0) as f:
        f.write(b"a" * QUARTER)
        bucket.blob("a").upload_from_string(b"another writer was faster")
        f.write(b"b")
    assert bucket.blob("a").download_as_bytes() == b"another writer was faster"


@pytest.mark.parametrize("fault", ["drop", "lose", 503])
def test_an_upload_goes_on_after_an_interrupted_chunk(
    fault: str | int, server: StorageServer, bucket: Any
) -> None:
    chunks = 0

    def every_second_chunk(request: object) -> str | int | None:
        nonlocal chunks
        if getattr(request, "method", "") != "PUT" or not getattr(request, "body", b""):
            return None
        chunks += 1
        return fault if chunks % 2 == 0 else None

    server.fault = every_second_chunk
    data = b"".join(bytes([i]) * QUARTER for i in range(5)) + b"the end"
    blob = bucket.blob("big", chunk_size=QUARTER)
    retry = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.05).with_timeout(20)
    blob.upload_from_file(io.BytesIO(data), if_generation_match=0, retry=retry)
    assert chunks > 6
    assert bucket.blob("big").download_as_bytes() == data


def test_an_upload_session_survives_a_restart_of_the_server(
    server: StorageServer, bucket: Any, tmp_path: Path
) -> None:
    address = bucket.blob("a").create_resumable_upload_session()
    data = b"a" * QUARTER + b"b"
    span = {"Content-Range": f"bytes 0-{QUARTER - 1}/{len(data)}"}
    done = requests.put(address, data=data[:QUARTER], headers=span, timeout=60)
    assert (done.status_code, done.headers["Range"]) == (308, f"bytes=0-{QUARTER - 1}")
    with StorageServer(tmp_path / "storage") as again:
        address = address.replace(server.url, again.url)
        query = {"Content-Range": f"bytes */{len(data)}"}
        asked = requests.put(address, headers=query, timeout=60)
        assert (asked.status_code, asked.headers["Range"]) == (308, f"bytes=0-{QUARTER - 1}")
        gap = {"Content-Range": f"bytes {QUARTER + 5}-{QUARTER + 5}/{QUARTER + 6}"}
        assert requests.put(address, data=b"x", headers=gap, timeout=60).status_code == 503
        rest = {"Content-Range": f"bytes {QUARTER}-{QUARTER}/{len(data)}"}
        assert requests.put(address, data=b"b", headers=rest, timeout=60).status_code == 200
        late = requests.put(address, headers=query, timeout=60)
        assert (late.status_code, late.json()["size"]) == (200, str(len(data)))
        content = f"{again.url}/storage/v1/b/bucket-a/o/a?alt=media"
        assert requests.get(content, timeout=60).content == data


def test_bytes_that_do_not_match_their_checksum_are_refused(bucket: Any) -> None:
    blob = bucket.blob("a")
    blob.md5_hash = "XrY7u+Ae7tCTyyK7j1rNww=="  # of other bytes
    with pytest.raises(exceptions.BadRequest, match="md5Hash"):
        blob.upload_from_string(b"a", checksum=None)
    assert not blob.exists()


def test_listing_knows_prefixes_delimiters_and_pages(client: Any, bucket: Any) -> None:
    names = ["a", "b/1", "b/2", "b/c/3", "d/4", "e"]
    for name in reversed(names):
        bucket.blob(name).upload_from_string(b"x")
    assert [one.name for one in client.list_blobs(bucket)] == names
    assert [one.name for one in client.list_blobs(bucket, prefix="b/")] == names[1:4]
    level = client.list_blobs(bucket, delimiter="/", page_size=2)
    pages = [[one.name for one in page] for page in level.pages]
    assert [name for page in pages for name in page] == ["a", "e"]
    assert len(pages) == 2
    assert level.prefixes == {"b/", "d/"}
    below = client.list_blobs(bucket, prefix="b/", delimiter="/")
    assert [one.name for one in below] == ["b/1", "b/2"]
    assert below.prefixes == {"b/c/"}
    some = client.list_blobs(bucket, start_offset="b/2", end_offset="e")
    assert [one.name for one in some] == ["b/2", "b/c/3", "d/4"]
    one_by_one = client.list_blobs(bucket, page_size=1)
    assert [one.name for one in one_by_one] == names
    assert one_by_one.page_number == len(names)


def test_objects_are_copied_renamed_and_composed(bucket: Any) -> None:
    one, two = bucket.blob("one"), bucket.blob("two")
    one.metadata = {"kept": "yes"}
    one.upload_from_string(b"1", content_type="text/plain")
    two.upload_from_string(b"2")
    copy = bucket.copy_blob(one, bucket, "copy", if_generation_match=0)
    assert (copy.content_type, copy.metadata) == ("text/plain", {"kept": "yes"})
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.copy_blob(one, bucket, "copy", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.copy_blob(one, bucket, "late", if_source_generation_match=1)
    both = bucket.blob("both")
    both.compose([one, two], if_source_generation_match=[one.generation, two.generation])
    assert both.download_as_bytes() == b"12"
    assert (both.component_count, both.md5_hash) == (2, None)
    token, written, total = bucket.blob("again").rewrite(both)
    assert (token, written, total) == (None, 2, 2)
    moved = bucket.rename_blob(two, "three")
    assert moved.download_as_bytes() == b"2"
    assert not two.exists()


def test_a_deleted_object_can_be_restored_while_the_policy_says_so(
    client: Any, bucket: Any
) -> None:
    blob = bucket.blob("a")
    blob.upload_from_string(b"precious")
    blob.delete()
    (lost,) = client.list_blobs(bucket, soft_deleted=True)
    assert lost.hard_delete_time - lost.soft_delete_time == datetime.timedelta(days=7)
    bucket.restore_blob("a", generation=lost.generation)
    assert bucket.blob("a").download_as_bytes() == b"precious"
    bucket.soft_delete_policy.retention_duration_seconds = 0
    bucket.patch()
    bucket.delete_blob("a")
    assert len(list(client.list_blobs(bucket, soft_deleted=True))) == 1  # the earlier one


def test_lifecycle_rules_delete_by_prefix_and_age_when_asked(
    server: StorageServer, client: Any, bucket: Any
) -> None:
    bucket.add_lifecycle_delete_rule(age=14, matches_prefix=["attempts/"])
    bucket.add_lifecycle_set_storage_class_rule("NEARLINE", age=30)
    bucket.patch()
    for name in ("attempts/one/x", "runs/one/attempts/x", "runs/one/DONE"):
        bucket.blob(name).upload_from_string(b"x")
    act = f"{server.url}/fake/storage/lifecycle"
    assert requests.post(act, timeout=60).json() == {"done": []}
    done = requests.post(act, params={"days": "15"}, timeout=60).json()["done"]
    assert done == ["Delete gs://bucket-a/attempts/one/x"]
    requests.post(act, params={"days": "31"}, timeout=60)
    left = {one.name: one.storage_class for one in client.list_blobs(bucket)}
    assert left == {"runs/one/attempts/x": "NEARLINE", "runs/one/DONE": "NEARLINE"}


def test_a_batch_is_several_calls_in_one(client: Any, bucket: Any) -> None:
    for name in ("a", "b"):
        bucket.blob(name).upload_from_string(b"x")
    with client.batch():
        bucket.delete_blob("a")
        bucket.delete_blob("b")
    assert list(client.list_blobs(bucket)) == []
    with pytest.raises(exceptions.NotFound), client.batch():
        bucket.delete_blob("a")


def test_everything_survives_a_restart(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.blob("keep/me").upload_from_string(b"1")
    bucket.blob("keep/me").upload_from_string(b"2")
    before = bucket.get_blob("keep/me")
    assert before is not None
    with StorageServer(tmp_path / "storage") as again:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", again.url)
        found = storage.Client(project="project-a").bucket("bucket-a").get_blob("keep/me")
        assert found is not None
        assert found.generation == before.generation
        assert found.download_as_bytes() == b"2"
        found.upload_from_string(b"3")
        assert found.generation > before.generation


def test_names_cannot_leave_the_servers_folder(bucket: Any, tmp_path: Path) -> None:
    for name in ("../../../escaped", "/absolute", "a/../../b"):
        bucket.blob(name).upload_from_string(b"x")
        assert bucket.blob(name).download_as_bytes() == b"x"
    outside = [path for path in tmp_path.rglob("*") if path.name in ("escaped", "absolute", "b")]
    assert outside == []
    with pytest.raises(exceptions.BadRequest):
        bucket.blob("..").upload_from_string(b"x")


def test_acls_are_refused_under_uniform_access(client: Any) -> None:
    wanted = client.bucket("bucket-b")
    wanted.iam_configuration.uniform_bucket_level_access_enabled = True
    bucket = client.create_bucket(wanted)
    with pytest.raises(exceptions.BadRequest, match="uniform"):
        bucket.blob("a").upload_from_string(b"x", predefined_acl="publicRead")


GCSFS = """
import sys
from pathlib import Path
from gcsfs.core import GCSFileSystem  # the default class asks a gRPC service first, for 60 s

url, folder, quarter = sys.argv[1], Path(sys.argv[2]), 256 * 1024
files = GCSFileSystem(project="project-a", token="anon", endpoint_url=url)
big = bytes(range(256)) * (40 * 1024)  # 10 MB: resumable
files.pipe_file("bucket-a/x/big", big)
files.pipe_file("bucket-a/x/small", b"hello")
files.invalidate_cache()
assert sorted(files.ls("bucket-a/x")) == ["bucket-a/x/big", "bucket-a/x/small"]
assert files.cat_file("bucket-a/x/big", start=256, end=260) == bytes(range(4))
assert files.cat_file("bucket-a/x/big") == big
with files.open("bucket-a/x/written", "wb", block_size=quarter) as file:
    file.write(big[: quarter + 5])
assert files.info("bucket-a/x/written")["size"] == quarter + 5
(folder / "up").mkdir()
(folder / "up" / "one").write_bytes(b"1")
files.put(str(folder / "up"), "bucket-a/y", recursive=True)
files.get("bucket-a/y", str(folder / "down"), recursive=True)
assert [path.read_bytes() for path in (folder / "down").rglob("one")] == [b"1"]
files.copy("bucket-a/x/small", "bucket-a/x/copied")
assert files.cat_file("bucket-a/x/copied") == b"hello"
files.rm("bucket-a/x", recursive=True)
files.invalidate_cache()
assert not files.exists("bucket-a/x/big")
"""


def test_gcsfs_reads_writes_lists_and_removes(
    server: StorageServer, bucket: Any, tmp_path: Path
) -> None:
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("a second client of the fake: pip install gcsfs")
    # in a process of its own: its threads do not survive the forks of other tests
    command = [sys.executable, "-c", GCSFS, server.url, str(tmp_path)]
    env = os.environ | {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
