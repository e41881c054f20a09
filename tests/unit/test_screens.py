"""Generated pages: what is asked is unambiguous and lies where the box says.

The browser's half is skipped where no Chromium or no playwright is installed.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.config.errors import InputError
from saccade.config.screens import ScreensSource
from saccade.data.boxes import Box
from saccade.data.generate.drawing import COLORS, SHAPES
from saccade.data.images import load_image
from saccade.data.samples import Sample
from saccade.data.screens import chromium, layouts
from saccade.data.screens.cache import PageCache
from saccade.data.screens.generated import GeneratedScreens
from saccade.data.screens.icons import outline, tile
from saccade.data.screens.pages import TARGET_WORDS, page_groups
from saccade.scoring.answers import is_correct

RENDERERS = [
    "drawn",
    pytest.param(
        "chromium",
        marks=pytest.mark.skipif(
            chromium.find_chromium() is None, reason="no Chromium, or no playwright to drive it"
        ),
    ),
]
renderers = pytest.mark.parametrize("renderer", RENDERERS)


def settings(folder: Path | None = None, **keys: Any) -> ScreensSource:
    return ScreensSource(**{"type": "screens", "screens": 6, "cache": folder, **keys})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages are drawn once for all tests of this file."""
    return tmp_path_factory.mktemp("screens")


def samples(screens: GeneratedScreens) -> list[Sample]:
    return [screens[position] for position in range(len(screens))]


def pixels_inside(sample: Sample) -> np.ndarray:
    """Pixels under the box of a sample's target, as float [h, w, 3]."""
    picture = load_image(sample.images[0], where=sample.id)
    assert picture.size == sample.facts["size"]
    left, top, right, bottom = Box(*sample.facts["box"]).pixels(picture.size)
    return np.asarray(picture.crop((round(left), round(top), round(right), round(bottom)))).astype(
        float
    )


def share_of(pixels: np.ndarray, color: str) -> float:
    """Share of the pixels within 30 of a named colour in every channel."""
    near = np.abs(pixels - np.array(COLORS[color])).max(-1) < 30
    return float(near.mean())


# ---- what is asked


@pytest.mark.parametrize("kinds", [["icon"], ["text"], ["icon", "text"]])
def test_an_instruction_names_one_target_of_its_page(kinds: list[str]) -> None:
    for index in range(200):
        groups = page_groups(settings(kinds=kinds), index=index)
        said = [target.instruction for group in groups for target in group.targets]
        assert len(said) == len(set(said))
        assert 2 <= len(groups) <= 6
        assert len({group.targets[0].color for group in groups}) == len(groups)
        for group in groups:
            assert 2 <= len(group.targets) <= 4
            assert len({target.color for target in group.targets}) == 1


def test_the_words_of_the_clutter_are_never_asked_for() -> None:
    clutter = {*layouts.NOUNS, *layouts.VERBS, *layouts.LITTLE}
    assert not clutter & {*TARGET_WORDS, *COLORS, *SHAPES}


@pytest.mark.parametrize(("share", "gap"), [(0.0, None), (0.35, None), (0.35, 96), (1.0, None)])
def test_sides_are_log_uniform_with_the_asked_share_of_small_groups(
    share: float, gap: int | None
) -> None:
    source = settings(small_share=share, large_target=gap)
    groups = [group for index in range(500) for group in page_groups(source, index=index)]
    small = [group.side for group in groups if group.small]
    large = [group.side for group in groups if not group.small]
    # a page that is too full loses groups, and large ones fill it
    assert len(small) / len(groups) == pytest.approx(share, abs=0.04 if gap is None else 0.06)
    bounds = (source.min_target, source.small_target), (gap or source.small_target, 193)
    for sides, (low, high) in zip((small, large), bounds, strict=True):
        if sides:
            assert min(sides) >= low
            assert max(sides) < high
            # half of the sides lie below the geometric mean of their bounds
            assert np.median(sides) == pytest.approx((low * high) ** 0.5, rel=0.12)


