"""Small folders in the layouts of the ScreenSpot family."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from saccade.config.screens import ScreenSpotSource
from saccade.data.screens.screenspot import ScreenSpotRows

SIZE = (200, 100)


def picture(path: Path, *, color: Any = "white", size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def v1_row(name: str = "a.png", *, bbox: Any = (20, 10, 40, 30), **more: Any) -> dict[str, Any]:
    """A row as ScreenSpot v1 and v2 have it: [x, y, width, height] in pixels."""
    row = {
        "img_filename": name, "bbox": list(bbox) if isinstance(bbox, tuple) else bbox,
        "instruction": "press it", "data_type": "icon", "data_source": "web",
    }  # fmt: skip
    return {**row, **more}


def folder(
    path: Path,
    rows: Sequence[dict[str, Any]],
    *,
    file: str = "screenspot.json",
    pictures: Sequence[str] = ("a.png",),
) -> Path:
    """Write annotations and one picture of its own colour per name."""
    path.mkdir(parents=True, exist_ok=True)
    place = path / file
    place.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(map(json.dumps, rows)) if file.endswith("l") else json.dumps(list(rows))
    place.write_text(lines, encoding="utf-8")
    for number, name in enumerate(pictures):
        picture(path / "images" / name, color=(30 * (number % 8), 7 * number % 256, 90))
    return path


def opened(path: Path, **keys: Any) -> ScreenSpotRows:
    return ScreenSpotRows(ScreenSpotSource(type="screenspot", path=path, **keys))
