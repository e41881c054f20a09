"""A `docker` command that keeps containers as local processes, for tests without a daemon.

It takes the words that the real client takes (unknown options are refused), maps mounts back to
folders of this machine, and answers in docker's own formats. State is in $FAKE_DOCKER; `down` in
there plays a daemon that does not answer. Each container has a keeper process that records its end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STATE = Path(os.environ["FAKE_DOCKER"])
NEVER = "0001-01-01T00:00:00Z"
WITH_VALUE = {
    "--name", "--label", "--env", "--gpus", "--user", "--shm-size", "--stop-timeout", "--mount",
    "--network",
}  # fmt: skip


def main(words: list[str]) -> int:
    """Do one command."""
    if (STATE / "down").exists():
        return fail(1, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. "
                       "Is the docker daemon running?")  # fmt: skip
    with (STATE / "calls").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    if words[0] == "keeper":
        return keep(words[1])
    verbs = {
        "info": info, "run": run, "inspect": inspect, "image": image, "logs": logs, "ps": ps,
        "kill": kill, "stop": stop, "rename": rename, "rm": remove, "build": build,
    }  # fmt: skip
    return verbs[words[0]](words[1:])


def fail(code: int, text: str) -> int:
    sys.stderr.write(text + "\n")
    return code


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def read(container: str) -> dict[str, Any] | None:
    for path in (STATE / "containers").glob("*/state.json"):
        found = json.loads(path.read_text())
        if container in (found["Id"], found["Name"].lstrip("/")):
            return found
    return None


def write(found: dict[str, Any]) -> None:
    path = STATE / "containers" / found["Id"] / "state.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(found))
    aside.replace(path)


def missing(container: str) -> int:
    return fail(1, f"Error response from daemon: No such container: {container}")


def images() -> list[str]:
    path = STATE / "images"
    return path.read_text().split() if path.is_file() else []


def info(_: list[str]) -> int:
    runtimes = {"runc": {}} | ({"nvidia": {}} if (STATE / "nvidia").exists() else {})
    sys.stdout.write(json.dumps({"ServerVersion": "28.2.2", "Runtimes": runtimes}) + "\n")
    return 0


def run(words: list[str]) -> int:
    options: dict[str, list[str]] = {}
    while words[0].startswith("-"):
        option = words.pop(0)
        if option == "--detach":
            continue
        if option not in WITH_VALUE:
            return fail(125, f"unknown flag: {option}\n\nUsage:  docker run [OPTIONS] IMAGE")
        options.setdefault(option, []).append(words.pop(0))
    name, picture, command = options["--name"][0], words[0], words[1:]
    if read(name) is not None:
        return fail(125, f"docker: Error response from daemon: Conflict. {name} is already in use")
    if picture not in images():
        return fail(125, f"Unable to find image '{picture}' locally\ndocker: Error response from "
                         f"daemon: pull access denied for {picture}")  # fmt: skip
    container = uuid.uuid4().hex * 2
    found = {
        "Id": container, "Name": f"/{name}",
        "Config": {
            "Image": picture, "Cmd": command, "Env": options.get("--env", []),
            "Labels": dict(one.split("=", 1) for one in options.get("--label", [])),
        },
        "HostConfig": {"Mounts": options.get("--mount", []), "Gpus": options.get("--gpus", [])},
        "State": {
            "Status": "created", "Running": False, "ExitCode": 0, "OOMKilled": False, "Error": "",
            "StartedAt": NEVER, "FinishedAt": NEVER, "Pid": 0,
        },
    }  # fmt: skip
    write(found)
    subprocess.Popen(
        [sys.executable, __file__, "keeper", container],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    while read(container)["State"]["Status"] == "created":  # type: ignore[index]
        time.sleep(0.01)
    sys.stdout.write(container + "\n")
    return 0


def keep(container: str) -> int:
    """Run a container's command to its end; a path inside means the place it is mounted from."""
    found = read(container)
    assert found is not None
    places = {}
    for mount in found["HostConfig"]["Mounts"]:
        fields = dict(one.partition("=")[::2] for one in mount.split(","))
        assert Path(fields["source"]).exists(), f"bind source path does not exist: {mount}"
        places[fields["target"]] = fields["source"]
    env = {"PATH": os.environ["PATH"]}
    for pair in found["Config"]["Env"]:
        key, _, value = pair.partition("=")
        for inside in sorted(places, key=len, reverse=True):
            value = value.replace(inside, places[inside])
        env[key] = value
    env |= {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
    log = (STATE / "containers" / container / "log").open("ab", buffering=0)
    with subprocess.Popen(
        found["Config"]["Cmd"],
        env=env,
        cwd=STATE / "containers" / container,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as child:
        state = {"Status": "running", "Running": True, "StartedAt": now(), "Pid": child.pid}
        found["State"] |= state
        write(found)
        assert child.stdout is not None
        for line in child.stdout:
            log.write(f"{now()} ".encode() + line)
        code = child.wait()
    found = read(container) or found  # it may have been renamed meanwhile
    found["State"] |= {
        "Status": "exited", "Running": False, "FinishedAt": now(),
        "ExitCode": code if code >= 0 else 128 - code,
    }  # fmt: skip
    write(found)
    return 0


def inspect(words: list[str]) -> int:
    assert words[:2] == ["--type", "container"]
    found = read(words[2])
    sys.stdout.write(json.dumps([] if found is None else [found]) + "\n")
    return 0 if found else missing(words[2])


def image(words: list[str]) -> int:
    assert words[0] == "inspect"
    return 0 if words[1] in images() else fail(1, f"Error: No such image: {words[1]}")


def build(words: list[str]) -> int:
    assert "--build-arg" in words
    with (STATE / "images").open("a") as file:
        file.write(words[words.index("--tag") + 1] + "\n")
    return 0


def logs(words: list[str]) -> int:
    assert words.pop(0) == "--timestamps"
    since = ""
    if words[0] == "--since":
        since = words[1]
        words = words[2:]
    found = read(words[0])
    if found is None:
        return missing(words[0])
    path = STATE / "containers" / found["Id"] / "log"
    text = path.read_text() if path.is_file() else ""
    kept = [line for line in text.splitlines() if line.partition(" ")[0] >= since]
    sys.stdout.write("".join(f"{line}\n" for line in kept))
    return 0


def ps(words: list[str]) -> int:
    wanted = [word.removeprefix("label=") for word in words if word.startswith("label=")]
    assert "--all" in words
    assert words[-2:] == ["--format", "{{.ID}}"]
    found = []
    for path in (STATE / "containers").glob("*/state.json"):
        one = json.loads(path.read_text())
        labels = {f"{key}={value}" for key, value in one["Config"]["Labels"].items()}
        if set(wanted) <= labels:
            found.append(one)
    sys.stdout.write("".join(one["Id"] + "\n" for one in found))
    return 0


def kill(words: list[str]) -> int:
    assert words[0] == "--signal"
    found = read(words[2])
    if found is None:
        return missing(words[2])
    if not found["State"]["Running"]:
        return fail(1, f"Error response from daemon: container {words[2]} is not running")
    os.kill(found["State"]["Pid"], getattr(signal, f"SIG{words[1]}"))
    return 0


def stop(words: list[str]) -> int:
    assert words[0] == "-t"
    found = read(words[2])
    if found is None:
        return missing(words[2])
    if found["State"]["Running"]:
        os.killpg(found["State"]["Pid"], signal.SIGKILL)
    return 0


def rename(words: list[str]) -> int:
    found = read(words[0])
    if found is None:
        return missing(words[0])
    write(found | {"Name": f"/{words[1]}"})
    return 0


def remove(words: list[str]) -> int:
    found = read(words[-1])
    if found is not None:
        (STATE / "containers" / found["Id"] / "state.json").unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
