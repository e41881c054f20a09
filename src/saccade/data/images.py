"""Pixels in, one 8-bit RGB image out, or one clear sentence about what is wrong with them.

Takes an `ImageRef` (file, encoded bytes, open image or a function that draws) and returns what
the image processor expects: EXIF orientation applied, transparency put on white, 16-bit grey
scaled, palettes resolved. The size is read from the header and checked before any pixel is
decoded. Every failure is a `DataError`. Left out: resizing (the processor's business) and
downloading.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from saccade.data.samples import DataError, ImageRef

MAX_PIXELS = 100_000_000
"""Largest area that is decoded; a file above it is more likely a mistake than a picture."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Plain raster formats; others (EPS, WMF, ...) would start outside programs."""

WIDE_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def load_image(ref: ImageRef, *, where: str) -> Image.Image:
    """Return the image as 8-bit RGB; `where` names the row in the error."""
    if callable(ref):
        return _to_rgb(_sized(ref(), name="the image", where=where), where=where)
    if isinstance(ref, Image.Image):
        return _to_rgb(_sized(ref, name="the image", where=where), where=where)
    with _opened(ref, where=where) as image:
        return _decoded(image, name=_name(ref), where=where)


def verify_image(ref: ImageRef, *, where: str) -> tuple[int, int]:
    """Decode the image in full, checksums included; return (width, height) as a model sees it."""
    if isinstance(ref, Path | bytes):
        with _opened(ref, where=where) as image, _damage_named(_name(ref), where=where):
            image.verify()
    return load_image(ref, where=where).size


def image_size(ref: ImageRef, *, where: str) -> tuple[int, int]:
    """Return (width, height) from the header alone, before any rotation that EXIF asks for."""
    if isinstance(ref, Path | bytes):
        with _opened(ref, where=where) as image:
            return image.size
    return load_image(ref, where=where).size


def _name(ref: ImageRef) -> str:
    return str(ref) if isinstance(ref, Path) else "the image"


@contextmanager
def _opened(ref: Path | bytes, *, where: str) -> Iterator[Image.Image]:
    """The image with its header read and its size checked, no pixel decoded."""
    name = _name(ref)
    stream = _stream(ref, where=where)
    with stream:
        head = stream.read(64)
        stream.seek(0)
        if not head:
            raise DataError(f"{name} is empty (0 bytes)", where=where, fix="copy the file again")
        if head.startswith(b"version https://git-lfs"):
            raise DataError(
                f"{name} is a Git LFS pointer, not the image", where=where, fix="run git lfs pull"
            )
        try:
            image = Image.open(stream, formats=FORMATS)
        except Image.DecompressionBombError:
            raise _too_large(_header_size(stream), name=name, where=where) from None
        except UnidentifiedImageError:
            raise DataError(
                f"{name} is not an image that can be read",
                where=where,
                fix=f"save it as one of {', '.join(FORMATS)}, or drop the row",
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # PIL's parsers raise anything on a damaged header
            raise _damaged(name, error, where=where) from error
        with image:
            yield _sized(image, name=name, where=where)


def _stream(ref: Path | bytes, *, where: str) -> IO[bytes]:
    if isinstance(ref, bytes):
        return io.BytesIO(ref)
    try:
        return ref.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"the image file {ref} does not exist",
            where=where,
            fix="add the file, correct its name, or set image_root or image_format",
        ) from None
    except IsADirectoryError:
        raise DataError(
            f"the image {ref} is a folder", where=where, fix="name a file in it"
        ) from None
    except PermissionError:
        raise DataError(
            f"the image file {ref} may not be read", where=where, fix="allow reading (chmod +r)"
        ) from None
    except (OSError, ValueError) as error:  # name too long, NUL byte in the name, dead mount
        raise DataError(
            f"the image file {ref} cannot be opened ({error})", where=where, fix="check its name"
        ) from error


def _sized(image: Image.Image, *, name: str, where: str) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError(f"{name} has no pixels ({width} x {height})", where=where, fix="replace it")
    if width * height > MAX_PIXELS:
        raise _too_large(image.size, name=name, where=where)
    return image


def _too_large(size: tuple[int, int] | None, *, name: str, where: str) -> DataError:
    is_size = f"is {size[0]} x {size[1]} pixels" if size else "has too many pixels"
    return DataError(
        f"{name} {is_size}, over the limit of {MAX_PIXELS // 1_000_000} million",
        where=where,
        fix="scale it down or drop the row",
    )


def _header_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """Width and height of a file that `Image.open` refuses for its size alone."""
    stream.seek(0)
    prefix = stream.read(16)
    for kind in FORMATS:
        factory, accept = Image.OPEN.get(kind, (None, None))
        if factory is None or (accept is not None and accept(prefix) is not True):
            continue
        stream.seek(0)
        return factory(stream, "").size
    return None


def _decoded(image: Image.Image, *, name: str, where: str) -> Image.Image:
    with _damage_named(name, where=where):
        image.load()
    return _to_rgb(image, where=where)


@contextmanager
def _damage_named(name: str, *, where: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, DataError):
        raise
    except Exception as error:  # the decoders raise OSError, SyntaxError, struct.error, ...
        raise _damaged(name, error, where=where) from error


def _damaged(name: str, error: Exception, *, where: str) -> DataError:
    return DataError(
        f"{name} is truncated or damaged ({error})",
        where=where,
        fix="copy or download the file again, or drop the row",
    )


def _to_rgb(image: Image.Image, *, where: str) -> Image.Image:
    with _damage_named("the image", where=where):
        image = ImageOps.exif_transpose(image)
        if image.mode in WIDE_GREY:
            # 16-bit grey: PIL's own conversion would clip everything above 255 to white
            wide_HW = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
            return Image.fromarray((wide_HW >> 8).astype(np.uint8)).convert("RGB")
        if image.mode == "F":
            raise DataError(
                "the image has 32-bit float pixels, whose range is unknown",
                where=where,
                fix="save it with 8 bits per channel",
            )
        if image.has_transparency_data:
            layered = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layered).convert("RGB")
        return image.convert("RGB")
