"""What people and pipes see: sizes, durations, lines of progress, tables, bars on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from catena.cli.funnel import draw
from catena.cli.out import Out
from catena.cli.progress import Plain, Terminal, duration, progress_text, size, step_text
from catena.core.errors import NotFound
from catena.core.events import Events
from tests.cli.conftest import Catena


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (4.21, "4.2 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_progress_line_has_rate_time_left_and_loss() -> None:
    event = {"event": "progress", "step": "sft", "label": "train", "done": 50, "total": 200, "unit": "steps"}
    line = progress_text({**event, "rate": 2.5, "seconds_left": 60.0, "loss": 1.23456})
    assert line == "  sft: train 50 steps of 200 steps (25 %), 2.5 steps/s, 1 min 00 s left, loss 1.235"
    rows = progress_text({**event, "unit": "rows", "rate": 2500, "seconds_left": 60.0, "mb_per_s": 11.936})
    assert rows == "  sft: train 50 rows of 200 rows (25 %), 2,500 rows/s, 1 min 00 s left, 11.9 MB/s"
    unknown = progress_text({**event, "total": None, "rate": 0.0, "seconds_left": None})
    assert unknown == "  sft: train 50 steps, 0.0 steps/s"


def test_step_line_says_what_was_made() -> None:
    event = {"event": "step", "step": "sft", "status": "done", "seconds": 61, "ref": "m@1", "tags": ["best"]}
    assert step_text(event) == "✓ sft  done in 1 min 01 s  m@1  [best]"
    assert step_text({"event": "step", "step": "sft", "status": "cached", "seconds": 0.1}) == "= sft  cached"


def test_plain_progress_speaks_every_few_seconds_only() -> None:
    stream = io.StringIO()
    events = Events(listeners=[Plain(stream, every_s=3600)])
    progress = events.progress("read", 10)
    for _ in range(10):
        progress.advance()
    assert stream.getvalue() == ""
    eager = io.StringIO()
    Events(listeners=[Plain(eager, every_s=0)], step="a").progress("read", 10).finish()
    assert eager.getvalue().startswith("  a: read 0 rows of 10 rows (0 %)")


def test_terminal_takes_any_order_of_events_and_any_text() -> None:
    screen = Screen()
    with Terminal(screen) as shown:
        events = Events(listeners=[shown])
        events.emit("step", step="a", status="running", stage="s")
        events.bind(step="a").progress("read [/bold] 中文", None, "bytes").finish(loss=0.5)
        events.log("[red] is no markup")
        events.emit("metric", step="a", name="loss", value=1.0)
        events.emit("step", step="a", status="done", stage="s", seconds=1.0, ref="a@1", tags=[])
        events.emit("step", step="b", status="failed", stage="s", message="no")
        events.bind(step="c").progress("late", 0).finish()
    assert "✓ a  done in 1.0 s  a@1" in screen.getvalue()
    assert "[red] is no markup" in screen.getvalue()


def test_table_in_a_pipe_has_one_row_a_line_and_no_header() -> None:
    stream = io.StringIO()
    Out(stdout=stream).table(("a", "b"), [(1, "x\ty\nz"), (None, "中文")])
    assert stream.getvalue() == "1\tx y z\n\t中文\n"


def test_table_on_a_terminal_is_drawn_and_shows_brackets() -> None:
    screen = Screen()
    Out(stdout=screen).table(("name", "b"), [("[bold]x[/bold]", 1)])
    assert "name" in screen.getvalue()
    assert "[bold]x[/bold]" in screen.getvalue()


def test_quiet_leaves_results_and_errors() -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    out = Out(quiet=True, stdout=stdout, stderr=stderr)
    out.note("a note")
    with out.progress(events=True) as listeners:
        assert listeners == ()
    out.line("a result")
    out.error(NotFound("gone", hint="Look."))
    assert (stdout.getvalue(), stderr.getvalue()) == ("a result\n", "error: gone\nhint: Look.\n")


def test_json_is_not_mixed_with_notes() -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    out = Out(json=True, stdout=stdout, stderr=stderr)
    out.note("a note")
    with out.progress() as listeners:
        assert listeners == ()
    out.value({"文": 1})
    assert json.loads(stdout.getvalue()) == {"文": 1}
    assert stderr.getvalue() == ""


def test_funnel_is_drawn_as_well_formed_svg_with_escaped_text() -> None:
    row = {"ref": "a<b>@1", "stage": "data.filter", "rows_in": 10, "rows_out": 7, "rejected": {"<short>": 3}}
    root = ElementTree.fromstring(draw([row, {**row, "rows_in": 0, "rows_out": 0, "rejected": {}}]))
    texts = [element.text for element in root.iter() if element.text]
    assert "a<b>@1" in texts
    assert "<short> 3" in texts


def test_show_prints_every_part_for_people(filled: Catena, here: Path) -> None:
    line = ["show", "demo/loud", "--samples", "1", "--rejects", "--funnel", "--svg", "f.svg", "--events"]
    result = filled(*line)
    assert result.code == 0
    for part in ("4 document rows", "demo/loud@best", "example.shout", "NUMBER 0!", "demo/small@1", "event=step"):
        assert part in result.out
    ElementTree.parse(here / "f.svg")
    assert filled("show", "demo/loud", "--funnel").err == ""


def test_every_listing_prints_for_people(filled: Catena, recipe: Path, here: Path) -> None:
    assert filled("list").out.splitlines()[0].startswith("demo/small@1\tdataset\t")
    assert "example.shout" in filled("log").out
    assert "demo/small" in filled("lineage", "demo/loud").out
    assert filled("lineage", "demo/loud", "--svg", "l.svg").code == 0
    ElementTree.parse(here / "l.svg")
    assert filled("plan", str(recipe)).out.count("cached") == 2
    explained = filled("explain", "example.shout").out
    assert "Put at the end of each text." in explained
    assert filled("tag", "demo/small", "good").out.startswith("demo/small@good is demo/small")
    assert filled("fsck").err == "every file is as it was stored\n"
    assert filled("gc", "--dry-run").out.startswith("would free ")


def test_run_on_a_real_terminal_ends_with_a_line_for_each_step(here: Path, recipe: Path) -> None:
    main, child = pty.openpty()
    command = [sys.executable, "-m", "catena", "run", str(recipe), "--set", "small.rows=20000"]
    with subprocess.Popen(command, stdout=child, stderr=child) as process:
        os.close(child)
        seen = b""
        while True:
            try:
                block = os.read(main, 65536)
            except OSError:  # Linux says EIO when the last writer has gone
                break
            seen += block
    os.close(main)
    assert process.returncode == 0
    text = seen.decode()
    assert "✓ small" in text
    assert "✓ loud" in text
    assert "rows/s" in text
