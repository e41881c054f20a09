"""Programs that mean harm, run for real: none gets out, none outlives its time, none passes."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade.scoring.code_tests import Problem, judge_code, mean_pass_at, pass_at_k, program_of
from saccade.scoring.sandbox import Limits, Ran, run_sandboxed

pytestmark = pytest.mark.skipif(os.name != "posix", reason="untrusted code runs on POSIX only")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="rests on the Linux kernel")
QUICK = Limits(wall_seconds=1.5, cpu_seconds=5, memory_bytes=256 << 20)
PATIENT = Limits(wall_seconds=30.0, cpu_seconds=10, memory_bytes=256 << 20)
ADD = Problem(
    "demo/0",
    prompt='def add(a, b):\n    """The sum."""\n',
    test="def check(candidate):\n    assert candidate(1, 2) == 3 and candidate(0, 0) == 0\n",
    entry_point="add",
)


def ran(program: str, limits: Limits = PATIENT) -> Ran:
    return run_sandboxed(program, limits=limits)


def processes_with(mark: str) -> list[int]:
    """Processes whose command line holds the mark."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


# what is judged ----------------------------------------------------------------------------------


def test_right_code_passes_and_wrong_code_says_why() -> None:
    good = judge_code(ADD, "    return a + b\n", limits=PATIENT)
    assert good.passed and good.status == "passed"
    wrong = judge_code(ADD, "    return a - b\n", limits=PATIENT)
    assert (wrong.status, wrong.detail) == ("failed", "AssertionError")
    broken = judge_code(ADD, "    return (\n", limits=PATIENT)
    assert broken.status == "failed"
    assert "SyntaxError" in broken.detail


def test_ordinary_programs_may_do_ordinary_things() -> None:
    program = (
        "import collections, dataclasses, json, math, random, re\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int = 0\n"
        "open('own.txt', 'w').write('mine')\n"
        "assert open('own.txt').read() == 'mine' and Point().x == 0\n"
        "print('said')\n"
    )
    done = ran(program)
    assert done.passed, done
    assert done.output == "said\n"


@pytest.mark.parametrize(
    "leaving", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"]
)
def test_leaving_before_the_tests_does_not_pass(leaving: str) -> None:
    assert judge_code(ADD, f"    return a + b\n{leaving}\n", limits=PATIENT).status == "exited"


def test_writing_a_verdict_by_hand_does_not_pass() -> None:
    forged = (
        "import os\nfor number in range(64):\n    try:\n"
        '        os.write(number, b\'{"status": "passed", "secret": "x"}\\n\')\n'
        "    except OSError:\n        pass\nos._exit(0)\n"
    )
    assert not ran(forged).passed


# what is limited ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        "while True:\n    pass\n",
        "import time\ntime.sleep(60)\n",
        "import signal, time\nfor one in (1, 2, 15):\n    signal.signal(one, signal.SIG_IGN)\n"
        "time.sleep(60)\n",
        "while 1:\n    try:\n        while 1: pass\n    except BaseException:\n        pass\n",
        "input_never = open(0).read()\nimport time\ntime.sleep(60)\n",
    ],
    ids=["loop", "sleep", "signals ignored", "exceptions caught", "stdin is empty"],
)
def test_time_ends_for_every_program(program: str) -> None:
    done = ran(program, QUICK)
    assert done.status == "timeout", done
    assert done.seconds < 15


def test_time_on_the_processor_is_limited_too() -> None:
    limits = Limits(wall_seconds=60, cpu_seconds=1)
    done = ran("while True:\n    pass\n", limits)
    assert (done.status, done.detail) == ("timeout", "more than 1 s of CPU")


@LINUX
def test_a_fork_bomb_stays_small_and_leaves_nothing() -> None:
    bomb = "import os\nwhile 1:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    done = ran(bomb, QUICK)
    assert done.status in ("timeout", "processes"), done
    assert 1 < done.processes <= 4 * QUICK.processes
    assert not processes_with("sandbox_guard")


def test_memory_is_limited() -> None:
    done = ran("held = []\nwhile True:\n    held.append(bytearray(10_000_000))\n")
    assert done.status in ("failed", "memory"), done
    assert done.status == "memory" or done.detail == "MemoryError"


@LINUX
def test_memory_of_all_processes_together_is_limited() -> None:
    hog = (
        "import os, time\nfor _ in range(6):\n    if not os.fork():\n        break\n"
        "held = bytearray(os.urandom(1000)) * 100_000\ntime.sleep(20)\n"
    )
    assert ran(hog).status == "memory"


def test_output_is_cut() -> None:
    done = ran("while True:\n    print('x' * 1000)\n")
    assert done.status == "output"
    assert len(done.output) <= PATIENT.output_bytes


