"""Who is erased from the audit is gone, and what is old is pruned; both leave proof."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from catena.core.errors import IntegrityError, NotFound, UsageError
from catena.govern.audit import log as module
from catena.govern.audit.forget import erase, prune
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig
from tests.govern.logs import (
    CONFIG,
    NOW,
    SECRET,
    Open,
    Patch,
    fill,
    independent,
    open_log as open_log,
    root as root,
    segment,
)
from tests.govern.mutations import mutate


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
