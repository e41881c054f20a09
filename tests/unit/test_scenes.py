"""Generated scenes: reproducible, disjoint, answerable only from a few cells."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from saccade.config.schema import ScenesSource
from saccade.data.generate.scenes import (
    CELL_TARGETS,
    COLORS,
    SHAPES,
    SceneSource,
    cell_targets,
    cells_of,
    draw_scene,
    make_scene,
)


def digest(source: ScenesSource, index: int) -> str:
    return hashlib.sha256(draw_scene(make_scene(source, index=index)).tobytes()).hexdigest()


def test_a_scene_is_a_function_of_seed_split_and_index() -> None:
    source = ScenesSource()
    assert digest(source, 3) == digest(source, 3)
    others = [
        digest(source, 4),
        digest(source.model_copy(update={"seed": 1}), 3),
        digest(source.model_copy(update={"split": "test"}), 3),
        digest(source.model_copy(update={"split": "validation"}), 3),
    ]
    assert len({digest(source, 3), *others}) == 5


def test_the_splits_share_no_scene() -> None:
    layouts = [
        {make_scene(ScenesSource(split=split), index=i).things for i in range(300)}
        for split in ("train", "validation", "test")
    ]
    assert not layouts[0] & layouts[1] and not layouts[0] & layouts[2]


def test_images_have_hundreds_of_cells_of_many_shapes_and_objects_a_few_cells() -> None:
    source = ScenesSource()
    scenes = [make_scene(source, index=i) for i in range(100)]
    areas = [scene.rows * scene.columns for scene in scenes]
    # rounding both sides to whole cells may leave the range by a row or a column
    assert min(areas) > 0.85 * source.min_cells and max(areas) <= source.max_cells
    assert len({scene.grid for scene in scenes}) > 30
    sizes = [len(cells_of(scene, (thing,))) for scene in scenes for thing in scene.shapes]
    assert min(sizes) >= 3 and max(sizes) <= 16
    shown = [len(cells_of(s, s.things)) / (s.rows * s.columns) for s in scenes]
    assert np.mean(shown) > 0.35, "keeping everything that shows something must not fit the budget"


def test_nothing_overlaps_and_nothing_leaves_the_image() -> None:
    for index in range(30):
        scene = make_scene(ScenesSource(), index=index)
        cover = np.zeros((scene.rows * scene.cell_px, scene.columns * scene.cell_px), dtype=int)
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= cover.shape[1] and 0 <= y0 < y1 <= cover.shape[0]
            cover[y0:y1, x0:x1] += 1
        assert cover.max() == 1


@pytest.mark.parametrize("cells", [1, 16, 20, 24, 30])
def test_in_a_picture_of_few_cells_a_sign_is_as_wide_as_the_picture_at_most(cells: int) -> None:
    source = SceneSource(
        ScenesSource(min_cells=cells, max_cells=cells + 4, min_objects=1, max_objects=2, clutter=0)
    )
    for index in range(30):
        scene = make_scene(source.source, index=index)
        assert all(thing.box[2] <= scene.columns * scene.cell_px for thing in scene.things)
        assert len(source.scene_samples(index)) == source.source.questions
        assert scene.signs, "it is placed first, so there is room"


@pytest.mark.parametrize("what", ["cells", "objects"])
def test_an_empty_range_of_sizes_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=f"min_{what}=30 is more than max_{what}=29"):
        ScenesSource.model_validate({f"min_{what}": 30, f"max_{what}": 29})


def test_every_kind_is_asked_and_its_answer_is_true() -> None:
    source = SceneSource(ScenesSource(scenes=60, questions=6))
    kinds: Counter[str] = Counter()
    for position in range(len(source)):
        sample = source[position]
        scene = sample.facts["scene"]
        kinds[sample.kind] += 1
        words = sample.question.rstrip("?").split()
        if sample.kind == "count":
            shape = next(s for s in SHAPES if s in sample.question)
            assert int(sample.answer) == sum(t.shape == shape for t in scene.shapes)
        elif sample.kind == "word":
            frame = next(c for c in COLORS if c in words)
            assert [t.word for t in scene.signs if t.color == frame] == [sample.answer]
        elif sample.kind == "relation":
            a, b = (next(t for t in scene.shapes if t.shape == w) for w in words if w in SHAPES)
            (ax, ay), (bx, by) = a.center, b.center
            truth = {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}
            assert truth[sample.answer]
        elif sample.kind == "odd":
            colors = Counter(t.color for t in scene.shapes)
            (odd,) = [t for t in scene.shapes if colors[t.color] == 1]
            assert len(colors) == 2 and len(scene.shapes) >= 4
            assert sample.answer in (str(odd.digit), odd.color, odd.shape)
            assert sample.facts["answer_cells"] == cells_of(scene, (odd,))
            assert not {*SHAPES, *COLORS} & set(words), "the question must name nothing"
        else:
            named = [
                t for t in scene.shapes
                if t.shape in words or t.color in words or str(t.digit) in words
            ]  # fmt: skip
            assert len(named) == 1 and str(getattr(named[0], sample.kind)) == sample.answer
    assert set(kinds) == {"color", "shape", "digit", "word", "count", "relation", "odd"}


def test_the_answer_cells_show_what_is_asked() -> None:
    source = SceneSource(ScenesSource(scenes=20, questions=6))
    for position in range(len(source)):
        sample = source[position]
        targets = cell_targets(sample.facts["scene"])
        cells = sample.facts["answer_cells"]
        assert cells and all(0 <= c < np.prod(sample.facts["grid"]) for c in cells)
        if sample.kind == "color":
            assert {targets["color"][c] for c in cells} == {1 + COLORS.index(sample.answer)}
        if sample.kind == "digit":
            assert 1 + int(sample.answer) in {targets["digit"][c] for c in cells}


def test_a_scene_drawn_smaller_shows_a_larger_one_and_maps_its_answer_cells() -> None:
    source = ScenesSource(scenes=30, questions=2, scaled_share=1.0, min_scale=0.25)
    scales = set()
    for position in range(60):
        sample = SceneSource(source)[position]
        scene = sample.facts["scene"]
        rows, columns = scene.grid
        scales.add(scene.scale)
        assert 0.25 <= scene.scale <= 1 and scene.rows * scene.columns <= 324
        assert draw_scene(scene).size == (columns * 16, rows * 16)
        assert sample.facts["answer_cells"]
        assert max(sample.facts["answer_cells"]) < rows * columns
        targets = cell_targets(scene)
        assert len(targets["color"]) == rows * columns
        if scene.scale < 0.4:
            assert set(targets["digit"]) == {0}, "an illegible digit is not there to be read"
    assert len(scales) == 30


def test_no_scene_is_drawn_smaller_unless_asked() -> None:
    assert {make_scene(ScenesSource(), index=i).scale for i in range(50)} == {1.0}


def test_samples_of_one_scene_are_one_group_and_share_their_image_key() -> None:
    source = SceneSource(ScenesSource(scenes=3, questions=4))
    assert source.groups() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert len({source[i].image_key for i in range(4)}) == 1
    assert len({source[i].id for i in range(12)}) == 12
    with pytest.raises(IndexError):
        source[12]


def test_cell_targets_name_every_attribute_within_its_classes() -> None:
    scene = make_scene(ScenesSource(), index=0)
    targets = cell_targets(scene)
    assert set(targets) == set(CELL_TARGETS)
    assert all(0 <= label < CELL_TARGETS[name] for name in targets for label in targets[name])
