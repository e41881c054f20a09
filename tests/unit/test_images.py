"""Every pixel format becomes the right RGB; every broken file gets one clear sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data.images import image_size, load_image, verify_image
from saccade.data.samples import DataError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def noise(*, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def png_header(*, width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"0" * 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_files_bytes_open_images_and_functions_give_the_same_pixels(tmp_path: Path) -> None:
    image = noise()
    (tmp_path / "a.png").write_bytes(png(image))
    for ref in (tmp_path / "a.png", png(image), image, lambda: image):
        assert load_image(ref, where="x").tobytes() == image.tobytes()
        assert verify_image(ref, where="x") == image_size(ref, where="x") == (64, 64)


def test_transparency_is_put_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    loaded = load_image(png(clear), where="x")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]
    half = load_image(Image.new("LA", (1, 1), (0, 128)), where="x")
    assert half.getpixel((0, 0)) == (127, 127, 127)


def test_palettes_are_resolved_with_and_without_a_transparent_entry() -> None:
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 255, 0, 255, 0, 0])
    assert load_image(png(palette), where="x").getpixel((0, 0)) == RED
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG", transparency=1)
    assert load_image(buffer.getvalue(), where="x").getpixel((0, 0)) == WHITE


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    wide = Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16))
    loaded = load_image(png(wide), where="x")
    assert [loaded.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    loaded = load_image(Image.new("RGB", (3, 2), WHITE).convert(mode), where="x")
    assert (loaded.mode, loaded.getpixel((0, 0))) == ("RGB", WHITE)


def test_the_orientation_in_exif_is_applied() -> None:
    image = Image.new("RGB", (40, 20), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate a quarter turn clockwise to view
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", exif=exif)
    assert load_image(buffer.getvalue(), where="x").size == (20, 40)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:])
    assert load_image(buffer.getvalue(), where="x").getpixel((0, 0)) == RED


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_image_is_refused_by_its_header_and_named_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(width=20_000, height=20_000))
    with pytest.raises(
        DataError, match=r"huge\.png is 20000 x 20000 pixels, over the limit of 100"
    ):
        load_image(path, where="row 3")
    with pytest.raises(DataError, match="11000 x 10000"):
        image_size(png_header(width=11_000, height=10_000), where="x")


def damaged(data: bytes, *, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


JPEG = io.BytesIO()
noise().save(JPEG, format="JPEG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"hello, I am no image at all", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
        (png(noise())[:2000], "truncated or damaged"),
        (png(noise())[:20], "truncated or damaged|not an image"),
        (JPEG.getvalue()[:900], "truncated or damaged"),
        (png_header(width=9, height=9), "truncated or damaged"),
        (png_header(width=0, height=9), "no pixels|damaged|not an image"),
    ],
)
def test_every_broken_file_gets_one_sentence_and_a_fix(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "a.png").write_bytes(data)
    for ref in (tmp_path / "a.png", data):
        with pytest.raises(DataError, match=message) as caught:
            load_image(ref, where="row 7")
        assert caught.value.where == "row 7"
        assert caught.value.fix
        assert "\n" not in caught.value.problem


def test_a_flipped_byte_in_the_pixels_is_found_by_the_check() -> None:
    data = png(noise())
    with pytest.raises(DataError, match="truncated or damaged"):
        verify_image(damaged(data, at=len(data) // 2), where="x")


def test_missing_files_folders_and_impossible_names_are_data_errors(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "no.png", "does not exist"),
        (tmp_path / "no" / "no.png", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 400), "cannot be opened"),
        (tmp_path / "nul\0byte", "cannot be opened|does not exist"),
    ]:
        with pytest.raises(DataError, match=message):
            load_image(path, where="x")


def test_an_image_without_pixels_or_with_float_pixels_is_refused() -> None:
    with pytest.raises(DataError, match=r"no pixels \(0 x 5\)"):
        load_image(Image.new("RGB", (0, 5)), where="x")
    with pytest.raises(DataError, match="float pixels"):
        load_image(Image.new("F", (2, 2)), where="x")
