"""Publish a Space folder, or the model in it, on the Hugging Face hub.

A folder that `deploy.py` wrote flows in; a repository on the hub flows out, private unless asked
otherwise. The token is proved before any work, and never written anywhere. What the service refuses
becomes one message with what to do. Endpoint and token come from the environment (`HF_ENDPOINT`,
`HF_TOKEN`) or from `hf auth login`. Left out: making the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from saccade.config.errors import InputError, OutsideError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoKind = Literal["model", "space"]
OURS: Mapping[RepoKind, tuple[str, ...]] = {
    "space": ("model/*", "saccade/*"),
    "model": ("*.safetensors", "*.safetensors.index.json", "base/*"),
}
"""Files of an earlier version that are removed when the new one has them no more."""
LOGIN = "`hf auth login`, or HF_TOKEN=... in .env (a token with write access)"


@dataclass(frozen=True)
class Hub:
    """The service with a token that it has accepted, and the repository meant."""

    api: HfApi
    repo: str
    kind: RepoKind
    private: bool


@dataclass(frozen=True)
class Published:
    """Where it is now."""

    url: str
    repo: str
    kind: RepoKind
    private: bool
    commit: str


def open_hub(repo: str, *, kind: RepoKind, private: bool, env: Mapping[str, str]) -> Hub:
    """Prove the token and complete the repository's name; changes nothing on the hub.

    Raises OutsideError without a token that is accepted or when the hub cannot be reached,
    InputError for a name that the hub would not take.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    token = env.get("HF_TOKEN") or get_token()
    if not token:
        raise OutsideError(f"no Hugging Face token\n  fix: {LOGIN}")
    api = HfApi(endpoint=env.get("HF_ENDPOINT") or None, token=token, library_name="saccade")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(
            f"--repo {repo}: {str(error).splitlines()[0]}\n  fix: NAME, or OWNER/NAME"
        ) from error
    with _translated(f"asking {api.endpoint} who you are"):
        name = str(api.whoami()["name"])
    return Hub(api, repo if "/" in repo else f"{name}/{repo}", kind, private)


def publish(hub: Hub, folder: Path) -> Published:
    """Make the repository if it is not there, and put the folder's content into it.

    Raises InputError when the repository is public and was meant to be private, OutsideError for
    what the hub refuses.
    """
    source = folder if hub.kind == "space" else folder / "model"
    with _translated(f"making {hub.repo}"):
        url = hub.api.create_repo(
            hub.repo, repo_type=hub.kind, private=hub.private, exist_ok=True,
            space_sdk="gradio" if hub.kind == "space" else None,
        )  # fmt: skip
        there = hub.api.repo_info(hub.repo, repo_type=hub.kind)
    if hub.private and not there.private:
        raise InputError(
            f"{hub.repo}: exists already and everybody can read it; nothing was uploaded"
            "\n  fix: --public if that is meant, or another --repo"
        )
    with _translated(f"uploading to {hub.repo}"):
        done = hub.api.upload_folder(
            repo_id=hub.repo,
            repo_type=hub.kind,
            folder_path=source,
            commit_message="Upload from saccade",
            delete_patterns=list(OURS[hub.kind]),
            ignore_patterns=["__pycache__/*", "*/__pycache__/*", "*.pyc", ".gradio/*"],
        )
    return Published(str(url), hub.repo, hub.kind, bool(there.private), str(done.oid))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what the client raises into one message with a way out; the token is never in it."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        said = (error.server_message or str(error)).strip().partition("\n")[0].rstrip(".")
        if status == 401:  # the client goes on about where the token is from
            said = said.partition(". ")[0]
        fixes = {
            401: LOGIN,
            403: "use a token with write access to this namespace, or another --repo",
            404: "check the owner's name in --repo",
            429: "wait, then run the same command again",
        }
        fix = fixes.get(status or 0, "run the same command again later")
        raise OutsideError(f"{what}: the hub answers {status} ({said})\n  fix: {fix}") from error
    except OfflineModeIsEnabled as error:
        raise OutsideError(f"{what}: HF_HUB_OFFLINE is set\n  fix: unset it") from error
    except ValueError as error:  # metadata that the hub refuses
        raise InputError(f"{what}: {error}") from error
    except Exception as error:
        # the client's transport differs between its versions; its name starts alike
        if type(error).__module__.startswith(("httpx", "httpcore")) or isinstance(
            error, (ConnectionError, TimeoutError)
        ):
            raise OutsideError(
                f"{what}: the hub cannot be reached ({type(error).__name__})"
                "\n  fix: check the network and HF_ENDPOINT, then run the same command again"
            ) from error
        raise
