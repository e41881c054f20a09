"""Which operating-system errors are the user's, which are outside, and which are bugs."""

from __future__ import annotations

import errno

import pytest

from saccade.cli_inputs import split_words
from saccade.config.errors import InputError, of_system


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, 2),
        (errno.ENOTDIR, 2),
        (errno.EACCES, 3),
        (errno.EROFS, 3),
        (errno.ENOSPC, 3),
        (errno.EDQUOT, 3),
        (errno.EFBIG, 3),
    ],
)
def test_a_system_error_becomes_one_message_with_its_path(number: int, code: int) -> None:
    found = of_system(OSError(number, "why", "runs/x"))
    assert found is not None
    assert found.exit_code == code
    assert str(found).startswith("runs/x: why\n  fix: ")


def test_a_full_disk_without_a_path_is_still_explained() -> None:
    found = of_system(OSError(errno.ENOSPC, "No space left on device"))
    assert found is not None
    assert found.exit_code == 3


@pytest.mark.parametrize("error", [OSError("no number"), OSError(errno.EBADF, "bad", "x")])
def test_other_system_errors_stay_bugs(error: OSError) -> None:
    assert of_system(error) is None


def test_words_split_into_recipe_and_overrides() -> None:
    assert split_words(None) == (None, [])
    assert split_words(["a=1", "~b"]) == (None, ["a=1", "~b"])
    assert split_words(["tiny-base", "a=1"]) == ("tiny-base", ["a=1"])
    with pytest.raises(InputError, match="expected key=value"):
        split_words(["tiny-base", "a=1", "b"])
