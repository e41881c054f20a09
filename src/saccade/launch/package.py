"""The code archive: what runs here, packed so that the same bytes run elsewhere.

A checkout (or an installed package) flows in, a deterministic `.tar.gz` named by its SHA-256 flows
out, with a list of everything that was left out and why: secrets, git's data, runs, environments,
caches, links out of the tree, large files. A file that holds the value of a known secret stops the
packing. Left out: dependencies (they are in the image, `images.py`) and unpacking (`entry.py`).
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import os
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import SecretStr

from saccade.config.errors import InputError, OutsideError

LARGEST_FILE_BYTES = 20_000_000
"""Larger files are data or weights; they belong in a bucket or on the hub."""
LARGEST_ARCHIVE_BYTES = 200_000_000
SHORTEST_SECRET = 8
"""Shorter values are not searched for: they occur by chance."""
FIXED_TIME = 315532800  # 1980-01-01, the oldest that zip-based tools read

LEFT_OUT_FOLDERS = frozenset(
    {
        ".git", ".hg", ".svn", ".venv", "venv", "__pycache__", ".pytest_cache", ".ruff_cache",
        ".import_linter_cache", ".hypothesis", ".mypy_cache", ".tox", ".ipynb_checkpoints",
        "node_modules", "build", "dist", "runs", "wandb", "outputs", ".launches", ".ssh",
        ".gnupg", ".aws", ".gcloud", ".vscode", ".idea",
    }
)  # fmt: skip
LEFT_OUT_NAMES = ("*.pyc", "*.pyo", "*.egg-info", ".DS_Store", ".training", "*.swp", "*~")
SECRET_NAMES = (
    ".env", ".env.*", "*.env", ".netrc", "_netrc", ".pypirc", ".npmrc", ".git-credentials",
    ".boto", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.keystore", "id_rsa*",
    "id_dsa*", "id_ecdsa*", "id_ed25519*", "*credentials*.json", "client_secret*.json",
    "service-account*.json", "service_account*.json", "*-key.json", "kubeconfig", ".htpasswd",
)  # fmt: skip
EXAMPLES = (".env.example", ".training.example")
"""Templates without values; they look like the files above."""
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(\\n|\r?\n)[A-Za-z0-9+/=]{16}")


@dataclass(frozen=True)
class LeftOut:
    """A file that is not in the archive."""

    path: str
    why: str


@dataclass(frozen=True)
class Archive:
    """A packed archive; equal trees give equal bytes, so the hash is the name."""

    path: Path
    sha256: str
    size_bytes: int
    files: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    source: Path

    @property
    def name(self) -> str:
        """File name in the bucket's `code/` folder."""
        return f"{self.sha256}.tar.gz"


@dataclass(frozen=True)
class _Entry:
    name: str
    data: bytes
    executable: bool


def pack(
    root: Path | None = None,
    *,
    folder: Path,
    secrets: Mapping[str, SecretStr] | None = None,
    largest_file_bytes: int = LARGEST_FILE_BYTES,
) -> Archive:
    """Pack the code into `folder`/SHA256.tar.gz; an archive that is there already stays as it is.

    `root` is a checkout, or None for the one this package runs from (or the installed package).
    Raises InputError when a file holds the value of one of `secrets`, or when all is too large.
    """
    source = root.resolve() if root is not None else code_root()
    left_out: list[LeftOut] = []
    entries = sorted(
        _entries(source, left_out=left_out, largest=largest_file_bytes), key=lambda one: one.name
    )
    if not entries:
        raise InputError(f"{source}: nothing to pack\n  fix: run saccade from its checkout")
    _refuse_secrets(entries, secrets=secrets or {}, source=source)
    total = sum(len(one.data) for one in entries)
    if total > LARGEST_ARCHIVE_BYTES:
        largest = sorted(entries, key=lambda one: -len(one.data))[:3]
        names = ", ".join(f"{one.name} ({len(one.data) / 1e6:.0f} MB)" for one in largest)
        raise InputError(
            f"{source}: {total / 1e6:.0f} MB of files are too much for a code archive; largest: "
            f"{names}\n  fix: keep data outside the checkout, or name it in .gitignore"
        )
    data = _tar_gz(entries)
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{sha256}.tar.gz"
    _write(path, data)
    return Archive(
        path=path,
        sha256=sha256,
        size_bytes=len(data),
        files=tuple(one.name for one in entries),
        left_out=tuple(sorted(left_out, key=lambda one: one.path)),
        source=source,
    )


def secret_values(folder: Path, *, env: Mapping[str, str]) -> dict[str, SecretStr]:
    """Collect the secrets of `.env` in this folder and of the environment, by variable."""
    from saccade.config.secrets import read_secrets

    file = folder / ".env"
    found = read_secrets(file if file.is_file() else None, env=env)
    return {
        name: value
        for name in type(found).model_fields
        if isinstance(value := getattr(found, name), SecretStr)
    }