def test_small_and_large_targets_are_asked_for_in_turn(folder: Path) -> None:
    screens = GeneratedScreens(settings(folder, renderer="drawn", screens=40, targets=8))
    small = []
    for positions in screens.groups():
        groups = page_groups(screens.source, index=len(small))
        names = {target.instruction: group for group in groups for target in group.targets}
        asked = [names[screens[position].question] for position in positions]
        assert len(asked) == min(8, len(names))
        first = asked[: len(groups)]
        assert len({id(group) for group in first}) == len(groups), "a group was asked twice early"
        both = min(sum(group.small for group in groups), sum(not g.small for g in groups))
        assert [group.small for group in first[: 2 * both]] == [True, False] * both
        small.append(np.mean([group.small for group in asked]))
    assert 0.25 < np.mean(small) < 0.55


def test_splits_and_seeds_are_different_pages() -> None:
    def pages(**keys: Any) -> set[Any]:
        source = settings(**keys)
        return {page_groups(source, index=index) for index in range(100)}

    streams = [
        pages(split="train"), pages(split="validation"), pages(split="test"), pages(seed=1)
    ]  # fmt: skip
    assert all(len(stream) == 100 for stream in streams)
    assert len(set.union(*streams)) == 400


# ---- what is drawn


@renderers
def test_the_colour_of_an_icon_fills_its_box(folder: Path, renderer: str) -> None:
    screens = GeneratedScreens(settings(folder, renderer=renderer))
    screens.prepare()
    for sample in samples(screens):
        pixels = pixels_inside(sample)
        color, shape = sample.question.removeprefix("Click the ").rstrip(".").split()
        mask = np.asarray(tile(shape, color, 64))[..., 3] > 127
        assert share_of(pixels, color) > 0.6 * mask.mean(), sample.id
        others = [share_of(pixels, other) for other in COLORS if other != color]
        assert max(others) < 0.1, sample.id
        height, width, _ = pixels.shape
        assert abs(width - height) <= 1
        assert width + 1 >= 24 and width <= 193


@renderers
def test_a_box_ends_where_the_colour_ends(folder: Path, renderer: str) -> None:
    screens = GeneratedScreens(settings(folder, renderer=renderer))
    for sample in samples(screens):
        color, shape = sample.question.removeprefix("Click the ").rstrip(".").split()
        if shape not in ("circle", "cross", "diamond"):
            continue  # the others leave a border or a corner of their square free
        picture = load_image(sample.images[0], where=sample.id)
        edges = Box(*sample.facts["box"]).pixels(picture.size)
        room = 4
        crop = np.asarray(picture.crop((
            round(edges[0]) - room, round(edges[1]) - room,
            round(edges[2]) + room, round(edges[3]) + room,
        ))).astype(float)  # fmt: skip
        near = np.abs(crop - np.array(COLORS[color])).max(-1) < 90
        rows, columns = np.nonzero(near.any(1))[0], np.nonzero(near.any(0))[0]
        for first, last, length in (
            (rows[0], rows[-1], crop.shape[0]), (columns[0], columns[-1], crop.shape[1]),
        ):  # fmt: skip
            assert abs(first - room) <= 2, sample.id
            assert abs(length - 1 - last - room) <= 2, sample.id


@renderers
def test_a_word_stands_on_its_button(folder: Path, renderer: str) -> None:
    screens = GeneratedScreens(settings(folder, renderer=renderer, kinds=["text"], seed=3))
    for sample in samples(screens):
        pixels = pixels_inside(sample)
        assert sample.facts["element"] == "text"
        assert max(share_of(pixels, color) for color in COLORS) > 0.4, sample.id
        assert pixels.std() > 5, f"{sample.id}: nothing is written on the button"
        (node,) = [
            node for node in sample.facts["tree"]
            if node["role"] == "button" and node["name"] in sample.question
        ]  # fmt: skip
        assert Box(*node["box"]) == pytest.approx(Box(*sample.facts["box"]), abs=1e-5)


