"""Progress: how the events of a run look on a terminal, in a pipe, and to another program."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_EVERY_S = 5.0
MARKS = {"done": "✓", "cached": "=", "failed": "✗", "cancelled": "✗", "running": ">"}
KNOWN = frozenset({"at", "event", "step", "label", "done", "total", "unit", "rate", "seconds_left"})


def duration(seconds: float) -> str:
    """Return `4.2 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def size(count: float) -> str:
    """Return a number of bytes with its unit: `3.4 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def amount(count: float, unit: str) -> str:
    """Return a count with its unit, bytes in their larger units."""
    return size(count) if unit == "bytes" else f"{count:,.0f} {unit}"


def extras(event: Mapping[str, Any]) -> str:
    """Return what a stage shows beside its progress: `loss 2.31, 12,400 tokens/s, MFU 41.0 %, norm 0.8`."""
    shown = {name: value for name, value in event.items() if name not in KNOWN and isinstance(value, int | float)}
    return ", ".join(_extra(name, value) for name, value in shown.items())


def _extra(name: str, value: float) -> str:
    if name == "tokens_per_s":
        return f"{value:,.0f} tokens/s"
    if name == "mb_per_s":
        return f"{value:.1f} MB/s"
    return f"MFU {100 * value:.1f} %" if name == "mfu" else f"{name} {value:.4g}"


def rate_and_time_left(event: Mapping[str, Any]) -> str:
    """Return `310 rows/s, 12.0 s left, loss 2.31` of a progress event."""
    unit, rate = event.get("unit", ""), float(event.get("rate") or 0.0)
    parts = [f"{size(rate)}/s" if unit == "bytes" else f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s"]
    if event.get("seconds_left"):
        parts.append(f"{duration(event['seconds_left'])} left")
    return ", ".join(filter(None, [*parts, extras(event)]))


def progress_text(event: Mapping[str, Any]) -> str:
    """Return a progress event as one line."""
    done, total, unit = event["done"], event.get("total"), event.get("unit", "")
    of = f"{amount(done, unit)} of {amount(total, unit)} ({100 * done / total:.0f} %)" if total else amount(done, unit)
    return f"  {event.get('step', '')}: {event['label']} {of}, {rate_and_time_left(event)}".replace("  : ", "  ")


def step_text(event: Mapping[str, Any]) -> str:
    """Return the change of a step's status as one line."""
    status = event["status"]
    line = f"{MARKS.get(status, ' ')} {event.get('step', '')}  {status}"
    if event.get("seconds") is not None and status == "done":
        line += f" in {duration(event['seconds'])}"
    if event.get("ref"):
        line += f"  {event['ref']}"
    if event.get("tags"):
        line += f"  [{', '.join(event['tags'])}]"
    if event.get("note"):
        line += f"  {event['note']}"
    return line


class Writer(Protocol):
    """Something to write lines to, which flushes by itself."""

    def write(self, text: str, /) -> object:
        """Write a text."""
        ...


class EventLines:
    """Every event as a line of JSON."""

    def __init__(self, stream: Writer) -> None:
        self._stream = stream

    def __call__(self, event: dict[str, Any]) -> None:
        self._stream.write(json.dumps(event, ensure_ascii=False, default=str) + "\n")


class Plain:
    """Plain lines: each change of a step, its log, and progress every few seconds."""

    def __init__(self, stream: Writer, every_s: float = PLAIN_EVERY_S) -> None:
        self._stream, self._every_s = stream, every_s
        self._last = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        text = self._text(event)
        if text is not None:
            self._stream.write(text + "\n")

    def _text(self, event: dict[str, Any]) -> str | None:
        kind = event["event"]
        if kind == "step":
            return step_text(event)
        if kind == "log":
            return f"  {event['message']}"
        now = time.monotonic()
        if kind == "progress" and now - self._last >= self._every_s:
            self._last = now
            return progress_text(event)
        return None


class Terminal:
    """Bars with rate and time left for what goes on now; what has ended becomes a line above them."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[beside]}", markup=False, style="dim"),
            console=Console(file=stream),
            transient=True,
        )
        self._bars: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> Terminal:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        kind, step = event["event"], event.get("step", "")
        if kind == "progress":
            self._show(step, event)
        elif kind == "log":
            self._progress.console.print(f"  {event['message']}", style="dim", markup=False, highlight=False)
        elif kind == "step" and event["status"] == "running":
            self._bars[step, ""] = self._progress.add_task(step, total=None, count="", beside="")
        elif kind == "step":
            for key in [key for key in self._bars if key[0] == step]:
                self._progress.remove_task(self._bars.pop(key))
            self._progress.console.print(step_text(event), markup=False, highlight=False)

    def _show(self, step: str, event: dict[str, Any]) -> None:
        waiting = self._bars.pop((step, ""), None)  # the spinner of a step that has not said anything yet
        if waiting is not None:
            self._progress.remove_task(waiting)
        done, total, unit = event["done"], event.get("total"), event.get("unit", "")
        count = f"{amount(done, unit)}" + (f" of {amount(total, unit)}" if total else "")
        key = (step, event["label"])
        if key not in self._bars:
            name = ": ".join(filter(None, key))
            self._bars[key] = self._progress.add_task(name, total=total, count=count, beside="")
        beside = rate_and_time_left(event)
        self._progress.update(self._bars[key], completed=done, total=total, count=count, beside=beside)
