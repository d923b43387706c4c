"""What was changed in the audit is found, and a writer does not go on over it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from catena.core.errors import IntegrityError
from catena.govern.audit.checkpoints import SLOT
from catena.govern.audit.log import Log
from catena.govern.audit.reading import entries
from catena.govern.audit.record import OVERHEAD, frames
from catena.govern.audit.verify import verify
from tests.govern.logs import (
    CONFIG,
    Open,
    fill,
    independent,
    open_log as open_log,
    root as root,
    segment,
)
from tests.govern.mutations import KINDS, mutate


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
    assert independent(root) == 1


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
