"""What every test shares: no network, no ambient configuration, no deadline on slow machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before any test imports a hub library
# before torch is imported: tests fork, and a forked child hangs in its parent's thread pool
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a machine that stalls draws slowly, which says nothing of the strategy
settings.register_profile(
    "saccade", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("saccade")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the limit of fast tests from the slow ones."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(autouse=True)
def _no_ambient_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own variables must not change what a test sees."""
    for name in list(os.environ):
        if name.startswith("SACCADE_") or name == "WANDB_API_KEY":
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random base model."""
    from tests.tiny_models import random_backbone

    folder = tmp_path_factory.mktemp("models") / "base"
    random_backbone().model.save_pretrained(folder)
    random_backbone().processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def selector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a small selector in it."""
    from tests.tiny_models import relevance_model

    folder = tmp_path_factory.mktemp("runs") / "relevance"
    relevance_model().save_pretrained(folder / "model")
    return folder