@renderers
def test_the_first_look_shows_the_colour_of_small_icons(folder: Path, renderer: str) -> None:
    screens = GeneratedScreens(settings(folder, renderer=renderer))
    seen = []
    for sample in samples(screens):
        box = Box(*sample.facts["box"])
        picture = load_image(sample.images[0], where=sample.id)
        first = np.asarray(picture.resize((128, 96), Image.Resampling.LANCZOS)).astype(float)
        x, y = (int(share * side) for share, side in zip(box.center, (128, 96), strict=True))
        color = sample.question.split()[2]
        there = first[y, x]
        distances = {name: np.abs(there - np.array(rgb)).sum() for name, rgb in COLORS.items()}
        seen.append(min(distances, key=lambda name: float(distances[name])) == color)
    assert np.mean(seen) > 0.85


@renderers
def test_a_page_is_the_same_whoever_draws_it_again(tmp_path: Path, renderer: str) -> None:
    one, other = (
        GeneratedScreens(settings(tmp_path / name, renderer=renderer, screens=2)) for name in "ab"
    )
    for left, right in zip(samples(one), samples(other), strict=True):
        assert (left.id, left.question, left.facts) == (right.id, right.question, right.facts)
        assert isinstance(left.images[0], Path)
        assert isinstance(right.images[0], Path)
        assert left.images[0].read_bytes() == right.images[0].read_bytes()


@renderers
def test_a_sample_says_what_it_is(folder: Path, renderer: str) -> None:
    screens = GeneratedScreens(settings(folder, renderer=renderer))
    assert [position for group in screens.groups() for position in group] == list(
        range(len(screens))
    )
    for positions in screens.groups():
        page = [screens[position] for position in positions]
        assert len({sample.image_key for sample in page}) == 1
        assert len({sample.id for sample in page}) == len(page)
        boxes = [Box(*sample.facts["box"]) for sample in page]
        for number, box in enumerate(boxes):
            assert box == box.clamped()
            assert box.area > 0
            assert not any(box.contains(*other.center) for other in boxes[:number])
        for sample in page:
            assert (sample.kind, sample.answers) == ("point", ())
            assert sample.facts["platform"] == "web"
            assert sample.facts["source"] == "generated"
            assert "loading" not in sample.facts
            roles = Counter(node["role"] for node in sample.facts["tree"])
            assert roles["button"] >= len(page)
            assert len(roles) > 2
    with pytest.raises(IndexError):
        screens[len(screens)]


@renderers
def test_a_loading_page_shows_nothing_that_can_be_clicked(folder: Path, renderer: str) -> None:
    screens = GeneratedScreens(
        settings(folder, renderer=renderer, screens=8, loading_share=0.5, seed=2)
    )
    pages = [screens.page_samples(index)[0] for index in range(8)]
    loading = [sample for sample in pages if "loading" in sample.facts]
    assert 0 < len(loading) < 8
    for sample in loading:
        before = load_image(sample.facts["loading"], where=sample.id)
        assert before.size == sample.facts["size"]
        pixels = np.asarray(before).astype(float)
        assert max(share_of(pixels, color) for color in COLORS) < 0.002
        roles = Counter(node["role"] for node in sample.facts["loading_tree"])
        assert roles["progressbar"] == 1
        assert roles["button"] == 0
        assert any(node["role"] == "button" for node in sample.facts["tree"])


@pytest.mark.parametrize(
    "keys",
    [
        {"width": 128, "height": 128, "min_target": 8, "small_target": 12, "max_target": 32},
        {"gap": 8.0},
        {"gap": 0.0, "small_share": 0.0, "min_target": 60, "small_target": 90, "max_target": 120},
        {"width": 1600, "height": 400, "max_target": 100, "kinds": ["icon", "text"]},
        {"width": 300, "height": 900, "max_target": 75, "kinds": ["text"]},
    ],
)
def test_all_targets_show_on_any_page(tmp_path: Path, keys: dict[str, Any]) -> None:
    screens = GeneratedScreens(settings(tmp_path, renderer="drawn", screens=25, **keys))
    for sample in samples(screens):
        assert pixels_inside(sample).size
        assert Box(*sample.facts["box"]).area > 0


