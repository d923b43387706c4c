"""Output: the only module that prints. Tables for people, plain lines in a pipe, JSON for machines.

Results go to standard output; notes and errors to standard error. With `--json` standard output holds JSON and nothing
else, errors included.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from catena.cli.progress import EventLines, Plain, Terminal
from catena.core.errors import CatenaError
from catena.core.events import Listener

BROKEN_PIPE = 141
"""The exit code that a shell reports for a program that SIGPIPE ended."""


class _Stream:
    """Standard output that ends the program quietly when nobody reads it any more (`catena list | head`)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write and flush."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            # What is still buffered must not fail again when Python flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise SystemExit(BROKEN_PIPE) from None


class Out:
    """Where a command's words go."""

    def __init__(
        self, *, json: bool = False, quiet: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.json, self.quiet = json, quiet
        self._file, self._stderr = stdout or sys.stdout, stderr or sys.stderr
        self._stdout = _Stream(self._file)
        self.terminal = self._file.isatty() and not json
        self._lines_of_events = False

    def line(self, text: str = "") -> None:
        """Print one line of the result."""
        self._stdout.write(text + "\n")

    def piece(self, text: str) -> None:
        """Print a piece of a line: an answer as it comes."""
        self._stdout.write(text)

    def note(self, text: str) -> None:
        """Say something beside the result; nothing with --quiet or --json."""
        if not self.quiet and not self.json:
            self._stderr.write(text + "\n")
            self._stderr.flush()

    def value(self, value: Any) -> None:
        """Print one JSON document, or, in a stream of events, one line."""
        indent = None if self._lines_of_events else 2
        self.line(json.dumps(value, ensure_ascii=False, indent=indent, default=str))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "nothing") -> None:
        """Print rows: a drawn table on a terminal, fields between tabs in a pipe."""
        if not rows:
            self.note(empty)
            return
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        if not self.terminal:
            for row in cells:
                self.line("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in cells:
            table.add_row(*map(Text, row))
        Console(file=self._file).print(table)

    def fields(self, values: Mapping[str, Any]) -> None:
        """Print names and values, one pair on a line; empty values are left out."""
        shown = {name: str(value) for name, value in values.items() if value not in (None, "", (), [], {})}
        width = max(map(len, shown), default=0)
        for name, value in shown.items():
            self.line(f"{name:<{width}}  {value}")

    @contextmanager
    def progress(self, *, events: bool = False) -> Iterator[tuple[Listener, ...]]:
        """Give listeners that show a run: bars, lines, or (`events`, with --json) a line of JSON for each event."""
        if self.json:
            self._lines_of_events = events
            yield (EventLines(self._stdout),) if events else ()
        elif self.quiet:
            yield ()
        elif self.terminal:
            with Terminal(self._file) as shown:
                yield (shown,)
        else:
            yield (Plain(self._stdout),)

    def error(self, error: CatenaError, trace: str = "") -> None:
        """Print an error: a sentence and a hint, or a JSON object. `trace` is shown to who debugs."""
        hint = error.hint or error.usual_hint
        if trace:
            self._stderr.write(trace)
        if self.json:
            body: dict[str, Any] = {
                "type": type(error).__name__,
                "message": error.message,
                "hint": hint,
                "exit_code": error.exit_code,
            }
            problems = getattr(error, "problems", ())
            body |= {"problems": list(problems)} if problems else {}
            status = "cancelled" if error.exit_code == 130 else "failed"
            self.value({**({"event": "end", "status": status} if self._lines_of_events else {}), "error": body})
            return
        self._stderr.write(f"error: {error.message}\nhint: {hint}\n")
