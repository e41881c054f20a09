"""Runs one untrusted Python program: a script of its own, started by `sandbox.py`, nothing else.

A job (JSON: program, limits, a secret) flows in on stdin, a verdict (JSON) flows out on stdout. The
guard moves itself into namespaces of its own where the system permits (user, processes, network,
messages), forks a keeper, and the keeper forks the candidate, which gives up what it may do before
it runs a line: resource limits, Landlock (it reads the Python installation, writes its folder and
nothing else), no capabilities, no new privileges. Meanwhile the guard watches from outside: time,
processes, memory and output of all descendants, whatever session they are in. At the end it kills
every one of them. Standard library only: it must not import the project. Left out: hiding the
secret from a program that searches its own interpreter; it can forge its verdict, not get out.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import select
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

NEW_NAMESPACES = {"user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x08000000}
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 4, 8
PR_SET_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
# numbers of the generic table, equal on x86-64 and arm64
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION = 0x20080522
READ_ANYTHING = 1 << 2
"""CAP_DAC_READ_SEARCH: a root's Python may lie in a folder that only root can read."""
NOBODY = 65534
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many kinds of access each version of Landlock knows."""
READABLE = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
PROC = Path("/proc")
POLL_SECONDS = 0.02
DETAIL_CHARACTERS = 300


def call(name: str, *arguments: Any) -> int:
    """A function of the C library; -1 where there is none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return -1 if function is None else int(function(*arguments))


# namespaces --------------------------------------------------------------------------------------


def enter_namespaces() -> set[str]:
    """Leave network, processes and messages of the system behind; the names of what worked."""
    user, group = os.getuid(), os.getgid()
    flags = dict(NEW_NAMESPACES)
    plain = sum(flags.values()) - flags["user"]
    if user == 0 and call("unshare", plain) == 0:  # stays able to become nobody
        return set(flags) - {"user"}
    if call("unshare", sum(flags.values())) == 0:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{user} {user} 1")
        write("/proc/self/gid_map", f"{group} {group} 1")
        return set(flags)
    return {name for name in ("pid", "net", "ipc") if call("unshare", flags[name]) == 0}