def test_every_layout_is_used_and_the_plainest_hardly_ever(tmp_path: Path) -> None:
    screens = GeneratedScreens(settings(tmp_path, renderer="drawn", screens=60))
    attempts = [screens.page(index)["attempt"] for index in range(60)]
    assert np.mean(np.array(attempts) == 0) > 0.75
    assert max(attempts) < 8


def test_all_shapes_fill_their_square_and_differ() -> None:
    masks = {shape: np.asarray(tile(shape, "red", 40))[..., 3] > 127 for shape in SHAPES}
    for shape, mask in masks.items():
        assert len(outline(shape)) >= 3
        assert mask.any(0).mean() > 0.8, shape
        assert mask.mean() > 0.25, shape
    for shape, mask in masks.items():
        for other, second in masks.items():
            assert shape == other or (mask != second).mean() > 0.08, f"{shape} and {other}"


# ---- who draws


def test_auto_draws_by_itself_where_no_browser_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chromium.shutil, "which", lambda name: None)
    auto = GeneratedScreens(settings(tmp_path, renderer="auto", screens=1))
    assert auto.renderer == "drawn"
    assert samples(auto)
    told = GeneratedScreens(settings(tmp_path, renderer="drawn", screens=1))
    assert auto.fingerprint() == told.fingerprint()
    with pytest.raises(InputError, match="renderer: drawn"):
        GeneratedScreens(settings(tmp_path, renderer="chromium"))


@pytest.mark.skipif(chromium.find_chromium() is None, reason="no Chromium, or no playwright")
def test_a_browser_that_is_killed_is_started_again(tmp_path: Path) -> None:
    screens = GeneratedScreens(settings(tmp_path, renderer="chromium", screens=3))
    screens.page(0)
    before = children_of(os.getpid())
    assert before
    for process in before:
        os.kill(process, signal.SIGKILL)
    assert screens.page(1)["boxes"]
    screens.close()
    assert not children_of(os.getpid())


