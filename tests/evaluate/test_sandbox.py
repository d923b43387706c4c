"""Programs of a model: what they must not do, they cannot."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from catena.core.errors import EnvironmentProblem
from catena.evaluate import sandbox
from catena.evaluate.sandbox import Sandbox, cannot_contain, run_all
from catena.evaluate.task import LimitsConfig

LIMITS = LimitsConfig(seconds=60, memory_mb=256, processes=16, file_mb=4)
contained = pytest.mark.skipif(
    bool(cannot_contain()) and not os.environ.get("CI"), reason=f"programs cannot be contained: {cannot_contain()}"
)


def reason(program: str, limits: LimitsConfig = LIMITS) -> str:
    return Sandbox().run(program, limits).reason


@contained
def test_a_good_program_passes_and_a_bad_one_fails() -> None:
    verdicts = run_all(Sandbox(), ["import json, re\nassert 1 + 1 == 2", "assert 1 + 1 == 3", None], LIMITS)
    assert [verdict.reason for verdict in verdicts] == ["passed", "failed", "not_extracted"]
    assert "AssertionError" in verdicts[1].output


@contained
@pytest.mark.parametrize("early", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_who_leaves_early_has_not_passed(early: str) -> None:
    assert reason(early) == "failed"


@contained
def test_an_endless_loop_ends() -> None:
    assert reason("while True: pass", LIMITS.model_copy(update={"seconds": 1.0})) == "timeout"
    flood = "while True: print('x' * 10000)"
    assert reason(flood, LIMITS.model_copy(update={"seconds": 1.0})) == "timeout"


@contained
def test_a_fork_bomb_stays_small() -> None:
    count = """
import os, time
born = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        born += 1
except OSError:
    print("born", born)
    assert born < 16
"""
    verdict = Sandbox().run(count, LIMITS)
    assert verdict.reason in ("passed", "processes"), verdict.output  # root's are counted by us and not by the kernel
    assert reason("import os\nwhile True: os.fork()") in ("failed", "timeout", "processes")


@contained
@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(10 * 1024 ** 3)",
        "x = []\nwhile True: x.append(bytearray(10 ** 6))",
        "import os, time\nfor _ in range(12):\n    if os.fork() == 0:\n"
        "        x = bytearray(150 * 10 ** 6)\n        time.sleep(60)\n        os._exit(0)\ntime.sleep(60)",
    ],
    ids=["ten gigabytes", "bit by bit", "in many processes"],
)
def test_memory_is_bounded(program: str) -> None:
    assert reason(program) == "memory"


@contained
def test_programs_at_once_do_not_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))  # so many at once
    program = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        time.sleep(1)
        os._exit(0)
for _ in range(8):
    os.wait()
"""
    verdicts = run_all(Sandbox(), [program] * 4, LIMITS)
    assert [verdict.reason for verdict in verdicts] == ["passed"] * 4, verdicts[-1].output


@contained
def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        verdict = Sandbox().run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=5)", LIMITS)
    assert verdict.reason == "failed"
    assert "unreachable" in verdict.output
    assert reason("import socket\ns = socket.socket(); s.settimeout(5); s.connect(('192.0.2.1', 53))") == "failed"


@contained
def test_files_outside_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not for you")
    verdict = Sandbox().run(f"print(open({str(secret)!r}).read())", LIMITS)
    assert verdict.reason == "failed"
    assert "not for you" not in verdict.output
    assert reason("open('/etc/passwd')") == "failed"
    assert reason("import os\nassert 'program.py' in os.listdir('/tmp') and not os.path.exists('/proc/1')") == "passed"


@contained
def test_nothing_can_be_written_but_a_little_into_memory(tmp_path: Path) -> None:
    assert reason("open('/tmp/a', 'w').write('x')") == "passed"
    assert reason("f = open('/tmp/a', 'wb')\nfor _ in range(20): f.write(b'x' * 10 ** 6)") == "failed"
    for place in ("/usr/catena-was-here", "/catena-was-here", str(tmp_path / "here")):
        assert reason(f"open({place!r}, 'w')") == "failed"
        assert not Path(place).exists()


@contained
def test_there_is_no_way_to_more_rights() -> None:
    c = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.{} == 0, ctypes.get_errno()"
    for name in ("mount(b'none', b'/tmp', b'tmpfs', 0, None)", "unshare(0x10000000)", "setuid(0)"):
        assert reason(c.format(name)) == "failed"
    assert reason("import os\nos.kill(-1, 9)") == "failed"


def test_without_containment_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "cannot_contain", lambda: "namespaces are refused: EPERM")
    with pytest.raises(EnvironmentProblem, match=r"programs cannot be contained .* namespaces are refused") as caught:
        Sandbox().run("print(1)", LIMITS)
    assert "--allow-uncontained-code" in caught.value.hint
    allowed = Sandbox(uncontained=True)
    assert allowed.describe() == "limits only"
    assert allowed.run("assert True", LIMITS).passed
    assert allowed.run("x = bytearray(10 * 1024 ** 3)", LIMITS).reason == "memory"
    assert allowed.run("while True: pass", LIMITS.model_copy(update={"seconds": 1.0})).reason == "timeout"
