"""Putting code, inputs, configuration and image where the job finds them, before any is billed.

A `LaunchPlan` flows in; the `JobSpec` with final addresses flows out, logged as `ready`. What is
there already under its hash stays, so repeating this after a kill costs a look. Left out: packing
(`package.py`) and building (`images.py`) themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from saccade.cloud.api import storage
from saccade.cloud.api.errors import PreconditionFailed
from saccade.launch.inputs import ship
from saccade.launch.spec import JobSpec
from saccade.training.store import open_store

if TYPE_CHECKING:
    from saccade.cloud.api.transport import Google
    from saccade.launch.plan import LaunchPlan

YAML = "application/yaml"
GZIP = "application/gzip"


def deliver(plan: LaunchPlan, *, say: Callable[[str], None]) -> JobSpec:
    """Put everything in place and return the spec that is submitted."""
    config = plan.launch.config_file
    config.parent.mkdir(parents=True, exist_ok=True)
    aside = config.with_name(f".{config.name}.tmp")
    aside.write_text(plan.config_text, encoding="utf-8")
    aside.replace(config)
    spec, settings = plan.spec, plan.settings
    if plan.inputs:
        ship(plan.inputs, open_store(spec.store, env=plan.env), say=say)
    google: Google | None = getattr(plan.target, "google", None)
    if settings is None or google is None:
        return spec
    if plan.archive is not None:
        name = f"code/{plan.archive.name}"
        if storage.stat_object(google, settings.bucket, name) is None:
            say(f"uploading the code ({plan.archive.size_bytes / 1e6:.1f} MB)")
            _put(google, settings.bucket, name, plan.archive.path.read_bytes(), kind=GZIP)
    name = f"launches/{spec.token}/config.yaml"
    storage.write_object(
        google, settings.bucket, name, plan.config_text.encode(), content_type=YAML
    )  # fmt: skip
    if plan.config.launch.image is None and spec.image is not None and "@" not in spec.image:
        spec = spec.at(attempt=spec.attempt, image=_image(plan, google, say=say))
    return spec


def _image(plan: LaunchPlan, google: Google, *, say: Callable[[str], None]) -> str:
    from saccade.launch.images import ensure_image

    settings, archive = plan.settings, plan.archive
    assert settings is not None
    assert archive is not None
    return ensure_image(
        google, region=settings.region, repository=settings.repository,
        source=(settings.bucket, f"code/{archive.name}"), home=settings.home, say=say,
        poll_s=0.2 if google.fake else 5.0,
    )  # fmt: skip


def _put(google: Google, bucket: str, name: str, data: bytes, *, kind: str) -> None:
    try:
        storage.write_object(
            google, bucket, name, data, content_type=kind, generation=storage.MUST_BE_NEW
        )  # fmt: skip
    except PreconditionFailed:  # somebody was faster; under its hash it is the same file
        return
