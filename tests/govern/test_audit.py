"""The audit: what was written is there, what was changed is found, who is erased is gone, a full disk is told."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import CatenaError, ConfigError, DiskFull, IntegrityError, NotFound, UsageError
from catena.govern.audit import log as module
from catena.govern.audit.checkpoints import SLOT
from catena.govern.audit.forget import erase, prune
from catena.govern.audit.log import Log
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.record import OVERHEAD, frames
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig
from tests.govern.mutations import KINDS, mutate

ROOT = Path(__file__).parents[2]
CONFIG = AuditConfig()
NOW = time.time_ns()
SECRET = "the secret of "
Patch = pytest.MonkeyPatch
Open = Callable[..., Log]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "w" / "locks").mkdir(parents=True)
    return tmp_path / "w"


@pytest.fixture
def open_log(root: Path) -> Iterator[Open]:
    opened: list[Log] = []

    def make(**options: Any) -> Log:
        opened.append(Log(root, AuditConfig.model_validate(options)))
        return opened[-1]

    yield make
    for log in opened:
        log.close()


def fill(log: Log, count: int, subjects: tuple[str, ...] = ("lovelace", "hopper")) -> None:
    """Write entries of some subjects, in several commits."""
    for number in range(count):
        subject = subjects[number % len(subjects)]
        log.act({"act": "test", "number": number, "said": SECRET + subject}, subject)


def segment(root: Path) -> Path:
    [path] = (root / "audit" / "segments").glob("*.log")
    return path


def independent(root: Path) -> int:
    """The exit code of the verifier that shares no code with ours."""
    script = [sys.executable, str(ROOT / "scripts" / "verify_audit.py")]
    places = [str(root / "audit"), str(root / "checkpoints"), str(root / "keys" / "govern.pub")]
    return subprocess.run([*script, *places], capture_output=True, check=False, timeout=60).returncode


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


# -- tampering -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written") / "w"
    (root / "locks").mkdir(parents=True)
    with Log(root, CONFIG) as log:
        fill(log, 12)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_every_mutation_is_found(written: Path, kind: str) -> None:
    path, draw = segment(written), random.Random(kind)
    original = path.read_bytes()
    try:
        for _ in range(40):
            changed, what = mutate(original, kind, draw)
            assert changed != original, what
            path.write_bytes(changed)
            assert not verify(written, CONFIG).sound, what
    finally:
        path.write_bytes(original)
    assert verify(written, CONFIG).sound


def test_every_bit_of_a_head_counts(written: Path) -> None:
    path = segment(written)
    original = path.read_bytes()
    try:
        for bit in range(8 * 52):
            changed = bytearray(original)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert not verify(written, CONFIG, deep=True).sound, bit
            list(entries(written, CONFIG))
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("kind", KINDS)
def test_the_independent_verifier_finds_it_too(written: Path, kind: str) -> None:
    path = segment(written)
    original = path.read_bytes()
    try:
        path.write_bytes(mutate(original, kind, random.Random(kind))[0])
        assert independent(written) == 1
    finally:
        path.write_bytes(original)


def test_a_chain_that_was_made_anew_from_the_middle_is_found(written: Path, tmp_path: Path) -> None:
    from catena.govern.audit.record import TAIL, link_of

    root = tmp_path / "copy"
    shutil.copytree(written, root)
    path = segment(root)
    held = [frame for _, frame in frames(path.read_bytes()) if frame is not None]
    del held[5]
    made, link = b"", bytes(32)
    for number, frame in enumerate(held, 1):
        head = frame.head[:8] + number.to_bytes(8, "big") + frame.head[16:]
        link = link_of(link, head, frame.sealed)
        made += head + frame.sealed + TAIL.pack(link, OVERHEAD + len(frame.sealed))
    path.write_bytes(made)
    problems = " ".join(finding.problem for finding in verify(root, CONFIG).findings)
    assert "were signed for" in problems
    assert "otherwise" not in problems or independent(root) == 1


@pytest.mark.parametrize("name", ["tip", "log.jsonl", "segment", "everything but the log"])
def test_what_is_deleted_is_missed(written: Path, tmp_path: Path, name: str) -> None:
    root = tmp_path / "copy"
    shutil.copytree(written, root)
    if name == "segment":
        segment(root).unlink()
    elif name == "everything but the log":
        shutil.rmtree(root / "audit")
        (root / "checkpoints" / "tip").unlink()
    else:
        (root / "checkpoints" / name).unlink()
    assert verify(root, CONFIG).sound is (name == "log.jsonl")  # the tip alone still vouches for every record


def test_forged_checkpoints_are_found(written: Path, tmp_path: Path) -> None:
    for name, at in (("tip", 20), ("tip", SLOT + 20), ("log.jsonl", 20)):
        root = tmp_path / f"{name}{at}"
        shutil.copytree(written, root)
        path = root / "checkpoints" / name
        raw = bytearray(path.read_bytes())
        raw[at] ^= 1
        path.write_bytes(raw)
        assert not verify(root, CONFIG).sound, name


def test_a_writer_does_not_go_on_over_what_was_changed(root: Path, open_log: Open) -> None:
    with open_log() as log:
        fill(log, 4)
    path = segment(root)
    original = path.read_bytes()
    for changed in (original[:-10], original + original[-200:], b""):
        path.write_bytes(changed)
        if len(changed) > len(original):
            open_log().close()  # no frame, so a kill may have left it: it is cut off
            assert path.read_bytes() == original
            continue
        with pytest.raises(IntegrityError):
            open_log()
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        open_log()


def test_records_behind_the_tip_are_kept_when_they_are_ours(root: Path, open_log: Open) -> None:
    with open_log() as log:
        fill(log, 3)
        tip = (root / "checkpoints" / "tip").read_bytes()
        fill(log, 2)
    (root / "checkpoints" / "tip").write_bytes(tip)  # as after a power cut: it is not synced
    (root / "checkpoints" / "log.jsonl").unlink(missing_ok=True)
    checked = verify(root, CONFIG)
    assert (checked.sound, checked.unanchored, checked.records) == (True, 2, 5)
    with open_log() as log:
        fill(log, 1)
    assert (verify(root, CONFIG).unanchored, verify(root, CONFIG).records) == (0, 6)


def test_records_behind_the_tip_that_are_not_ours_are_refused(root: Path, tmp_path: Path, open_log: Open) -> None:
    other = tmp_path / "other"
    (other / "locks").mkdir(parents=True)
    with open_log() as log:
        fill(log, 3)
    shutil.copytree(root / "audit" / "segments", other / "audit" / "segments")
    shutil.copytree(root / "checkpoints", other / "checkpoints")
    shutil.copytree(root / "keys", other / "keys")
    (other / "keys" / "audit.key").write_bytes(bytes(32))  # one who can write files, but has another sealing key
    with Log(other, CONFIG) as log:
        fill(log, 1, ("mallory",))
    segment(root).write_bytes(segment(other).read_bytes())
    assert not verify(root, CONFIG).sound
    with pytest.raises(IntegrityError, match="added to behind record 3"):
        open_log()


@pytest.mark.parametrize("at", range(9))
def test_a_kill_in_the_middle_of_a_write_loses_only_what_was_not_answered(root: Path, open_log: Open, at: int) -> None:
    with open_log() as log:
        fill(log, 3)
    path = segment(root)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: at * len(whole) // 30])  # less than a record, which is a third
    with open_log() as log:
        fill(log, 1)
    checked = verify(root, CONFIG)
    assert (checked.sound, checked.records) == (True, 4)


# -- forgetting ----------------------------------------------------------------------------------------------------


def test_an_erased_subject_cannot_be_read_and_the_chain_still_holds(root: Path, open_log: Open) -> None:
    log = open_log()
    fill(log, 6)
    erase(log, "lovelace", reason="asked", by="test")
    fill(log, 2)  # ada comes back, under another key
    assert [entry["number"] for entry in entries(root, CONFIG, Query(subject="lovelace"))] == [0]
    kinds = [entry["kind"] for entry in entries(root, CONFIG)]
    assert kinds.count("erased") == 3
    said = [entry["said"] for entry in entries(root, CONFIG) if "said" in entry]
    assert said.count(SECRET + "lovelace") == 1
    assert said.count(SECRET + "hopper") == 4
    act = next(entry for entry in entries(root, CONFIG, Query(text="audit.erase")))
    assert "lovelace" not in str(act)
    checked = verify(root, CONFIG, deep=True)
    assert (checked.sound, checked.unreadable) == (True, 3)
    assert independent(root) == 0
    with pytest.raises(NotFound):
        erase(log, "carol", reason="", by="test")
    with pytest.raises(UsageError, match="belong to nobody"):
        erase(log, "-", reason="", by="test")


def test_another_process_stops_using_a_destroyed_key(root: Path, open_log: Open) -> None:
    server, command = open_log(), open_log()
    fill(server, 1, ("lovelace",))
    erase(command, "lovelace", reason="asked", by="test")
    fill(server, 1, ("lovelace",))
    assert [entry["kind"] for entry in entries(root, CONFIG)] == ["erased", "act", "act"]


def at_day(monkeypatch: Patch, days_ago: float) -> None:
    then = NOW - int(days_ago * 86400e9)
    monkeypatch.setattr(module.time, "time_ns", lambda: then)


def test_old_segments_are_pruned_with_receipts(root: Path, open_log: Open, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        for days in (200, 190, 10):
            at_day(patch, days)
            with open_log() as log:
                fill(log, 3)
    log = open_log()
    assert [one.last for one in prune(log, root, CONFIG, by="test", dry_run=True)] == [3, 6]
    assert verify(root, CONFIG).records == 9
    assert [(one.first, one.last) for one in prune(log, root, CONFIG, by="test")] == [(1, 3), (4, 6)]
    assert prune(log, root, CONFIG, by="test") == []
    checked = verify(root, CONFIG, deep=True)
    assert (checked.sound, checked.pruned, checked.first, checked.records) == (True, 6, 7, 4), checked.findings
    assert independent(root) == 0
    receipts = root / "checkpoints" / "pruned.jsonl"
    receipts.write_text(receipts.read_text().replace('"last": 6', '"last": 7'))
    assert not verify(root, CONFIG).sound


def test_a_segment_that_goes_without_a_receipt_is_missed(root: Path, open_log: Open, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        for days in (200, 10):
            at_day(patch, days)
            with open_log() as log:
                fill(log, 3)
    oldest = min((root / "audit" / "segments").iterdir())
    oldest.unlink()
    assert "should" in verify(root, CONFIG).findings[0].problem


def test_what_does_not_verify_is_not_pruned(root: Path, open_log: Open, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        at_day(patch, 200)
        with open_log() as log:
            fill(log, 3)
    log = open_log()
    path = segment(root)
    path.write_bytes(mutate(path.read_bytes(), "flip", random.Random(1))[0])
    with pytest.raises(IntegrityError, match="nothing is pruned"):
        prune(log, root, CONFIG, by="test")
    assert path.exists()


def test_less_than_half_a_year_is_no_retention() -> None:
    with pytest.raises(ValueError, match="180"):
        AuditConfig(keep_days=179)


# -- a full disk ---------------------------------------------------------------------------------------------------


class Disk:
    """The system's pwrite, which can be out of space, also in the middle of a write."""

    def __init__(self) -> None:
        self.full = False
        self._real = os.pwrite

    def __call__(self, descriptor: int, data: Any, at: int) -> int:
        if not self.full:
            return self._real(descriptor, data, at)
        self._real(descriptor, bytes(data)[:7], at)
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: Patch) -> Disk:
    made = Disk()
    monkeypatch.setattr(module.os, "pwrite", made)
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    return made


