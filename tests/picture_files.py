"""Files that claim to be pictures: tiny ones that unfold to gigabytes, and ones that are not."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def black_png(width: int, height: int) -> bytes:
    """A black PNG of one bit per pixel, written without ever holding its pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row * 64) for _ in range(height // 64))
    body += packer.compress(row * (height % 64)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def plain_png(width: int = 96, height: int = 64) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "#3366aa").save(stream, format="PNG")
    return stream.getvalue()
