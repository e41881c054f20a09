"""Addresses of Google's web console, all in one place because Google renames its pages.

Names flow in, links for people flow out. Nothing is requested.
"""

from __future__ import annotations

from urllib.parse import quote

_ROOT = "https://console.cloud.google.com"


def job(name: str, *, project: str | None = None) -> str:
    """Link to a Vertex job by its full name (the product's page is called agent platform now)."""
    parts = name.split("/")
    own, region, ident = parts[1], parts[3], parts[5]
    return f"{_ROOT}/agent-platform/locations/{region}/training/{ident}?project={project or own}"


def jobs(project: str) -> str:
    """Link to the list of Vertex jobs."""
    return f"{_ROOT}/agent-platform/training/custom-jobs?project={project}"


def logs(project: str, *, chosen: str) -> str:
    """Link to the log viewer with a filter."""
    return f"{_ROOT}/logs/query;query={quote(chosen, safe='')}?project={project}"


def build(project: str, build_id: str, *, region: str = "global") -> str:
    """Link to an image build."""
    return f"{_ROOT}/cloud-build/builds;region={region}/{build_id}?project={project}"


def bucket(project: str, name: str, *, prefix: str = "") -> str:
    """Link to a bucket, or to a folder in it."""
    place = f"{name}/{prefix}".rstrip("/")
    return f"{_ROOT}/storage/browser/{quote(place)}?project={project}"


def repository(project: str, *, region: str, name: str) -> str:
    """Link to an image repository."""
    return f"{_ROOT}/artifacts/docker/{project}/{region}/{name}?project={project}"


def secrets(project: str) -> str:
    """Link to the secrets."""
    return f"{_ROOT}/security/secret-manager?project={project}"


def service_accounts(project: str) -> str:
    """Link to the service accounts."""
    return f"{_ROOT}/iam-admin/serviceaccounts?project={project}"


def quotas(project: str, *, metric: str | None = None) -> str:
    """Link to the quotas, filtered by a metric."""
    if metric is None:
        return f"{_ROOT}/iam-admin/quotas?project={project}"
    wanted = quote(f'"metric":"{metric}"', safe="")
    return f"{_ROOT}/iam-admin/quotas?project={project}&pageState=({quote('filter')}:{wanted})"


def apis(project: str, *, service: str | None = None) -> str:
    """Link to the APIs, or to the page of one, where it can be switched on."""
    if service is None:
        return f"{_ROOT}/apis/dashboard?project={project}"
    return f"{_ROOT}/apis/library/{service}?project={project}"


def billing(project: str) -> str:
    """Link to the page that names the billing account of a project."""
    return f"{_ROOT}/billing/linkedaccount?project={project}"
