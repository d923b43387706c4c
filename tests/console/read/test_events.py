"""Events of a run: read once, followed line by line, whatever a kill left in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catena.console.read import lines
from catena.console.read.events import Followed, first_event
from catena.core.events import Events


def test_what_was_written_is_read_and_what_comes_later_too(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = Events(path, step="base")
    events.log("hello")
    events.fact("device", "cpu")
    for step in range(5):
        events.metric("loss", 5.0 - step, step)
        events.metric("learning_rate", 0.1, step)
    events.metric("vocabulary", 512)
    events.emit("progress", label="train", done=5)

    followed = Followed(path)
    assert followed.update()
    assert not followed.update()
    assert list(followed.courses("base")) == ["learning_rate", "loss"]
    steps, values, broken = followed.points("base", "loss")
    assert (steps.tolist(), values.tolist(), broken) == ([0, 1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0, 1.0], [])
    assert [note["event"] for note in followed.notes()] == ["log", "fact"]
    assert followed.progress()["base"]["done"] == 5

    events.metric("loss", 0.5, 5)
    assert followed.update()
    assert followed.points("base", "loss")[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_blocks_are_read_one_ahead_and_taken_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK", 1000)
    path = tmp_path / "events.jsonl"
    events = Events(path, step="s")
    for step in range(200):
        events.metric("loss", float("nan") if step % 50 == 7 else step, step)
        events.metric("words", 1, step)
        if step % 40 == 3:
            events.log(f"note {step} " + "long " * step)
    followed = Followed(path)
    assert followed.update()
    steps, values, broken = followed.points("s", "loss")
    assert steps.tolist() == values.tolist() == [step for step in range(200) if step % 50 != 7]
    assert broken == [7, 57, 107, 157]
    assert len(followed.points("s", "words")[0]) == 200
    assert [note["message"].split()[1] for note in followed.notes()] == ["3", "43", "83", "123", "163"]
    assert not followed.update()


def test_what_fails_under_way_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK", 1000)
    path = tmp_path / "events.jsonl"
    for step in range(100):
        Events(path, step="s").metric("loss", step, step)
    followed, take, left = Followed(path), Followed._take, [3]

    def failing(self: Followed, *block: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise MemoryError
        take(self, *block)

    monkeypatch.setattr(Followed, "_take", failing)
    with pytest.raises(MemoryError):
        followed.update()
    assert followed.update()
    assert followed.points("s", "loss")[0].tolist() == list(range(100))


def test_a_half_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = json.dumps({"event": "metric", "step": "s", "name": "loss", "value": 1.5, "at_step": 3}) + "\n"
    path.write_text(line[:30])
    followed = Followed(path)
    assert not followed.update()
    with path.open("a") as stream:
        stream.write(line[30:])
    assert followed.update()
    assert followed.points("s", "loss")[1].tolist() == [1.5]


def test_torn_lines_and_numbers_that_are_none_lose_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = Events(path, step="s")
    events.metric("loss", 2.0, 1)
    with path.open("a") as stream:
        stream.write('{"at": 1, "event": "met\n')  # a kill in the middle of a line, and the next process after it
    events.metric("loss", float("nan"), 2)
    events.metric("loss", float("inf"), 3)
    events.metric("loss", 1.0, 4)
    followed = Followed(path)
    followed.update()
    steps, values, broken = followed.points("s", "loss")
    assert (steps.tolist(), values.tolist(), sorted(broken)) == ([1, 4], [2.0, 1.0], [2, 3])


def test_a_step_that_was_done_again_counts_the_last_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = Events(path, step="s")
    for step, value in ((1, 9.0), (2, 8.0), (3, 7.0), (2, 6.0), (3, 5.0), (4, 4.0)):
        events.metric("loss", value, step)
    followed = Followed(path)
    followed.update()
    assert followed.points("s", "loss")[1].tolist() == [9.0, 6.0, 5.0, 4.0]


def test_a_file_that_took_the_place_of_another_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    Events(path, step="s").metric("loss", 2.0, 1)
    followed = Followed(path)
    followed.update()
    other = tmp_path / "other"
    Events(other, step="s").metric("loss", 3.0, 7)
    other.rename(path)
    followed.update()
    assert followed.points("s", "loss")[0].tolist() == [7]


def test_fast_and_slow_reading_agree(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    plain, odd = tmp_path / "plain", tmp_path / "odd"
    for path in (plain, odd):
        events = Events(path, step="s")
        for step in range(300):
            events.metric("loss", float(random.integers(0, 8)) / 8, step)
            if path == odd and step % 100 == 50:
                with path.open("a") as stream:
                    stream.write("{broken\n")  # Arrow refuses the block: each line is read by itself
        random = np.random.default_rng(0)
    read = [Followed(path) for path in (plain, odd)]
    for followed in read:
        followed.update()
    one, other = (followed.points("s", "loss") for followed in read)
    assert one[0].tolist() == other[0].tolist() == list(range(300))
    assert one[1].tolist() == other[1].tolist()


def test_a_file_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    followed = Followed(tmp_path / "none.jsonl")
    assert not followed.update()
    assert followed.notes() == []
    assert first_event(tmp_path / "none.jsonl") == {}
