"""The spool of a crawl: what was fetched, on disk as soon as it is there, so that a kill loses nothing.

    job.json          what is crawled, and how
    known.jsonl       pages of the version before, with what to ask the server whether they changed
    journal.jsonl     one line for each address that is done with
    bodies/<sha256>   bodies, by content
    done.json         written last

A body is written before its line. Parent and child both read here; only the child writes the journal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from catena.core.digest import sha256
from catena.hub.files import write_atomically

Outcome = Literal["page", "not_modified", "redirect", "reject"]
# Reasons that may be gone tomorrow: a crawl that goes on asks again.
PASSING = frozenset({"timeout", "unreachable", "incomplete", "failed"})


@dataclass(frozen=True, slots=True)
class Record:
    """How one address ended."""

    url: str
    outcome: Outcome
    depth: int = 0
    status: int = 0
    """Of HTTP; 0 where no answer came."""
    reason: str = ""
    detail: str = ""
    sha256: str = ""
    size: int = 0
    """Bytes of the body that came over the wire, decompressed; 0 for a page that had not changed."""
    media_type: str = ""
    charset: str = ""
    etag: str = ""
    last_modified: str = ""
    location: str = ""
    links: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Record:
        """Read one line of a journal."""
        names = {field.name for field in fields(cls)}
        return cls(**{**{key: values[key] for key in values if key in names}, "links": tuple(values.get("links", ()))})


class Spool:
    """The folder of one crawl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bodies = folder / "bodies"
        self._journal = folder / "journal.jsonl"

    def begin(self, job: dict[str, Any], known: list[Record]) -> None:
        """Make the folder ready; `known` are rows of the version before whose bodies are in the spool."""
        self._bodies.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in known)
        write_atomically(self.folder / "known.jsonl", lines.encode())
        write_atomically(self.folder / "job.json", json.dumps(job).encode())

    def job(self) -> dict[str, Any] | None:
        """Return the job that the folder was made for, or None for a new one."""
        path = self.folder / "job.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    def known(self) -> dict[str, Record]:
        """Return the pages of the version before, by address."""
        return {record.url: record for record in _read_lines(self.folder / "known.jsonl")}

    def records(self) -> dict[str, Record]:
        """Return every address that is done with; a last line cut short and bodies that are not whole do not count."""
        return {record.url: record for record in _read_lines(self._journal) if self._sound(record)}

    def settled(self) -> dict[str, Record]:
        """Return the addresses that a crawl which goes on does not ask again: those that did not fail in passing."""
        return {url: record for url, record in self.records().items() if record.reason not in PASSING}

    def _sound(self, record: Record) -> bool:
        if record.outcome not in ("page", "not_modified"):
            return True
        path = self._bodies / record.sha256
        return path.exists() and sha256(path.read_bytes()) == record.sha256

    def append(self, record: Record) -> None:
        """Add a finished address."""
        with self._journal.open("ab+") as stream:
            if stream.tell() and not _ends_a_line(self._journal):
                stream.write(b"\n")
            stream.write(json.dumps(asdict(record)).encode() + b"\n")

    def put_body(self, body: bytes) -> str:
        """Keep a body; returns its SHA-256."""
        digest = sha256(body)
        path = self._bodies / digest
        if not path.exists():
            part = path.with_suffix(".part")
            part.write_bytes(body)
            part.replace(path)
        return digest

    def body(self, digest: str) -> bytes:
        """Return a body."""
        return (self._bodies / digest).read_bytes()

    def has_body(self, digest: str) -> bool:
        """Tell whether a body is here."""
        return bool(digest) and (self._bodies / digest).exists()

    def finish(self, left: int, seen: Container[str] | None = None) -> None:
        """Say that the crawl is complete, and how many known addresses `max_pages` left out.

        Of the journal stays what was `seen`: an earlier try, whose failures hid links, may have gone other ways.
        """
        if seen is not None:
            kept = {record.url: record for record in _read_lines(self._journal) if record.url in seen}
            lines = "".join(json.dumps(asdict(record)) + "\n" for record in kept.values())
            write_atomically(self._journal, lines.encode())
        write_atomically(self.folder / "done.json", json.dumps({"left": left}).encode())

    def left(self) -> int | None:
        """Return what `finish` was given, or None while the crawl is not complete."""
        path = self.folder / "done.json"
        return int(json.loads(path.read_text())["left"]) if path.exists() else None

    def mend(self) -> None:
        """Take the crawl for incomplete where a body is missing that the journal speaks of."""
        if self.left() is not None and {record.url for record in _read_lines(self._journal)} != self.records().keys():
            (self.folder / "done.json").unlink()

    def discard(self) -> None:
        """Remove everything: first what makes the folder look complete, then what makes it look like one to go on in.

        A kill on the way leaves either nothing that is taken up again, or something from which no body is missing.
        """
        for name in ("done.json", "job.json"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"


def _read_lines(path: Path) -> Iterator[Record]:
    if not path.exists():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                yield Record.from_json(json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
                continue  # the line that a kill cut short: its page is asked again
