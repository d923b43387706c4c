"""Events are JSON lines; progress knows its rate and the time left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catena.core.events import Events, read_events


def test_lines_survive_a_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = Events(path).bind(step="a")
    events.metric("loss", 1.5, step=3)
    events.log("你好")
    with path.open("a") as stream:
        stream.write('{"event": "tor')
    first, second = read_events(path)
    assert (first["name"], first["value"], first["at_step"], first["step"]) == ("loss", 1.5, 3, "a")
    assert second["message"] == "你好"
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_progress_tells_rate_and_time_left_and_is_bounded() -> None:
    seen: list[dict[str, Any]] = []
    progress = Events(None, [seen.append]).progress("Rows", total=100_000)
    for _ in range(100_000):
        progress.advance()
    progress.finish(loss=2.0)
    assert seen[-1]["done"] == 100_000
    assert seen[-1]["seconds_left"] == 0
    assert seen[-1]["rate"] > 0
    assert seen[-1]["loss"] == 2.0
    assert len(seen) < 50
