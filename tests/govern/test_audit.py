"""The audit: what was written is there, in order, sealed, from many writers."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import CatenaError, ConfigError, IntegrityError
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.verify import verify
from tests.govern.logs import (
    CONFIG,
    Open,
    Patch,
    fill,
    independent,
    open_log as open_log,
    root as root,
)


def test_what_was_written_is_read_in_order(root: Path, open_log: Open) -> None:
    with open_log() as log:
        fill(log, 10)
    found = list(entries(root, CONFIG))
    assert [entry["number"] for entry in found] == list(range(10))
    assert [entry["seq"] for entry in found] == list(range(1, 11))
    checked = verify(root, CONFIG, deep=True)
    assert checked.sound
    assert (checked.records, checked.first, checked.last, checked.unreadable) == (10, 1, 10, 0)
    assert independent(root) == 0


def test_nothing_that_was_said_stands_on_the_disk_in_clear(root: Path, open_log: Open) -> None:
    with open_log() as log:
        fill(log, 20)
    files = [path for path in root.rglob("*") if path.is_file()]
    for word in (b"secret", b"lovelace", b"hopper"):
        assert not [path for path in files if word in path.read_bytes()], word


def test_entries_are_found_by_what_they_say(root: Path, open_log: Open) -> None:
    with open_log() as log:
        fill(log, 6)
        log.act(
            {"kind": "request", "model": "helper", "id": "7", "body": {"messages": [{"content": "Grüße 你好"}]}},
            "lovelace",
        )

    def count(**query: Any) -> int:
        return len(list(entries(root, CONFIG, Query(**query))))

    assert (count(subject="lovelace"), count(subject="hopper"), count(subject="nobody")) == (4, 3, 0)
    assert (count(text="你好"), count(text="GRÜSSE"), count(model="helper"), count(id="7"), count(kind="act")) == (
        1,
        1,
        1,
        1,
        6,
    )
    now = datetime.now(UTC)
    assert count(since=now - timedelta(hours=1), until=now + timedelta(hours=1)) == 7
    assert count(since=now + timedelta(days=2)) == count(until=now - timedelta(days=2)) == 0


def test_writers_of_many_threads_and_processes_make_one_chain(root: Path, open_log: Open) -> None:
    code = (
        "import sys; from pathlib import Path; from catena.govern.audit.log import Log;"
        "from catena.govern.config import AuditConfig\n"
        "with Log(Path(sys.argv[1]), AuditConfig()) as log:\n"
        "    for n in range(30): log.act({'act': 'other', 'n': n}, 'eve')"
    )
    log = open_log()
    others = [subprocess.Popen([sys.executable, "-c", code, str(root)]) for _ in range(2)]
    threads = [threading.Thread(target=fill, args=(log, 40)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(120) for other in others] == [0, 0]
    log.close()
    checked = verify(root, CONFIG, deep=True)
    assert checked.sound, checked.findings
    assert checked.records == 180


def test_a_writer_that_never_pauses_lets_others_in(root: Path, open_log: Open) -> None:
    busy, other = open_log(), open_log()
    stopped, over = threading.Event(), threading.Event()

    def again(problem: CatenaError | None) -> None:
        assert problem is None
        if stopped.is_set():
            over.set()
        else:
            busy.write("lovelace", lambda: {"kind": "request"}, again)

    busy.write("lovelace", lambda: {"kind": "request"}, again)
    for number in range(5):
        other.act({"act": f"between {number}"})
    stopped.set()
    assert over.wait(20)
    found = [entry["act"] for entry in entries(root, CONFIG, Query()) if entry["kind"] == "act"]
    assert found == [f"between {number}" for number in range(5)]
    assert verify(root, CONFIG).sound


def test_a_log_that_is_opened_again_goes_on(root: Path, open_log: Open) -> None:
    for _ in range(3):
        with open_log() as log:
            fill(log, 2)
    assert verify(root, CONFIG).records == 6


def test_a_sealing_key_of_the_environment_must_be_one(root: Path, monkeypatch: Patch, open_log: Open) -> None:
    monkeypatch.setenv("CATENA_AUDIT_KEY", "short")
    with pytest.raises(ConfigError, match="32 bytes"):
        open_log()
    monkeypatch.setenv("CATENA_AUDIT_KEY", "ab" * 32)
    with open_log() as log:
        fill(log, 1)
    assert not (root / "keys" / "audit.key").exists()
    monkeypatch.setenv("CATENA_AUDIT_KEY", "cd" * 32)
    assert not list(entries(root, CONFIG, Query(subject="lovelace")))
    with pytest.raises(IntegrityError, match="the sealing key is another one"):
        list(entries(root, CONFIG))
