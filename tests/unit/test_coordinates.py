"""Numbers of every convention come back where they were, through crops of crops, too."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.config.errors import InputError
from saccade.config.grounding import GroundingConfig, ZoomConfig
from saccade.data.boxes import Box, Size
from saccade.grounding.coordinates import Convention, CoordinateError, checked, convention_of
from saccade.grounding.environment import Screen

SIZES = st.sampled_from(
    [(1920, 1080), (1080, 1920), (1919, 1079), (375, 812), (811, 373), (97, 1999), (2000, 101),
     (640, 640), (333, 257)]
)  # fmt: skip
SHARES = st.floats(0.0, 1.0, allow_nan=False)
NAMES = st.sampled_from(["0-1", "0-1000", "pixels"])


def smart_resize(factor: int, most: int):
    """Multiples of `factor` near a size, at most `most` pixels: what the processors do."""

    def fit(size: Size) -> Size:
        shrink = min(1.0, math.sqrt(most / (size[0] * size[1])))
        return tuple(max(factor, round(s * shrink / factor) * factor) for s in size)  # type: ignore[return-value]

    return fit


def ordered(a: float, b: float, c: float, d: float) -> Box:
    return Box(min(a, c), min(b, d), max(a, c), max(b, d))


@given(name=NAMES, size=SIZES, x=SHARES, y=SHARES)
def test_a_point_comes_back_within_half_a_step(name, size: Size, x: float, y: float) -> None:
    convention = Convention(name)
    back = convention.read(convention.numbers((x, y), size=size), size=size)
    for share, value, side, limit in zip((x, y), back, size, convention.limits(size), strict=True):
        step = 1e-4 if name == "0-1" else 1.0
        assert abs(share - value) <= step / limit / 2 + 1e-9
        assert abs(share - value) * side <= 1.0 + 1e-6


@given(name=NAMES, size=SIZES, a=SHARES, b=SHARES, c=SHARES, d=SHARES)
def test_what_is_written_is_read_the_same(name, size: Size, a, b, c, d) -> None:
    convention = Convention(name)
    text = convention.write(ordered(a, b, c, d), size=size)
    numbers = [float(part) for part in text.strip("[]").split(", ")]
    shares = convention.read(numbers, size=size)
    assert convention.write(shares, size=size) == text


@given(name=NAMES, size=SIZES, x=SHARES, y=SHARES)
def test_a_box_without_area_is_written_with_an_inside(name, size: Size, x, y) -> None:
    convention = Convention(name)
    numbers = convention.numbers((x, y, x, y), size=size)
    assert numbers[0] < numbers[2] and numbers[1] < numbers[3]
    convention.read(numbers, size=size)


CROPS = st.lists(
    st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 0.5), st.floats(0.5, 1.0), st.floats(0.5, 1.0)),
    min_size=1,
    max_size=3,
)
PLACES = st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99))


def crop_of_crops(size: Size, crops, *, name, pixels: int) -> Screen:
    config = GroundingConfig(zoom=ZoomConfig(calls=3, window=0.3, max_aspect=1e6, pixels=pixels))
    screen = Screen(
        Image.new("RGB", size), config, Convention(name), smart_resize(28, 4_000_000),
        fit_zoom=smart_resize(28, pixels),
    )  # fmt: skip
    for crop in crops:
        screen.zoom(screen.convention.numbers(crop, size=screen.view.size))
    return screen


@settings(max_examples=50, deadline=None)
@given(name=NAMES, size=st.sampled_from([(640, 480), (375, 812), (811, 373), (97, 799),
                                         (333, 257)]), place=PLACES, crops=CROPS)  # fmt: skip
def test_crops_of_crops_map_back_within_a_pixel(name, size: Size, place, crops) -> None:
    screen = crop_of_crops(size, crops, name=name, pixels=400_000)
    assert screen.zooms >= 1
    box = screen.view.box
    wanted = (box.left + place[0] * box.width, box.top + place[1] * box.height)
    got = screen.answer(screen.numbers(wanted)).point
    for share, value, side in zip(wanted, got, size, strict=True):
        assert abs(share - value) * side <= 1.0


@settings(max_examples=60, deadline=None)
@given(name=NAMES, size=SIZES, place=PLACES, crops=CROPS)
def test_a_coarse_crop_is_off_by_half_a_step_of_what_it_shows(
    name, size: Size, place, crops
) -> None:
    screen = crop_of_crops(size, crops, name=name, pixels=24_576)
    box = screen.view.box
    wanted = (box.left + place[0] * box.width, box.top + place[1] * box.height)
    got = screen.answer(screen.numbers(wanted)).point
    limits = screen.convention.limits(screen.view.size)
    step = 1e-4 if name == "0-1" else 1.0
    for share, value, side, limit in zip(wanted, got, box_sides(box), limits, strict=True):
        assert abs(share - value) <= step / limit * side / 2 + 1e-9


def box_sides(box: Box) -> tuple[float, float]:
    return box.width, box.height


@settings(max_examples=60, deadline=None)
@given(name=NAMES, size=SIZES, a=SHARES, b=SHARES, c=SHARES, d=SHARES)
def test_a_crop_is_exactly_the_pixels_it_claims(name, size: Size, a, b, c, d) -> None:
    config = GroundingConfig(zoom=ZoomConfig(calls=1, max_aspect=1e6))
    screen = Screen(Image.new("RGB", size), config, Convention(name), smart_resize(28, 50_000))
    asked = ordered(a, b, c, d)
    result = screen.zoom(screen.numbers(asked))
    assert result.ok and result.view is not None
    edges = result.view.box.pixels(size)
    assert all(abs(edge - round(edge)) < 1e-6 for edge in edges)
    assert 0 <= edges[0] < edges[2] <= size[0] and 0 <= edges[1] < edges[3] <= size[1]
    assert result.view.image.size == result.view.size


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("0-1", (512, 300)),
        ("0-1", (0.2, 0.3, 1.2, 0.5)),
        ("0-1000", (1001, 20)),
        ("0-1000", (-1, 20)),
        ("pixels", (321, 10)),
        ("pixels", (10, 241)),
        ("pixels", (0, 0, 320, 500)),
    ],
)
def test_a_number_the_convention_does_not_have_is_refused(name, numbers) -> None:
    with pytest.raises(CoordinateError, match="outside the picture"):
        Convention(name).read(numbers, size=(320, 240))


def test_the_same_numbers_mean_what_the_declared_convention_says() -> None:
    size = (320, 240)
    assert Convention("0-1").read((0.5, 0.5), size=size) == (0.5, 0.5)
    assert Convention("0-1000").read((0.5, 0.5), size=size) == (0.0005, 0.0005)
    assert Convention("pixels").read((160, 60), size=size) == (0.5, 0.25)
    assert Convention("0-1000").read((160, 60), size=size) == (0.16, 0.06)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((1.0,), "2 or 4 numbers, not 1"),
        ((1.0, 2.0, 3.0), "2 or 4 numbers, not 3"),
        ((math.nan, 1.0), "finite"),
        ((1.0, math.inf), "finite"),
        ((5.0, 1.0, 2.0, 3.0), "swapped"),
        ((1.0, 5.0, 2.0, 3.0), "swapped"),
        ((1.0, 1.0, 1.0, 3.0), "no area"),
        ((1.0, 1.0, 3.0, 1.0), "no area"),
    ],
)
def test_numbers_that_are_no_place_say_why(numbers, reason: str) -> None:
    with pytest.raises(CoordinateError, match=reason):
        checked(numbers)


@pytest.mark.parametrize(
    ("model_type", "native"),
    [
        ("qwen3_vl", "0-1000"),
        ("qwen3_vl_moe", "0-1000"),
        ("qwen2_5_vl", "pixels"),
        ("qwen2_vl", "0-1000"),
    ],
)
def test_a_family_has_its_own_convention(model_type: str, native: str) -> None:
    assert convention_of("auto", model_type=model_type).name == native
    assert convention_of("0-1", model_type=model_type).name == "0-1"


def test_an_unknown_family_must_be_told() -> None:
    with pytest.raises(InputError, match=r"grounding\.coordinates"):
        convention_of("auto", model_type="llava")
    assert convention_of("pixels", model_type="llava").name == "pixels"
