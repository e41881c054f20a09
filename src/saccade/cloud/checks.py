"""`saccade cloud status`: what is there, what blocks, and the command that mends each.

A connection and settings flow in, `Finding`s flow out: credentials, project, billing, every desired
resource, quota, the keys of W&B and the hub, the last error. Nothing is changed. What cannot be
asked (offline, no right) is `unknown`, which is neither good nor bad. The keys are only sent to
their own services, and never while the local stand-in is used.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from saccade.cloud.api import billing
from saccade.cloud.api.transport import ApiError, Google, Unauthenticated, Unreachable
from saccade.cloud.findings import Finding, Level, blocking
from saccade.cloud.manifest import Manifest
from saccade.cloud.plan import GROUPS, Resource, finding_of, look
from saccade.cloud.settings import CloudSettings

__all__ = ["Finding", "Level", "blocking", "cloud_status", "first_checks", "key_checks"]

ASK_TIMEOUT_S = 4.0
WANDB_API = "https://api.wandb.ai"
HUB = "https://huggingface.co"


def cloud_status(
    google: Google, settings: CloudSettings, resources: Sequence[Resource], *,
    manifest: Manifest, env: Mapping[str, str],
) -> list[Finding]:  # fmt: skip
    """Check everything, the first missing thing first."""
    found = first_checks(google, settings)
    if not any(one.name == "credentials" and one.level is not Level.OK for one in found):
        for resource in resources:
            try:
                found.append(finding_of(resource, look(google, resource)))
            except (Unauthenticated, Unreachable) as error:
                found.append(_unknown(resource.id, error))
    if not settings.quotas:
        fix = "saccade cloud status --machine a2-highgpu-1g --strategy spot"
        found.append(Finding("quota", Level.UNKNOWN, "no machine named: need unknown", fix=fix))
    found += key_checks(settings, env=env)
    return [*found, *_last_error(manifest)]


def first_checks(google: Google, settings: CloudSettings) -> list[Finding]:
    """Check credentials, project and billing: what setup cannot mend."""
    project = settings.project
    try:
        answer = google.call("GET", "cloudresourcemanager", f"/v3/projects/{project}")
    except Unauthenticated as error:
        return [_block("credentials", error)]
    except Unreachable as error:
        return [_unknown("credentials", error)]
    except ApiError as error:
        return [Finding("credentials", Level.OK, "accepted"), _block(f"project {project}", error)]
    who = "the local cloud asks for none" if google.fake else "accepted"
    found = [Finding("credentials", Level.OK, who)]
    state = str(answer.get("state", "ACTIVE"))
    active = state in ("ACTIVE", "1")
    fix = "" if active else f"gcloud projects undelete {project}"
    level = Level.OK if active else Level.BLOCK
    found.append(Finding("project", level, f"{project} is {state.lower()}", fix=fix))
    return [*found, _billing(google, project)]


def key_checks(settings: CloudSettings, *, env: Mapping[str, str]) -> list[Finding]:
    """Check that the keys of W&B and the hub are there and accepted."""
    silent = "set; not asked: the local cloud is used" if settings.fake else ""
    if env.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        silent = silent or "set; not asked: HF_HUB_OFFLINE is set"
    wandb = env.get("WANDB_BASE_URL") or WANDB_API
    hub = env.get("HF_ENDPOINT") or HUB
    found = []
    key = settings.secrets.get("WANDB_API_KEY")
    if key is None:
        found.append(Finding("W&B", Level.OK, "no key: runs are logged offline"))
    else:
        word = base64.b64encode(f"api:{key.get_secret_value()}".encode()).decode()
        query = {"query": "query Viewer { viewer { username } }"}
        fix = "set WANDB_API_KEY in .env to a key from https://wandb.ai/authorize"
        found.append(
            _ask("W&B", f"{wandb.rstrip('/')}/graphql", f"Basic {word}", body=query, fix=fix,
                 silent=silent)
        )  # fmt: skip
    token = settings.secrets.get("HF_TOKEN")
    if token is None:
        found.append(Finding("Hugging Face", Level.OK, "no token: open models only"))
    else:
        fix = "set HF_TOKEN in .env to a token from https://huggingface.co/settings/tokens"
        word = f"Bearer {token.get_secret_value()}"
        address = f"{hub.rstrip('/')}/api/whoami-v2"
        found.append(_ask("Hugging Face", address, word, body=None, fix=fix, silent=silent))
    return found


def _ask(
    name: str, address: str, word: str, *, body: dict[str, str] | None, fix: str, silent: str
) -> Finding:
    if silent:
        return Finding(name, Level.UNKNOWN, silent)
    import requests

    try:
        answer = requests.request(
            "GET" if body is None else "POST", address, json=body,
            headers={"Authorization": word}, timeout=ASK_TIMEOUT_S, allow_redirects=False,
        )  # fmt: skip
        content = answer.json() if answer.ok else {}
    except (requests.RequestException, ValueError) as error:
        # the text of such an error may hold the request, so only its kind is shown
        return Finding(name, Level.UNKNOWN, f"set; {address} did not answer ({_kind(error)})")
    if answer.status_code in (401, 403):
        return Finding(name, Level.BLOCK, f"{address} refuses the key", fix=fix)
    viewer = (content.get("data") or {}).get("viewer") if body is not None else content
    if body is not None and answer.ok and viewer is None:
        return Finding(name, Level.BLOCK, f"{address} does not know the key", fix=fix)
    if not answer.ok:
        return Finding(name, Level.UNKNOWN, f"set; {address} answers {answer.status_code}")
    who = str((viewer or {}).get("username") or (viewer or {}).get("name") or "")
    return Finding(name, Level.OK, f"accepted{f' as {who}' if who else ''}")


def _billing(google: Google, project: str) -> Finding:
    try:
        info = billing.billing_info(google)
    except ApiError as error:
        return _unknown("billing", error)
    account = str(info.get("billingAccountName") or "").removeprefix("billingAccounts/")
    if info.get("billingEnabled"):
        return Finding("billing", Level.OK, f"on, account {account}" if account else "on")
    fix = f"gcloud billing projects link {project} --billing-account=ACCOUNT_ID"
    return Finding("billing", Level.BLOCK, "off: nothing can be created", fix=fix)


def _last_error(manifest: Manifest) -> list[Finding]:
    error = manifest.last_error()
    if error is None:
        return []
    group = error["step"].partition(":")[0]
    group = {"repository": "registry", "secret": "secrets", "role": "roles"}.get(group, group)
    only = f" --only {group}" if group in GROUPS else ""
    message = f"{error['time']} {error['step']}: {error['message'].splitlines()[0]}"
    return [Finding("last error", Level.WARN, message, fix=f"saccade cloud setup{only}")]


def _block(name: str, error: ApiError) -> Finding:
    message, _, fix = str(error).partition("\n  fix: ")
    return Finding(name, Level.BLOCK, message, fix=fix)


def _unknown(name: str, error: ApiError) -> Finding:
    message, _, fix = str(error).partition("\n  fix: ")
    return Finding(name, Level.UNKNOWN, message, fix=fix)


def _kind(error: Exception) -> str:
    return type(error).__name__
