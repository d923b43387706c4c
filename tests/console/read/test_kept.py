"""What was read of a run's events is kept beside them: a later process reads the rest, and is never misled by it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catena.console.read import events as module
from catena.console.read.events import Followed, Shelf
from catena.console.read.kept import beside
from catena.core.events import Events

KEEP_FROM = 20_000
PROGRAM = """
import sys
from pathlib import Path
from catena.console.read import events
from catena.core.events import Events
events.KEEP_FROM = 20_000
path, name, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
written = Events(path, step=name)
for turn in range(turns):
    for step in range(100):
        written.metric("loss", turn + step / 100, turn * 100 + step)
    followed = events.Followed(path)
    followed.update()
    followed.keep()
"""


@pytest.fixture(autouse=True)
def keep_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_FROM", KEEP_FROM)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of lines each block had that was parsed."""
    sizes: list[int] = []
    take = Followed._take

    def counted(self: Followed, block: bytes, *read: Any) -> None:
        sizes.append(len(block))
        take(self, block, *read)

    monkeypatch.setattr(Followed, "_take", counted)
    return sizes


def train(path: Path, first: int, count: int) -> None:
    """Write what a training writes, odd things among it."""
    events = Events(path, step="base")
    events.log(f"from {first} on, 从这里开始")
    events.fact("device", "cpu")
    for step in range(first, first + count):
        events.metric("loss", float("nan") if step % 97 == 5 else 5.0 / (1 + step), step)
        events.metric("learning_rate", 0.1, step)
    events.emit("progress", label="train", done=first + count)


def read(path: Path) -> Followed:
    followed = Followed(path)
    followed.update()
    return followed


def told(followed: Followed) -> dict[str, Any]:
    """Everything that can be asked of it."""
    points = {name: followed.points("base", name) for name in followed.courses("base")}
    return {
        "points": {name: (steps.tolist(), values.tolist(), broken) for name, (steps, values, broken) in points.items()},
        "notes": followed.notes(),
        "progress": followed.progress(),
        "offset": followed.offset,
    }


def test_a_later_process_reads_only_what_has_come_since(tmp_path: Path, parsed: list[int]) -> None:
    path = tmp_path / "events.jsonl"
    train(path, 0, 400)
    first = read(path)
    first.keep()
    assert not first.due
    size = path.stat().st_size
    parsed.clear()
    assert told(read(path)) == told(first)
    assert parsed == []
    train(path, 400, 50)
    later = read(path)
    assert sum(parsed) == path.stat().st_size - size
    beside(path).unlink()
    assert told(later) == told(read(path))
    assert [note["event"] for note in later.notes()] == ["log", "fact", "log", "fact"]


def test_the_shelf_keeps_and_writes_again_only_when_there_is_much_more(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    train(path, 0, 400)
    followed = Shelf().follow(path)
    late = time.monotonic() + 30
    while not beside(path).exists() and time.monotonic() < late:  # beside whoever looks
        time.sleep(0.01)
    before = beside(path).stat()
    train(path, 400, 5)
    assert followed.update()
    assert not followed.due
    followed.keep()
    assert beside(path).stat().st_ino == before.st_ino
    train(path, 405, 400)
    followed.update()
    assert followed.due
    followed.keep()
    assert beside(path).stat().st_size > before.st_size


def test_small_files_are_kept_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    train(path, 0, 10)
    Shelf().follow(path).keep()
    assert not beside(path).exists()


def rename(path: Path, other: Path) -> None:
    other.rename(path)


def in_place(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("put", [rename, in_place])
def test_another_file_in_its_place_is_read_from_its_beginning(
    tmp_path: Path, put: Callable[[Path, Path], None], parsed: list[int]
) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other.jsonl"
    train(path, 0, 400)
    read(path).keep()
    train(other, 7, 500)
    put(path, other)
    parsed.clear()
    found = read(path)
    assert sum(parsed) == path.stat().st_size
    assert found.points("base", "learning_rate")[0].tolist() == list(range(7, 507))


def test_what_was_read_of_a_file_that_is_gone_is_not_kept_for_the_next_one(tmp_path: Path) -> None:
    path, other = tmp_path / "events.jsonl", tmp_path / "other.jsonl"
    train(path, 0, 400)
    followed = read(path)
    train(other, 7, 500)
    other.rename(path)
    followed.keep()
    assert not beside(path).exists()


def test_a_damaged_copy_is_never_taken(tmp_path: Path, parsed: list[int]) -> None:
    path = tmp_path / "events.jsonl"
    train(path, 0, 400)
    first = read(path)
    first.keep()
    whole, wanted = beside(path).read_bytes(), told(first)
    damaged = [whole[:cut] for cut in (0, 5, 40, 60, 400, len(whole) - 1)]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), len(whole) // 40)]
    damaged += [whole + b"more", b"\0" * len(whole)]
    for data in damaged:
        beside(path).write_bytes(data)
        parsed.clear()
        assert told(read(path)) == wanted
        assert sum(parsed) == path.stat().st_size
    beside(path).write_bytes(whole)
    parsed.clear()
    assert told(read(path)) == wanted
    assert parsed == []


def test_where_nothing_can_be_written_the_page_is_still_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    train(path, 0, 400)
    beside(path).mkdir()
    first = read(path)
    first.keep()
    assert told(read(path)) == told(first)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["events.jsonl", "events.points"]


def test_two_processes_that_keep_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    words = [sys.executable, "-c", PROGRAM, str(path)]
    programs = [subprocess.Popen([*words, name, "30"]) for name in ("one", "other")]
    assert [program.wait(60) for program in programs] == [0, 0]
    followed = read(path)
    assert 0 < json.loads(header(beside(path)))["offset"] <= path.stat().st_size
    for name in ("one", "other"):
        steps, values, _ = followed.points(name, "loss")
        assert steps.tolist() == list(range(3000))
        assert values.tolist() == [turn + step / 100 for turn in range(30) for step in range(100)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["events.jsonl", "events.points"]


def header(path: Path) -> bytes:
    """The header of a kept file: behind its mark and digest, with its length before it."""
    data = path.read_bytes()[16 + 32 :]
    return data[8 : 8 + int.from_bytes(data[:8], "little")]
