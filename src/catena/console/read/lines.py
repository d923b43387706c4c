"""Lines of JSON in a file, as Arrow reads them: in blocks, on all cores, one block ahead of what takes them apart."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

BLOCK = 16 << 20
"""Bytes that are read at once."""
SCHEMA = pa.schema(
    [
        ("event", pa.string()),
        ("step", pa.string()),
        ("name", pa.string()),
        ("value", pa.float64()),
        ("at_step", pa.int64()),
    ]
)
ODD = (b'"value": "', b"NaN", b"Infinity")
"""What stands in lines that Arrow would refuse, and their block with them."""
Spans = list[tuple[int, int]]
"""Where lines begin and end in a block."""


class Reader:
    """Reads one file, block by block."""

    def __init__(self) -> None:
        self._odd = False
        """Whether the last block had lines that Arrow refuses: the next one will have them too."""

    def read(self, stream: BinaryIO, offset: int, size: int) -> Iterator[tuple[bytes, pa.Table | None, Spans]]:
        """Yield blocks of whole lines of a file of `size` bytes, from an offset on.

        Each comes with its lines as a table of `SCHEMA`, and with those that are not in it, because Arrow would refuse
        them. Where the table is None, none is in one.
        """
        before: tuple[bytes, Future[tuple[pa.Table | None, Spans]]] | None = None
        with ThreadPoolExecutor(1) as pool:
            for block in _blocks(stream, offset, size):
                now = (block, pool.submit(self._parsed, block))
                if before is not None:
                    yield before[0], *before[1].result()
                before = now
            if before is not None:
                yield before[0], *before[1].result()

    def _parsed(self, block: bytes) -> tuple[pa.Table | None, Spans]:
        odd: Spans = []
        table = None if self._odd else _table(block, odd)
        if table is None:
            plain, odd = _without_odd(block)
            table = _table(plain, odd)
        self._odd = table is None or bool(odd)
        return table, odd


def _blocks(stream: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
    """Yield the whole lines of a file of so many bytes, from an offset on."""
    most = BLOCK
    while offset < size:
        stream.seek(offset)
        block = stream.read(most)
        end = block.rfind(b"\n") + 1
        if end:
            yield block[:end]
            offset, most = offset + end, BLOCK
        elif len(block) < most:  # the last line is being written
            return
        else:
            most *= 2


def _table(block: bytes, blank: Spans) -> pa.Table | None:
    """Return a block, but for its blank lines, as Arrow reads it, or None where it refuses it."""
    try:
        table = arrow_json.read_json(
            pa.BufferReader(block),
            read_options=arrow_json.ReadOptions(block_size=1 << 20),
            parse_options=arrow_json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == block.count(b"\n") - len(blank) else None


def _without_odd(block: bytes) -> tuple[bytes, Spans]:
    """Return a block in which the lines are blank that Arrow would refuse, and where these begin and end."""
    spans: set[tuple[int, int]] = set()
    for mark in ODD:
        found = block.find(mark)
        while found >= 0:
            end = block.index(b"\n", found) + 1
            spans.add((block.rfind(b"\n", 0, found) + 1, end))
            found = block.find(mark, end)
    if not spans:
        return block, []
    blanked, odd = bytearray(block), sorted(spans)
    for first, end in odd:
        blanked[first : end - 1] = b" " * (end - 1 - first)
    return bytes(blanked), odd


def coded(column: Any) -> tuple[list[str], np.ndarray]:
    """Return the distinct texts of a column, and for each row which of them it has; nothing is the empty text."""
    coded = column.fill_null("").dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def line_edges(block: bytes, without: Spans) -> tuple[np.ndarray, np.ndarray]:
    """Return where each line begins and ends, but for some."""
    ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + 1
    firsts = np.concatenate([[0], ends[:-1]])
    wanted = ~np.isin(firsts, [first for first, _ in without])
    return firsts[wanted], ends[wanted]