def write(path: str, text: str) -> None:
    """Write a file of the kernel's; what is refused stays as it is."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


# what the candidate gives up ---------------------------------------------------------------------


class RuleSet(ctypes.Structure):
    """`struct landlock_ruleset_attr`."""

    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class BelowPath(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def landlock_version() -> int:
    """The version of Landlock, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, call("syscall", LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def confine_files(folder: str) -> bool:
    """Read the Python installation, write `folder`, reach no other file; also no TCP, and no
    signal to or look into processes outside, where Landlock knows of these."""
    version = landlock_version()
    if not version:
        return False
    every = (1 << FILE_RIGHTS[min(version, max(FILE_RIGHTS))]) - 1
    rules = RuleSet(every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    made = call("syscall", LANDLOCK_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if made < 0:
        return False
    for path in (*READABLE, sys.prefix, sys.base_prefix, sys.exec_prefix):
        allow(made, path, EXECUTE | READ_FILE | READ_DIR)
    for path in DEVICES:
        allow(made, path, READ_FILE | WRITE_FILE)
    allow(made, folder, every)
    done = call("syscall", LANDLOCK_RESTRICT, made, 0) == 0
    os.close(made)
    return done


def allow(rules: int, path: str, access: int) -> None:
    """Add one rule; a path that does not exist needs none."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not Path(path).is_dir():
        access &= EXECUTE | READ_FILE | WRITE_FILE
    below = BelowPath(access, place)
    call("syscall", LANDLOCK_ADD, rules, 1, ctypes.byref(below), 0)
    os.close(place)


def be_nobody() -> bool:
    """Stop being root, whom no limit on processes binds; Python itself stays readable."""
    if os.getuid() != 0:
        return False
    try:
        os.chown(".", NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:  # a container without that user
        return False
    return True


def keep_capabilities(kept: int) -> None:
    """Give up all other capabilities, for good (with no new privileges set before)."""
    number = CAPSET.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
        sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable
        call("syscall", number, ctypes.byref(header), ctypes.byref(sets))


def limit_resources(limits: dict[str, Any], *, own_count: bool) -> None:
    """Hard limits of the candidate and of everything it starts, each process for itself."""
    cpu, memory = int(limits["cpu_seconds"]), int(limits["memory_bytes"])
    processes = int(limits["processes"])
    if not own_count:  # the kernel counts all that the user runs
        processes += tasks_of_user()
    wanted = (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, int(limits["file_bytes"]), int(limits["file_bytes"])),
        (resource.RLIMIT_NOFILE, int(limits["open_files"]), int(limits["open_files"])),
        (resource.RLIMIT_NPROC, processes, processes),
        (resource.RLIMIT_CORE, 0, 0),
    )
    for kind, soft, hard in wanted:
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        with contextlib.suppress(OSError, ValueError):  # macOS refuses some
            resource.setrlimit(kind, (soft, hard))


def processes() -> list[Path]:
    """The kernel's folders of all processes; none where it keeps none."""
    if not PROC.is_dir():
        return []
    return [one for one in PROC.iterdir() if one.name.isdigit()]


def tasks_of_user() -> int:
    """Processes and threads of the user that the candidate will be."""
    total, user = 0, os.getuid() or NOBODY
    for process in processes():
        with contextlib.suppress(OSError):
            if process.stat().st_uid == user:
                total += sum(1 for _ in (process / "task").iterdir())
    return total


# the candidate -----------------------------------------------------------------------------------


def be_candidate(job: dict[str, Any], *, output: int, verdict: int, entered: set[str]) -> None:
    """Become the candidate: take its place, give up everything, run, report. Never returns."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    kept = os.dup2(verdict, 3)
    os.closerange(4, 4096)
    folder = str(Path.cwd())
    try:
        limit_resources(job["limits"], own_count="user" in entered)
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        files = confine_files(folder)
        was_root = be_nobody()
        keep_capabilities(READ_ANYTHING if was_root and files else 0)
    except BaseException as error:
        os.write(kept, json.dumps({"broken": f"{type(error).__name__}: {error}"}).encode())
        os._exit(70)
    os.write(kept, json.dumps({"files": files}).encode() + b"\n")
    line = run_program(job["program"], secret=job["secret"])
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os.write(kept, json.dumps(line).encode() + b"\n")
    os._exit(0)


def run_program(program: str, *, secret: str) -> dict[str, str]:
    """Run a program to its end and say what came of it."""
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(program, "candidate.py", "exec"), module.__dict__)
    except SystemExit:
        return {"status": "exited", "detail": "it left before its tests ended"}
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]
        return {"status": "failed", "detail": message.rstrip(": ")}
    return {"status": "passed", "detail": "", "secret": secret}


def be_keeper(job: dict[str, Any], *, output: int, verdict: int, entered: set[str]) -> None:
    """First process of the new process namespace: start the candidate, reap all. Never returns.

    Nothing inside can kill it, and when it ends the kernel kills whatever is left inside.
    """
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    candidate = os.fork()
    if not candidate:
        with contextlib.suppress(BaseException):
            be_candidate(job, output=output, verdict=verdict, entered=entered)
        os._exit(70)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.close(output)
    os.close(verdict)
    while True:
        ended, status = os.wait()
        if ended == candidate:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


# the guard ---------------------------------------------------------------------------------------


def descendants(root: int) -> dict[int, int]:
    """All processes below `root` and the bytes of memory each holds (Linux; else none)."""
    parents: dict[int, int] = {}
    for one in processes():
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (one / "stat").read_bytes().rpartition(b")")[2].split()
            parents[int(one.name)] = int(fields[1])
    below: set[int] = set()
    for process in parents:
        chain = []
        while process in parents and process not in below and process != root:
            chain.append(process)
            process = parents[process]
        if process == root or process in below:
            below.update(chain)
    return {process: resident(process) for process in below}


def resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = int((PROC / str(process) / "statm").read_bytes().split()[1])
        return pages * resource.getpagesize()
    return 0


def kill_all(keeper: int) -> None:
    """Kill every descendant, in whatever session, until there is none, and reap them."""
    with contextlib.suppress(OSError):
        os.kill(keeper, signal.SIGKILL)
    for _ in range(500):
        for process in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


class Watch:
    """What the guard knows of a running candidate."""

    def __init__(self, job: dict[str, Any], *, keeper: int, output: int, verdict: int) -> None:
        self.limits, self.starter, self.keeper = job["limits"], job["starter"], keeper
        self.pipes = {output: bytearray(), verdict: bytearray()}
        self.output, self.verdict = self.pipes[output], self.pipes[verdict]
        self.open = set(self.pipes)
        self.began = time.monotonic()
        self.code: int | None = None
        self.most_processes = 0

    def broken_limit(self) -> tuple[str, str] | None:
        """Status and detail of a limit that is broken by now."""
        limits = self.limits
        if os.getppid() != self.starter:  # killed before this process could ask to be told
            raise SystemExit("the process that started this guard is gone")
        if time.monotonic() - self.began > limits["wall_seconds"]:
            return "timeout", f"longer than {limits['wall_seconds']:g} s"
        if len(self.output) > limits["output_bytes"]:
            return "output", f"more than {limits['output_bytes']} bytes of output"
        alive = descendants(os.getpid())
        alive.pop(self.keeper, None)
        self.most_processes = max(self.most_processes, len(alive))
        if len(alive) > limits["processes"]:
            return "processes", f"more than {limits['processes']} processes"
        if sum(alive.values()) > limits["memory_bytes"]:
            return "memory", f"more than {limits['memory_bytes'] >> 20} MiB in all its processes"
        return None

    def read(self, *, seconds: float) -> None:
        """Take what the pipes hold, waiting at most so long."""
        ready = select.select(list(self.open), [], [], seconds)[0]
        if not self.open:
            time.sleep(seconds)
        for pipe in ready:
            part = os.read(pipe, 1 << 16)
            if not part:
                self.open.discard(pipe)
            if len(self.pipes[pipe]) <= self.limits["output_bytes"]:
                self.pipes[pipe] += part

    def until_it_ends(self) -> tuple[str, str]:
        """Wait for the candidate to end or to break a limit."""
        looked = 0.0
        while True:
            self.read(seconds=POLL_SECONDS)
            done, status = os.waitpid(self.keeper, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
                self.read(seconds=0)
                return "ended", ""
            if time.monotonic() - looked >= POLL_SECONDS:
                broken, looked = self.broken_limit(), time.monotonic()
                if broken is not None:
                    return broken


def judged(watch: Watch, *, secret: str) -> tuple[dict[str, bool], str, str]:
    """What was in force, status and detail, from what the candidate reported."""
    lines: list[dict[str, Any]] = []
    for line in bytes(watch.verdict).splitlines():
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            lines += [found] if isinstance(found, dict) else []
    if not lines or "broken" in lines[0]:
        raise SystemExit(f"the candidate could not be confined: {lines}")
    files = lines[0].get("files") is True
    last = lines[-1] if len(lines) > 1 else {}
    status, detail = str(last.get("status", "")), str(last.get("detail", ""))
    if status == "passed" and last.get("secret") == secret:
        return {"files": files}, status, ""
    if status in ("failed", "exited"):
        return {"files": files}, status, detail[:DETAIL_CHARACTERS]
    code = watch.code or 0
    if code == 128 + signal.SIGXCPU or (code == 128 + signal.SIGKILL and not last):
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if used.ru_utime + used.ru_stime >= watch.limits["cpu_seconds"] - 0.5:
            return {"files": files}, "timeout", f"more than {watch.limits['cpu_seconds']} s of CPU"
    if code > 128:
        return {"files": files}, "crashed", f"killed by signal {code - 128}"
    return {"files": files}, "exited", "it left before its tests ended"


def main() -> None:
    """Run the job on stdin and print its verdict."""
    job = json.load(sys.stdin)
    call("prctl", PR_SET_SUBREAPER, 1, 0, 0, 0)
    entered = enter_namespaces() if sys.platform == "linux" else set()
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    output, output_end = os.pipe()
    verdict, verdict_end = os.pipe()
    keeper = os.fork()
    if not keeper:
        with contextlib.suppress(BaseException):
            be_keeper(job, output=output_end, verdict=verdict_end, entered=entered)
        os._exit(70)
    os.close(output_end)
    os.close(verdict_end)
    watch = Watch(job, keeper=keeper, output=output, verdict=verdict)
    try:
        status, detail = watch.until_it_ends()
    finally:
        seconds = time.monotonic() - watch.began
        kill_all(keeper)
    told, found, why = judged(watch, secret=job["secret"])
    if status == "ended":
        status, detail = found, why
    isolation = {"network": "net" in entered, "processes": "pid" in entered, **told}
    text = bytes(watch.output[: job["limits"]["output_bytes"]]).decode("utf-8", "replace")
    json.dump(
        {
            "status": status, "detail": detail, "seconds": seconds, "output": text,
            "processes": watch.most_processes, "isolation": isolation,
        },
        sys.stdout,
    )  # fmt: skip


if __name__ == "__main__":
    main()
