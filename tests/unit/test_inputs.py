"""A job's inputs: sent once, checked, completed after a kill, and found under their settings."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.schema import Config
from saccade.launch.inputs import Input, bring_back, findings, point_at, read_inputs, ship
from saccade.pipeline.artifacts import digest_of
from saccade.training.inputs import at_work, bring_inputs, placed
from saccade.training.rundir import RunDir
from saccade.training.store import Store, StoreError, open_store
from tests.slow_store import SlowFolder
from tests.storage_server import StorageServer
from tests.toy_trainer import digest_files


def quiet(text: str) -> None:
    """Say nothing."""


@pytest.fixture(params=["folder", "bucket"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    if request.param == "folder":
        yield open_store(str(tmp_path / "store"))
        return
    storage = pytest.importorskip("google.cloud.storage", reason="needs saccade[cloud]")
    with StorageServer(tmp_path / "cloud") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        storage.Client(project="p").create_bucket("bucket-a")
        yield open_store("gs://bucket-a/team")


def model(folder: Path, *, seed: int = 0, files: int = 6) -> Path:
    """A folder of random files, one of them deeper, one with a name that the store uses itself."""
    chance = random.Random(seed)
    (folder / "deep").mkdir(parents=True)
    names = [f"part-{number}.bin" for number in range(files)]
    for name in [*names, "deep/COMPLETE", "manifest.json"]:
        (folder / name).write_bytes(chance.randbytes(20_000))
    return folder


def one_input(path: Path) -> Input:
    (found,) = read_inputs([path], secrets={})
    return found


def settings(*words: str) -> Config:
    return resolve("sft", overrides=list(words)).config


def table(folder: Path) -> Path:
    """Questions about a picture beside them."""
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"png")
    row = {"image": "a.png", "question": "what?", "answer": "this"}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_an_input_goes_up_once_and_comes_down_whole(store: Store, tmp_path: Path) -> None:
    one, said = one_input(model(tmp_path / "model")), list[str]()
    ship([one], store, say=said.append)
    home = f"inputs/{one.digest}"
    names = store.names(f"{home}/")
    assert {name.removeprefix(f"{home}/") for name in names} >= {"COMPLETE", "manifest.json"}
    before = {name: store.stat(name) for name in names}
    ship([one], store, say=said.append)
    assert {name: store.stat(name) for name in names} == before
    assert [line.split()[0] for line in said] == ["uploading", str(one.path)]
    bring_inputs(store, [one.digest], work=tmp_path / "job", say=quiet)
    assert digest_files(tmp_path / "job" / home) == digest_files(one.path)
    assert not list((tmp_path / "job").rglob(".tmp-*"))


def test_a_single_file_keeps_its_name(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "what?", "answer": "this"}\n')
    one = one_input(tmp_path / "rows.jsonl")
    assert one.place == f"inputs/{one.digest}/rows.jsonl"
    ship([one], store, say=quiet)
    bring_inputs(store, [one.digest], work=tmp_path / "job", say=quiet)
    assert (tmp_path / "job" / one.place).read_bytes() == one.path.read_bytes()


def test_the_name_is_that_of_the_same_artifact(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    assert one_input(folder).digest == digest_of(folder)
    assert one_input(folder / "part-0.bin").digest == digest_of(folder / "part-0.bin")
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert one_input(copied).digest == one_input(folder).digest
    (copied / "part-0.bin").write_bytes(b"other")
    assert one_input(copied).digest != one_input(folder).digest


def test_what_is_gone_from_the_store_is_sent_again_and_damage_is_named(
    store: Store, tmp_path: Path
) -> None:
    one = one_input(model(tmp_path / "model"))
    ship([one], store, say=quiet)
    part = f"inputs/{one.digest}/files/part-2.bin"
    store.delete(part)
    ship([one], store, say=quiet)
    assert store.sha256(part) == one.manifest.files["part-2.bin"]["sha256"]
    store.write(part, b"x" * 20_000)
    with pytest.raises(StoreError, match=r"part-2\.bin: differs from its checksum\n  fix: delete"):
        bring_inputs(store, [one.digest], work=tmp_path / "job", say=quiet)
    assert not (tmp_path / "job" / "inputs" / one.digest).exists()
    store.delete(f"inputs/{one.digest}/COMPLETE")
    with pytest.raises(StoreError, match="the input is not complete"):
        bring_inputs(store, [one.digest], work=tmp_path / "job", say=quiet)
    ship([one], store, say=quiet)
    bring_inputs(store, [one.digest], work=tmp_path / "job", say=quiet)
    store.write(f"inputs/{one.digest}/manifest.json", b"{}")
    with pytest.raises(StoreError, match=r"manifest\.json: differs from its name"):
        bring_inputs(store, [one.digest], work=tmp_path / "other", say=quiet)
    with pytest.raises(InputError, match="not the hash of an input"):
        bring_inputs(store, ["../x"], work=tmp_path / "other", say=quiet)


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_it_ends_like_one_that_was_not(tmp_path: Path, seed: int) -> None:
    one = one_input(model(tmp_path / "model", files=12))
    slow, chance = SlowFolder(tmp_path / "store"), random.Random(seed)
    forked, home = multiprocessing.get_context("fork"), f"inputs/{one.digest}"
    calls = [
        (ship, ([one], slow), {"say": quiet}, tmp_path / "store" / home / "COMPLETE"),
        (bring_inputs, (slow, [one.digest]), {"work": tmp_path / "job", "say": quiet},
         tmp_path / "job" / home),
    ]  # fmt: skip
    for target, words, more, result in calls:
        kills = 0
        while True:
            slow.stands_still_after = 0 if kills == 0 else None
            process = forked.Process(target=target, args=words, kwargs=more)
            process.start()
            # longer each time: a slow machine needs some progress between two kills
            process.join(chance.uniform(0.02, 0.15) * (1 + kills / 5))
            if process.exitcode is not None:
                break
            assert not result.exists() or process.join(100) is None
            process.kill()
            process.join()
            kills += 1
        assert (process.exitcode, kills > 0, result.exists()) == (0, True, True)
    assert digest_files(tmp_path / "job" / home) == digest_files(one.path)


def test_settings_point_at_the_jobs_copy_there_and_at_the_files_here_again(tmp_path: Path) -> None:
    base, rows = model(tmp_path / "runs" / "model"), table(tmp_path / "rows")
    config = settings(
        f"model.name={base}", "data.train.type=jsonl", f"data.train.path={rows}/rows.jsonl",
        f"run.root={tmp_path}", "run.name=far",
    )  # fmt: skip
    inputs = read_inputs([base, rows, base], secrets={})
    assert len(inputs) == 2
    shipped = point_at(config, inputs)
    assert shipped.model.name == f"inputs/{inputs[0].digest}"
    assert shipped.data.train.path == Path(f"inputs/{inputs[1].digest}/rows.jsonl")  # type: ignore
    assert shipped.run == config.run
    there = Config.model_validate(at_work(shipped.model_dump(mode="json"), work=Path("/w 1")))
    assert there.model.name == f"/w 1/inputs/{inputs[0].digest}"
    far = resolve("sft", overrides=[f"run.root={tmp_path}", "run.name=far"])
    run = RunDir.create(type(far)(**{**vars(far), "config": there}))
    (run.path / "model").mkdir()
    (run.path / "model" / "relevance.json").write_text(json.dumps({"base": there.model.name}))
    homes = {one.place: str(one.path) for one in inputs}
    bring_back(run.path, homes=homes)
    assert run.config() == config
    assert json.loads((run.path / "model" / "relevance.json").read_text()) == {"base": str(base)}
    with pytest.raises(InputError, match="no setting names it"):
        point_at(settings(), inputs)


def test_a_run_continues_where_its_inputs_lie_in_another_folder(tmp_path: Path) -> None:
    digest, words = "a" * 64, [f"run.root={tmp_path}", "run.name=r"]
    RunDir.create(resolve("sft", overrides=[*words, f"model.name=/w1/inputs/{digest}"]))
    again = resolve("sft", overrides=[*words, f"model.name=/w2/inputs/{digest}"])
    RunDir.create(again)
    assert RunDir.of(again.config).config().model.name == f"/w2/inputs/{digest}"
    other = resolve("sft", overrides=[*words, f"model.name=/w2/inputs/{'b' * 64}"])
    with pytest.raises(InputError, match="started with other values"):
        RunDir.create(other)
    homes = {f"inputs/{digest}": "/here/model"}
    assert placed(["/here/model/x", "/here/models", 3], homes=homes) == [
        f"inputs/{digest}/x", "/here/models", 3,
    ]  # fmt: skip


def test_what_does_not_fit_is_refused_with_its_size(tmp_path: Path) -> None:
    one = one_input(model(tmp_path / "model"))
    config = point_at(settings(f"model.name={one.path}"), [one])
    (found,) = findings(config, [one], disk_gb=20)
    assert str(found.level) == "block"
    assert "0.0 GB (model 0.2 MB) do not fit on the job's disk of 20 GB" in found.message
    assert found.fix == "launch.disk_gb=21"
    assert [str(one.level) for one in findings(config, [one], disk_gb=100)] == ["ok"]
    assert findings(config, [one], disk_gb=None) == []


def test_files_that_would_stay_behind_are_named(tmp_path: Path) -> None:
    rows = table(tmp_path / "rows")
    config = settings("data.train.type=jsonl", f"data.train.path={rows}/rows.jsonl")
    (left,) = findings(config, (), disk_gb=100)
    assert (str(left.level), left.fix) == ("warn", f"--input {rows}/rows.jsonl")
    alone = one_input(rows / "rows.jsonl")
    _, found = findings(point_at(config, [alone]), [alone], disk_gb=100)
    assert str(found.level) == "block"
    assert "a.png is in none of the inputs" in found.message
    whole = one_input(rows)
    assert len(findings(point_at(config, [whole]), [whole], disk_gb=100)) == 1


def test_secrets_and_links_to_folders_stay_here(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    secrets = {"HF_TOKEN": SecretStr("hf_canary_0123456789")}
    (folder / "notes.txt").write_text("token: hf_canary_0123456789")
    with pytest.raises(InputError, match=r"notes\.txt holds the value of HF_TOKEN") as caught:
        read_inputs([folder], secrets=secrets)
    assert "canary" not in str(caught.value)
    (folder / "notes.txt").rename(folder / ".env")
    with pytest.raises(InputError, match=r"\.env may hold secrets"):
        read_inputs([folder], secrets={})
    (folder / ".env").unlink()
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(InputError, match="a link to a folder"):
        read_inputs([folder], secrets={})
    (folder / "linked").unlink()
    for base in ("/far/x", "runs/sft/model"):
        (folder / "relevance.json").write_text(json.dumps({"base": base, "base_included": False}))
        with pytest.raises(InputError, match=f"was trained on {base}, a folder that only this"):
            read_inputs([folder], secrets={})
    for base, inside in (("tiny", False), (".", False), ("Qwen/Qwen3-VL-2B", False), ("/x", True)):
        card = {"base": base, "base_included": inside}
        (folder / "relevance.json").write_text(json.dumps(card))
        assert read_inputs([folder], secrets={})
    with pytest.raises(InputError, match="no such file or folder"):
        read_inputs([tmp_path / "none"], secrets={})
