"""Parquet files, folders in hub layout, `save_to_disk` folders, and the hub itself (loopback)."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import datasets.config
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import HubSource, ParquetSource
from saccade.data.images import load_image
from saccade.data.samples import DataError
from saccade.data.sources import infer_source, open_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.disable_progress_bars()


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path: Path, **columns: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def parquet(path: Path, **options: object) -> ParquetSource:
    return ParquetSource.model_validate({"type": "parquet", "path": path, **options})


def hub(name: Path | str, **options: object) -> HubSource:
    return HubSource.model_validate({"type": "hub", "name": str(name), **options})


QA = {"question": ["q0", "q1"], "answer": ["yes", "no"]}


def test_images_come_as_paths_bytes_or_structs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("red"))
    red = picture("red")
    for number, cell in enumerate(
        ["a.png", red, {"bytes": red, "path": None}, {"bytes": None, "path": "a.png"}]
    ):
        path = write(tmp_path / f"{number}.parquet", image=[cell, cell], **QA)
        source = open_source(parquet(path))
        (image,) = source[1].images
        assert load_image(image, where="x").getpixel((0, 0)) == (255, 0, 0)
        assert source.groups() == [[0, 1]]
        assert source[1].id == f"{number}-2"


def test_equal_names_with_different_bytes_are_different_images(tmp_path: Path) -> None:
    cells = [{"bytes": picture(color), "path": "image.png"} for color in ("red", "blue")]
    source = open_source(parquet(write(tmp_path / "rows.parquet", image=cells, **QA)))
    assert source.groups() == [[0], [1]]


def test_lists_of_images_lists_of_answers_and_nulls_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.parquet",
        images=[[picture("red"), picture("blue")], None],
        question=["which?", "why?"],
        answers=[["a", "b", "b"], None],
    )
    source = open_source(parquet(path))
    assert len(source[0].images) == 2
    assert source[0].answers == ("b", "a")
    with pytest.raises(DataError, match=r"rows\.parquet, row 2 \(id rows-2\): the answer is null"):
        source[1]


def test_a_folder_of_parts_is_one_table_and_odd_parts_are_named(tmp_path: Path) -> None:
    for part in range(3):
        write(tmp_path / "d" / f"part-{part}.parquet", question=[f"q{part}"], answer=["x"])
    source = open_source(parquet(tmp_path / "d"))
    assert [source[i].question for i in range(len(source))] == ["q0", "q1", "q2"]
    assert open_source(parquet(tmp_path / "d", limit=2)).groups() == [[0], [1]]
    write(tmp_path / "d" / "part-9.parquet", question=["q"], label=["x"])
    with pytest.raises(InputError, match=r"part-9\.parquet: its columns differ"):
        open_source(parquet(tmp_path / "d"))


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"x\.parquet: not a readable parquet file"):
        open_source(parquet(tmp_path / "x.parquet"))
    with pytest.raises(InputError, match="no such file"):
        open_source(parquet(tmp_path / "y.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.parquet file"):
        open_source(parquet(tmp_path / "empty"))
    rows = write(tmp_path / "z.parquet", text=["q"], answer=["a"])
    with pytest.raises(InputError, match=r"no column 'question'; there are 'text', 'answer'"):
        open_source(parquet(rows))
    none = write(tmp_path / "none.parquet", question=[], answer=[])
    with pytest.raises(InputError, match="there are no rows"):
        open_source(parquet(none))


def test_the_parquet_fingerprint_follows_the_cells(tmp_path: Path) -> None:
    prints = []
    for name, color in (("a", "red"), ("b", "red"), ("c", "blue")):
        cells = [picture("red"), picture(color)]
        path = write(tmp_path / name / "rows.parquet", image=cells, **QA)
        prints.append(open_source(parquet(path)).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_the_fingerprint_reads_lists_of_images_too(tmp_path: Path) -> None:
    prints = set()
    for name, cells in (("a", ["red", "blue"]), ("b", ["red"]), ("c", [])):
        one = [{"bytes": picture("red"), "path": None}]
        images = [[{"bytes": picture(color), "path": None} for color in cells], one]
        path = write(tmp_path / name / "rows.parquet", image=images, **QA)
        prints.add(open_source(parquet(path)).fingerprint())
    assert len(prints) == 3


def three_rows() -> datasets.Dataset:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.ClassLabel(names=["no", "yes"]),
            "sound": datasets.Audio(),
        }
    )
    cells = [{"bytes": picture(color), "path": None} for color in ("red", "blue", "green")]
    columns = {"image": cells, "question": ["a", "b", "c"], "answer": [1, 0, 1]}
    return datasets.Dataset.from_dict({**columns, "sound": [None] * 3}, features=features)


def test_a_save_to_disk_folder_opens_with_slices_and_class_names(tmp_path: Path) -> None:
    data = three_rows()
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "dict"))
    assert infer_source(tmp_path / "dict").type == "hub"
    source = open_source(hub(tmp_path / "dict", split="test[1:]"))
    assert [source[i].answer for i in range(len(source))] == ["no", "yes"]
    assert load_image(source[0].images[0], where="x").getpixel((0, 0)) == (0, 0, 255)
    assert len(open_source(hub(tmp_path / "one"))) == 3
    with pytest.raises(InputError, match=r"Unknown split.*\n.*correct subset or split"):
        open_source(hub(tmp_path / "dict", split="validation"))


def test_a_folder_in_hub_layout_opens_by_split_and_can_go_to_another_process(
    tmp_path: Path,
) -> None:
    root = tmp_path / "set"
    write(root / "data" / "train-00000.parquet", image=[picture("red")] * 2, **QA)
    write(root / "data" / "test-00000.parquet", image=[picture("red")] * 2, **QA)
    (root / "README.md").write_text("a data set\n")
    assert infer_source(root).type == "hub"
    source = open_source(hub(root, split="test"))
    assert source[1].answer == "no"
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
    with pytest.raises(InputError, match="Unknown split"):
        open_source(hub(root, split="tset"))
    with pytest.raises(InputError, match="subset"):
        open_source(hub(root, subset="nope"))


def test_a_path_that_is_not_there_is_no_hub_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_source(hub(tmp_path / "nowhere"))


FILES = {
    "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n"
    b"  - split: train\n    path: data/train.jsonl\n---\n",
    "data/train.jsonl": b'{"question": "q0", "answer": "yes"}\n'
    b'{"question": "q1", "answer": "no"}\n',
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as the real client asks for: one public data set, `demo/vqa`."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/datasets/demo/vqa/tree/"):
            return self._send(json.dumps([self._entry(name) for name in FILES]).encode())
        if path.startswith("/api/datasets/demo/vqa"):
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "demo/vqa", "sha": COMMIT, "siblings": siblings, "tags": []}
            return self._send(json.dumps(info).encode())
        if path.startswith("/datasets/demo/vqa/resolve/"):
            name = path.removeprefix("/datasets/demo/vqa/resolve/").partition("/")[2]
            if name in FILES:
                return self._send(FILES[name], etag=self._entry(name)["oid"])
            return self._send(b"", status=404, error="EntryNotFound")
        return self._send(b"", status=404, error="RepoNotFound")

    do_HEAD = do_GET

    def _entry(self, name: str) -> dict[str, str]:
        oid = hashlib.sha1(FILES[name]).hexdigest()
        return {"type": "file", "path": name, "size": str(len(FILES[name])), "oid": oid}

    def _send(self, body: bytes, *, status: int = 200, etag: str = "", error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


OPEN = """
import sys
from saccade.config.errors import SaccadeError
from saccade.config.schema import HubSource
from saccade.data.sources import open_source
for name in sys.argv[1:]:
    try:
        source = open_source(HubSource(type="hub", name=name, limit=2))
        print(len(source), source[1].answer, source[1].id)
    except SaccadeError as error:
        print(error.exit_code, str(error).splitlines()[0])
"""


def open_in_a_fresh_process(*names: str, home: Path, **env: str) -> list[str]:
    """The hub client reads its environment once, when it is imported."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *names],
        env={**clean, "HF_HOME": str(home), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_hub_name_opens_through_the_real_client_and_then_offline_from_its_cache(
    tmp_path: Path, endpoint: str
) -> None:
    online = open_in_a_fresh_process(
        "demo/vqa", "demo/nothing", home=tmp_path, HF_ENDPOINT=endpoint
    )
    assert online[0] == "2 no vqa-2"
    assert online[1].startswith("2 demo/nothing: no such data set on the hub or folder here")
    offline = open_in_a_fresh_process(
        "demo/vqa", "demo/other", home=tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1"
    )
    assert offline[0] == "2 no vqa-2"
    assert offline[1].startswith("3 demo/other: the hub cannot be reached")
    assert OutsideError.exit_code == 3