def test_large_files_and_many_open_files_are_refused() -> None:
    large = ran("open('large', 'wb').write(bytes(50_000_000))\n")
    assert not large.passed
    many = ran("held = [open('a', 'w') for _ in range(1000)]\n")
    assert "Too many open files" in many.detail


def test_recursion_without_end_does_not_pass() -> None:
    assert "RecursionError" in ran("def f():\n    f()\nf()\n").detail
    deep = ran("import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    f()\nf()\n", QUICK)
    assert deep.status in ("crashed", "failed", "memory", "timeout")


@LINUX
def test_grandchildren_in_a_session_of_their_own_do_not_survive(tmp_path: Path) -> None:
    mark = f"survivor-{os.getpid()}-{time.monotonic_ns()}"
    program = (
        "import os, sys, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n"
        f"        os.execv({sys.executable!r}, ['python', '-c', 'import time; time.sleep(60)',"
        f" {mark!r}])\n    os._exit(0)\ntime.sleep(0.3)\n"
    )
    assert ran(program).status in ("passed", "crashed")
    assert not processes_with(mark)


@LINUX
def test_the_guard_goes_with_the_process_that_started_it() -> None:
    import subprocess

    source = (
        "from saccade.scoring.sandbox import *\n"
        "run_sandboxed('import time; time.sleep(60)', limits=Limits(wall_seconds=60))"
    )
    starter = subprocess.Popen([sys.executable, "-c", source])
    deadline = time.monotonic() + 30
    while not processes_with("sandbox_guard") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_with("sandbox_guard")
    starter.kill()
    starter.wait()
    while processes_with("sandbox_guard") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_with("sandbox_guard")


# what is out of reach ----------------------------------------------------------------------------


def isolated(what: str) -> None:
    if not ran("").isolation.get(what):
        pytest.skip(f"this system does not keep {what} out of reach")


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-token")
    done = ran("import os\nprint(sorted(os.environ))\nassert 'HF_TOKEN' not in os.environ\n")
    assert done.passed
    assert "TOKEN" not in done.output


def test_the_environment_of_other_processes_is_not_readable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    isolated("files")
    monkeypatch.setenv("HF_TOKEN", "a-secret-token")
    program = (
        "import glob\nfor name in ['/proc/%d/environ' % n for n in range(1, 100000)]:\n"
        "    try:\n        print(open(name).read())\n    except OSError:\n        pass\n"
    )
    assert "a-secret-token" not in ran(program).output


def test_files_outside_are_neither_written_nor_read(tmp_path: Path) -> None:
    isolated("files")
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    written = ran(f"open({str(tmp_path / 'new')!r}, 'w').write('x')\n")
    assert written.status == "failed" and "PermissionError" in written.detail
    assert not (tmp_path / "new").exists()
    assert "PermissionError" in ran(f"print(open({str(secret)!r}).read())\n").detail
    ran(f"import os\nos.chmod({str(secret)!r}, 0o777)\nos.remove({str(secret)!r})\n")
    assert secret.read_text() == "hidden"


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_network_is_out_of_reach(listener: int) -> None:
    isolated("network")
    program = f"import socket\nsocket.create_connection(('127.0.0.1', {listener}), timeout=3)\n"
    assert ran(program).status == "failed"
    udp = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    assert "unreachable" in ran(f"{udp}s.sendto(b'x', ('8.8.8.8', 53))\n").detail


def test_other_processes_are_out_of_reach() -> None:
    isolated("processes")
    program = (
        f"import os, signal\nfor one in (os.getppid(), {os.getpid()}):\n    try:\n"
        "        os.kill(one, signal.SIGKILL)\n    except OSError:\n        pass\n"
        "import time\ntime.sleep(0.2)\n"
    )
    assert ran(program).passed


# pass@k ------------------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    import itertools

    for n, c in ((5, 0), (5, 1), (5, 3), (6, 6), (4, 2)):
        right = [i < c for i in range(n)]
        for k in range(1, n + 1):
            draws = list(itertools.combinations(right, k))
            share = sum(any(draw) for draw in draws) / len(draws)
            assert pass_at_k(n, c, k=k) == pytest.approx(share)
    assert pass_at_k(200, 3, k=100) < 1.0
    assert math.isclose(pass_at_k(10, 3, k=1), 0.3)


def test_pass_at_k_is_not_defined_for_more_draws_than_attempts() -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(3, 1, k=4)
    assert mean_pass_at({"a": (3, 1), "b": (2, 2)}, ks=(1, 2, 3)) == {
        "1": pytest.approx(2 / 3),
        "2": pytest.approx((2 / 3 + 1) / 2),
    }


def test_the_program_is_prompt_completion_tests_and_the_call() -> None:
    program = program_of(ADD, "    return a + b")
    assert program.startswith(ADD.prompt + "    return a + b\ndef check")
    assert program.endswith("check(add)\n")