def code_root() -> Path:
    """Find what to pack: the checkout this package runs from, else the installed package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1]
    return checkout if is_checkout(checkout) else package


def is_checkout(folder: Path) -> bool:
    """Tell whether a folder is a source tree of saccade."""
    file = folder / "pyproject.toml"
    if not (file.is_file() and (folder / "src" / "saccade" / "__init__.py").is_file()):
        return False
    try:
        return tomllib.loads(file.read_text("utf-8")).get("project", {}).get("name") == "saccade"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def project_file(name: str, *, root: Path | None = None) -> str:
    """Read one of the files an image is made from: of the checkout, or of the installed package.

    A wheel carries them in `saccade/assets/image/`, see pyproject.toml.
    """
    source = root or code_root()
    for place in (source / name, source / "assets" / "image" / name):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise OutsideError(
        f"{source}: {name} is missing, so no image can be built from here"
        "\n  fix: run from a checkout, or name an image: launch.image=REPOSITORY@sha256:..."
    )


def _entries(source: Path, *, left_out: list[LeftOut], largest: int) -> Iterator[_Entry]:
    checkout = is_checkout(source)
    known = _git_files(source) if checkout else None
    names = known if known is not None else _walk(source)
    for name in names:
        path = source / name
        why = _refusal(path, name=name, source=source, largest=largest)
        if why is not None:
            if why:
                left_out.append(LeftOut(path=name, why=why))
            continue
        data = path.read_bytes()
        if PRIVATE_KEY.search(data):
            left_out.append(LeftOut(path=name, why="holds a private key"))
            continue
        place = name if checkout else _place_of_installed(name)
        yield _Entry(name=place, data=data, executable=os.access(path, os.X_OK))


def _place_of_installed(name: str) -> str:
    """Put an installed package's files where a checkout has them."""
    prefix = "assets/image/"
    return name.removeprefix(prefix) if name.startswith(prefix) else f"src/saccade/{name}"


def _refusal(path: Path, *, name: str, source: Path, largest: int) -> str | None:
    """Say why a file stays out; empty for what nobody needs to hear of, None to take it."""
    parts = PurePosixPath(name).parts
    if any(_is_left_out_folder(part, at_root=step == 0) for step, part in enumerate(parts[:-1])):
        return ""
    leaf = parts[-1]
    if leaf not in EXAMPLES:
        if matches(leaf, SECRET_NAMES):
            return "may hold secrets"
        if matches(leaf, LEFT_OUT_NAMES):
            return ""
    if not path.is_file():  # deleted but still tracked, a broken link, a socket
        return "" if not path.is_symlink() else "a link to nothing"
    if path.is_symlink() and not path.resolve().is_relative_to(source):
        return "a link that leads out of the tree"
    size = path.stat().st_size
    if size > largest:
        return f"{size / 1e6:.0f} MB, above the limit of {largest / 1e6:.0f} MB"
    return None


def _is_left_out_folder(part: str, *, at_root: bool) -> bool:
    if part in ("build", "dist", "runs", "wandb", "outputs"):  # a package may have such a module
        return at_root
    return part in LEFT_OUT_FOLDERS or part.endswith(".egg-info")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name fits one of some patterns, in whatever case."""
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns)


def _git_files(source: Path) -> list[str] | None:
    """List tracked files and new ones that git does not ignore; None where git does not help."""
    command = ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others",
               "--exclude-standard"]  # fmt: skip
    try:
        top = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "--show-toplevel"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout.strip()  # fmt: skip
        if Path(top).resolve() != source:  # a copy inside somebody else's repository
            return None
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return sorted({os.fsdecode(name) for name in done.stdout.split(b"\0") if name})


def _walk(source: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(source):
        here = Path(folder)
        at_root = here == source
        folders[:] = [one for one in folders if not _is_left_out_folder(one, at_root=at_root)]
        names += [(here / one).relative_to(source).as_posix() for one in files]
    return sorted(names)


def _refuse_secrets(
    entries: Iterable[_Entry], *, secrets: Mapping[str, SecretStr], source: Path
) -> None:
    needles = {
        name: value.get_secret_value().encode()
        for name, value in secrets.items()
        if len(value.get_secret_value()) >= SHORTEST_SECRET
    }
    found = [
        (entry.name, name)
        for entry in entries
        for name, needle in needles.items()
        if needle in entry.data
    ]
    if found:
        lines = "\n".join(f"  {file}: holds the value of {name}" for file, name in found)
        raise InputError(
            f"{source}: secrets would leave this machine with the code\n{lines}"
            "\n  fix: take the value out of the file, keep it in .env, and replace the secret"
        )


def _tar_gz(entries: Iterable[_Entry]) -> bytes:
    packed = io.BytesIO()
    # no file name and no time in the gzip header, so that equal trees give equal bytes
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=6, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.size = len(entry.data)
            info.mtime = FIXED_TIME
            info.mode = 0o755 if entry.executable else 0o644
            tar.addfile(info, io.BytesIO(entry.data))
    return packed.getvalue()


def _write(path: Path, data: bytes) -> None:
    if path.is_file() and path.stat().st_size == len(data):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(data)
    aside.replace(path)
