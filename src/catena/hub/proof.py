"""Proof that bytes are gone: what still holds given rows, read from the files themselves and not through any version.

A search of the raw bytes alone proves little, for Lance compresses text. So every data file is searched twice: as it
is on disk, and decoded, with the rows that a later revision only marked as deleted. The same search before an erasure
says that it would have found them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as compute
from lance.file import LanceFileReader

from catena.core.events import Progress
from catena.hub.datasets import BATCH_ROWS

WINDOW = 48
"""Bytes of a distinctive piece of text."""
MOST_MARKERS = 32
DISTINCT = 16
"""Characters that an id needs to be told from other text by its bytes alone; shorter ones are sought by column."""


@dataclass
class Found:
    """What a search found."""

    files: int = 0
    bytes: int = 0
    ids: dict[str, list[str]] = field(default_factory=dict)
    """Row id to the files that hold the row, or one made from it."""
    mentions: set[str] = field(default_factory=set)
    """Files that mention an id somewhere: the note of a duplicate, say. That is no content of the row."""
    pieces: dict[str, list[str]] = field(default_factory=dict)
    """Piece of a row's text (as hexadecimal) to the files that hold it."""
    holders: set[str] = field(default_factory=set)
    """Ids of the rows that hold such a piece."""


def search(
    files: Iterable[Path], ids: frozenset[str], pieces: Iterable[bytes], progress: Progress | None = None
) -> Found:
    """Search files, raw and (`*.lance` data files) decoded, for row ids and for pieces of text."""
    found = Found()
    sought = {piece.hex(): piece for piece in pieces}
    wanted = pa.array(sorted(ids), pa.string())
    names = {name: name.encode() for name in sorted(ids) if len(name) >= DISTINCT}
    names = dict(list(names.items())[:MOST_MARKERS])
    for path in files:
        found.files += 1
        found.bytes += path.stat().st_size
        if _in_bytes(path, names):
            found.mentions.add(str(path))
        here = set(_in_bytes(path, sought))
        if path.suffix == ".lance" and path.parent.name == "data":
            for batch in decoded(path):
                for name in held_ids(batch, wanted):
                    found.ids.setdefault(name, []).append(str(path))
                pieces_here = _in_batch(batch, sought)
                here |= pieces_here
                found.holders |= _holders(batch, [sought[key] for key in pieces_here])
        for piece in here:
            found.pieces.setdefault(piece, []).append(str(path))
        if progress is not None:
            progress.advance(path.stat().st_size)
    return found


def data_files(folder: Path) -> list[Path]:
    """Return every file below a folder, links left out."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def decoded(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield all rows of a Lance data file, those that a revision has marked as deleted too."""
    reader = LanceFileReader(str(path), columns=columns)
    yield from reader.read_all(batch_size=BATCH_ROWS).to_batches()


def held_ids(batch: pa.RecordBatch, wanted: pa.Array) -> set[str]:
    """Return which of the wanted ids are a row's own or a parent's in a batch."""
    names = batch.schema.names
    columns = [batch["_id"]] if "_id" in names else []
    columns += [compute.list_flatten(batch["_parents"])] if "_parents" in names else []
    found: set[str] = set()
    for column in columns:
        found |= set(column.filter(compute.is_in(column, value_set=wanted.cast(column.type))).to_pylist())
    return found


def pieces_of(row: Mapping[str, Any]) -> list[bytes]:
    """Return up to three pieces of a row's longest text or bytes: beginning, middle and end. Short data has none."""
    texts = list(
        _texts({name: value for name, value in row.items() if not name.startswith("_") and name != "metadata"})
    )
    longest = max(texts, key=len, default=b"")
    if len(longest) < WINDOW // 2:
        return []
    middle = len(longest) // 2
    cuts = (longest[:WINDOW], longest[middle : middle + WINDOW], longest[-WINDOW:])
    return [piece for piece in dict.fromkeys(cuts) if len(piece) >= WINDOW // 2]


def _texts(value: Any) -> Iterator[bytes]:
    if isinstance(value, str):
        yield value.encode()
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _in_bytes(path: Path, sought: Mapping[str, bytes]) -> list[str]:
    if not sought or not path.stat().st_size:
        return []
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return [name for name, piece in sought.items() if mapped.find(piece) >= 0]


def _in_batch(batch: pa.RecordBatch, sought: Mapping[str, bytes]) -> set[str]:
    if not sought:
        return set()
    found: set[str] = set()
    for column in batch.columns:
        for buffer in column.buffers():
            if buffer is not None and buffer.size:
                whole = buffer.to_pybytes()
                found |= {name for name, piece in sought.items() if piece in whole}
    return found


def _holders(batch: pa.RecordBatch, pieces: list[bytes]) -> set[str]:
    """Return the ids of the rows in which one of the pieces is."""
    if not pieces or "_id" not in batch.schema.names:
        return set()
    rows = batch.to_pylist()
    return {row["_id"] for row in rows if any(piece in text for text in _texts(row) for piece in pieces)}