@pytest.mark.skipif(chromium.find_chromium() is None, reason="no Chromium, or no playwright")
def test_threads_share_a_browser_and_a_fork_starts_its_own(tmp_path: Path) -> None:
    screens = GeneratedScreens(settings(tmp_path, renderer="chromium", screens=4))
    threads = [threading.Thread(target=screens.page, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if screens.page(2)["boxes"] else 1
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert len(samples(screens)) == len(screens)
    screens.close()


def test_a_browser_that_does_not_start_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("playwright")
    monkeypatch.setattr(chromium.shutil, "which", lambda name: "/bin/false")
    screens = GeneratedScreens(settings(tmp_path, renderer="chromium", screens=1))
    with pytest.raises(InputError, match=r"does not start(.|\n)*renderer: drawn"):
        screens.page(0)


def children_of(process: int) -> list[int]:
    """Processes that were started by one and still live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == process and state != "Z":
            found.append(int(path.parent.name))
    return found


# ---- where pages are kept


def test_a_page_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    screens = GeneratedScreens(settings(tmp_path, renderer="drawn"))
    made = screens.prepare(progress=lambda done, all_: steps.append((done, all_)))
    assert made == 6
    assert steps == [(done, 6) for done in range(1, 7)]
    again = GeneratedScreens(settings(tmp_path, renderer="drawn", screens=4, targets=2))
    monkeypatch.setattr(again, "_draw", None)  # would be called for a page that is missing
    assert again.prepare() == 0
    assert len(samples(again)) == 8
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_folder_of_the_user_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    screens = GeneratedScreens(settings(renderer="drawn", screens=1))
    screens.prepare()
    assert list((tmp_path / "saccade" / "screens").rglob("*.png"))


@pytest.mark.parametrize("damage", ["json", "picture", "missing"])
def test_a_page_that_was_cut_short_is_drawn_again(tmp_path: Path, damage: str) -> None:
    screens = GeneratedScreens(settings(tmp_path, renderer="drawn", screens=1))
    screens.prepare()
    (picture,), (row,) = tmp_path.rglob("*.png"), tmp_path.rglob("*.json")
    whole = picture.read_bytes()
    if damage == "json":
        row.write_bytes(row.read_bytes()[:100])
    elif damage == "picture":
        picture.write_bytes(whole[:100])
    else:
        picture.unlink()
    assert GeneratedScreens(settings(tmp_path, renderer="drawn", screens=1)).prepare() == 1
    assert picture.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    screens = GeneratedScreens(settings(tmp_path / "file", renderer="drawn", screens=1))
    with pytest.raises(InputError, match="cache"):
        screens.prepare()


@pytest.mark.parametrize("count", [1, 2])
def test_killed_processes_leave_only_whole_pages(tmp_path: Path, count: int) -> None:
    code = (
        "from saccade.config.screens import ScreensSource as S;"
        "from saccade.data.screens.generated import GeneratedScreens as G;"
        f"G(S(type='screens', renderer='drawn', screens=400, cache={str(tmp_path)!r})).prepare()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    end = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.json"))) < 5 and time.monotonic() < end:
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.wait()
    rows = list(tmp_path.rglob("*.json"))
    assert 5 <= len(rows) < 400
    cache = PageCache(rows[0].parent)
    for row in rows:
        assert cache.read(row.stem) is not None
        with Image.open(cache.picture(row.stem)) as picture:
            picture.load()
    screens = GeneratedScreens(settings(tmp_path, renderer="drawn", screens=len(rows) + 3))
    assert screens.prepare() >= 3
    assert len(samples(screens)) == len(screens)


def test_a_source_travels_to_another_process(folder: Path) -> None:
    screens = GeneratedScreens(settings(folder, renderer="drawn"))
    copy = pickle.loads(pickle.dumps(screens))
    assert copy.fingerprint() == screens.fingerprint()
    assert copy[3].facts["box"] == screens[3].facts["box"]


def test_the_fingerprint_follows_what_pages_depend_on(tmp_path: Path) -> None:
    def fingerprint(**keys: Any) -> str:
        return GeneratedScreens(settings(**{"renderer": "drawn", **keys})).fingerprint()

    changes: list[dict[str, Any]] = [
        {}, {"split": "test"}, {"seed": 1}, {"screens": 7}, {"targets": 3}, {"gap": 1.0},
        {"small_share": 0.5}, {"kinds": ["text"]}, {"loading_share": 0.1}, {"width": 768},
    ]  # fmt: skip
    assert len({fingerprint(**change) for change in changes}) == len(changes)
    assert fingerprint(folder=tmp_path / "a") == fingerprint(folder=tmp_path / "b")
    if chromium.find_chromium() is not None:
        assert fingerprint(renderer="chromium") == fingerprint(renderer="auto") != fingerprint()


def test_places_can_be_told_as_text_on_the_same_pages(folder: Path) -> None:
    silent = GeneratedScreens(settings(folder, renderer="drawn", screens=1))
    assert silent[0].answers == ()
    for form, numbers in (("point", 2), ("box", 4)):
        told = GeneratedScreens(settings(folder, renderer="drawn", screens=1, answer=form))
        assert told.cache.folder == silent.cache.folder
        assert told.fingerprint() != silent.fingerprint()
        for sample in samples(told):
            said = [int(one) for one in sample.answer.strip("[]").split(", ")]
            assert len(said) == numbers
            middle = said if numbers == 2 else [(said[0] + said[2]) / 2, (said[1] + said[3]) / 2]
            assert Box(*sample.facts["box"]).contains(middle[0] / 1000, middle[1] / 1000)
            assert is_correct(sample.answer, sample.answers, kind=sample.kind)