def until_written(log: Log) -> None:
    for _ in range(400):
        if not log.status()["problem"]:
            return
        time.sleep(0.05)
    raise AssertionError("it was never written again")


def test_a_full_disk_stops_where_the_policy_says_so(root: Path, open_log: Open, disk: Disk) -> None:
    log = open_log(when_full="stop")
    fill(log, 2)
    disk.full = True
    for _ in range(3):
        with pytest.raises(DiskFull, match="no space is left"):
            fill(log, 1)
    disk.full = False
    until_written(log)
    fill(log, 1)
    kinds = [entry["kind"] for entry in entries(root, CONFIG)]
    assert kinds == ["act", "act", "gap", "act"]
    assert verify(root, CONFIG, deep=True).sound


def test_a_full_disk_degrades_where_the_policy_says_so_and_tells(
    root: Path, open_log: Open, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(when_full="degrade")
    fill(log, 2)
    disk.full = True
    fill(log, 5)
    assert log.status()["lost"] == 5
    assert "records of the audit were lost" in caplog.text
    disk.full = False
    until_written(log)
    fill(log, 1)
    [gap] = entries(root, CONFIG, Query(kind="gap"))
    assert gap["lost"] == 5
    assert verify(root, CONFIG, deep=True).sound


def test_a_problem_is_told_to_everybody_who_waits(root: Path, open_log: Open, disk: Disk) -> None:
    log = open_log()
    disk.full = True
    told: list[CatenaError | None] = []
    done = threading.Event()

    def note(problem: CatenaError | None) -> None:
        told.append(problem)
        done.set()

    log.write("lovelace", lambda: {"kind": "request"}, note)
    assert done.wait(30)
    assert isinstance(told[0], DiskFull)


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
