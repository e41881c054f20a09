"""`saccade prices` as people and scripts call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.cloud.fake.server import serve
from tests.terminal.saccade_cli import Outcome, refused, saccade


def prices(folder: Path, *words: str, fake: str = "") -> Outcome:
    env = {"SACCADE_HOME": str(folder / "home"), "COLUMNS": "200"}
    env |= {"SACCADE_FAKE_CLOUD": fake} if fake else {}
    return saccade("prices", *words, folder=folder, env=env)


def shown(folder: Path, *words: str, fake: str = "") -> dict:  # type: ignore[type-arg]
    done = prices(folder, *words, "--json", fake=fake)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_the_overview_shows_machines_with_source_and_age(tmp_path: Path) -> None:
    done = prices(tmp_path)
    assert done.code == 0, done.err
    line = next(one for one in done.out.splitlines() if "a2-ultragpu-1g" in one)
    assert "1.778 us-east5" in line
    assert "~2.492 us-central1" in line  # inferred
    assert "packaged snapshot of 2026-07-30" in done.err and "days old" in done.err
    assert "RunPod" in done.err and "(2026-11-09)" in done.err


def test_a_machine_shows_its_regions_cheapest_first_and_why_others_are_out(
    tmp_path: Path,
) -> None:
    values = shown(tmp_path, "a2-highgpu-1g", "--strategy", "spot", "--hours", "12")
    first, third = values["candidates"][0], values["candidates"][2]
    assert (first["region"], first["usd_per_hour"]) == ("europe-west4", 1.693)
    assert (third["region"], third["estimate"]["expected"]["vm"]) == ("us-central1", 23.14)
    assert third["price"]["confidence"] == "list" and third["price"]["age_days"] >= 0
    last = values["candidates"][-1]
    assert (last["usable"], last["fix"]) == (False, "saccade prices refresh")
    assert third["quota"] is None


def test_filters_narrow_the_list(tmp_path: Path) -> None:
    words = ("--gpus", "4", "--region", "us-central1", "--strategy", "spot")
    rows = shown(tmp_path, *words)["prices"]
    assert {row["machine"] for row in rows} == {
        "g2-standard-48", "a2-highgpu-4g", "a2-ultragpu-4g", "a3-highgpu-4g",
    }  # fmt: skip
    assert {row["region"] for row in rows} == {"us-central1"}
    assert all(row["source"] and row["fetched_at"] and row["confidence"] for row in rows)


def test_the_comparison_holds_the_right_sums(tmp_path: Path) -> None:
    rows = shown(tmp_path, "compare")["rows"]
    spot = {
        row["machine"]: row["machine_usd"]
        for row in rows
        if (row["strategy"], row["region"]) == ("spot", "us-central1")
    }
    assert (spot["a2-highgpu-1g"], spot["a2-highgpu-4g"]) == (23.14, 26.99)
    done = prices(tmp_path, "compare")
    assert "sooner and 17% dearer" in done.out


def test_refresh_reads_the_catalogue_and_is_used_from_then_on(tmp_path: Path) -> None:
    with serve(tmp_path / "state") as cloud:
        values = shown(tmp_path, "refresh", fake=cloud.url)
        assert values["prices"] > 100 and values["age_days"] == 0
        table = shown(tmp_path, "--strategy", "spot", fake=cloud.url)
        assert table["source"] == "the fake cloud: not real prices"
        assert table["path"] == values["path"]
        one = next(
            row for row in table["prices"]
            if (row["machine"], row["region"]) == ("a2-highgpu-1g", "us-central1")
        )  # fmt: skip
        # Spot is 0.53 of the fake list price; no decoy got in
        whole = 12 * 0.031611 + 85 * 0.004237 + 2.933908
        assert one["usd_per_hour"] == pytest.approx(0.53 * whole, abs=1e-5)
        assert one["fee"]["expected"] == pytest.approx(0.15 * whole, abs=1e-5)
    # the fake cloud's prices are not taken for real ones
    assert shown(tmp_path)["source"] == "packaged snapshot"


def test_a_refresh_that_finds_nothing_keeps_the_old_prices(tmp_path: Path) -> None:
    with serve(tmp_path / "state") as cloud:
        first = shown(tmp_path, "refresh", fake=cloud.url)
        before = Path(first["path"]).read_bytes()
        done = prices(tmp_path, "refresh", "--region", "africa-south1", fake=cloud.url)
        assert "the prices known before stay" in refused(done, code=3)
        assert Path(first["path"]).read_bytes() == before


def test_wrong_words_are_refused_with_the_nearest_right_one(tmp_path: Path) -> None:
    assert "did you mean a2-highgpu-1g?" in refused(prices(tmp_path, "a2-higpu-1g"), code=2)
    assert "--region us-central1" in refused(prices(tmp_path, "--region", "us-centrl1"), code=2)
    assert "expected one of spot" in refused(prices(tmp_path, "--strategy", "cheap"), code=2)
    assert "goes with compare" in refused(prices(tmp_path, "--markdown"), code=2)


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "prices.json").write_text("{")
    assert "fix: rm " in refused(prices(tmp_path), code=2)
