"""What was read of a run's events, kept beside them, so that the next process does not read a gigabyte of lines again.

    runs/<group>/events.points   digest | header | steps and values of each curve | where the other events stand

There are numbers in it and names of metrics; every other event stays where it is, and is read there. It is used only
where its digest is right and the events are the same file, as long as then or longer, with the same bytes at both ends
of what was read; else the events are read from their beginning.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from catena.hub.files import write_atomically

MARK = b"catena points 1\n"
DIGEST = hashlib.sha256().digest_size
COMPARED = 1 << 16
"""Bytes at each end of what was read that must be the same."""


@dataclass(frozen=True)
class Curve:
    """One metric of one step of a recipe."""

    step: str
    name: str
    steps: np.ndarray
    """int64, rising."""
    values: np.ndarray
    """float64."""
    broken: Sequence[int]
    """Steps at which the value was no finite number."""


@dataclass(frozen=True)
class Kept:
    """What a file of events has told up to a byte."""

    file: tuple[int, int]
    """Device and inode."""
    offset: int
    """Bytes that were read."""
    curves: Sequence[Curve]
    notes: np.ndarray
    """int64 [events, 2]: first byte and end of each line that is neither metric nor progress."""
    progress: np.ndarray
    """The same of the last progress of each step."""
    forgotten: int
    """Notes before these."""


def beside(events: Path) -> Path:
    """Return where what was read of a file of events is kept."""
    return events.with_suffix(".points")


def write(events: Path, kept: Kept) -> None:
    """Keep what was read of a file, by one rename, unless another has its place. Raises `OSError` where it cannot."""
    with events.open("rb") as stream:
        about = {**_identity(stream, kept.offset), "offset": kept.offset, "forgotten": kept.forgotten}
    if about["file"] != [*kept.file]:
        return
    about["curves"] = [[one.step, one.name, len(one.steps), list(one.broken)] for one in kept.curves]
    about["notes"], about["progress"] = len(kept.notes), len(kept.progress)
    header = orjson.dumps(about)
    arrays = [kept.notes, kept.progress, *(one.steps for one in kept.curves), *(one.values for one in kept.curves)]
    body = b"".join([len(header).to_bytes(8, "little"), header, *(array.tobytes() for array in arrays)])
    write_atomically(beside(events), MARK + hashlib.sha256(body).digest() + body)


def read(events: Path, stream: BinaryIO) -> Kept | None:
    """Return what was kept of a file that is open; None where there is nothing, or it is of another file or damaged."""
    try:
        data = memoryview(beside(events).read_bytes())
    except OSError:
        return None
    start = len(MARK) + DIGEST
    if data[: len(MARK)] != MARK or hashlib.sha256(data[start:]).digest() != data[len(MARK) : start]:
        return None
    first = start + 8 + int.from_bytes(data[start : start + 8], "little")
    about: dict[str, Any] = orjson.loads(data[start + 8 : first])
    offset = int(about["offset"])
    if os.fstat(stream.fileno()).st_size < offset or about | _identity(stream, offset) != about:
        return None
    numbers = iter(_cut(data[first:], about))
    notes, progress = next(numbers).view(np.int64).reshape(-1, 2), next(numbers).view(np.int64).reshape(-1, 2)
    steps = [next(numbers) for _ in about["curves"]]
    curves = [
        Curve(step, name, mine, next(numbers).view(np.float64), broken)
        for (step, name, _, broken), mine in zip(about["curves"], steps, strict=True)
    ]
    return Kept((about["file"][0], about["file"][1]), offset, curves, notes, progress, int(about["forgotten"]))


def _cut(data: memoryview, about: dict[str, Any]) -> list[np.ndarray]:
    """Return the arrays behind the header, each as int64."""
    sizes = [2 * about["notes"], 2 * about["progress"], *(2 * [size for _, _, size, _ in about["curves"]])]
    return np.split(np.frombuffer(data, dtype=np.int64), np.cumsum(sizes)[:-1])


def _identity(stream: BinaryIO, offset: int) -> dict[str, Any]:
    """Return what tells a file from another one: where it lies, and both ends of its first `offset` bytes."""
    status = os.fstat(stream.fileno())
    ends = []
    for begin in (0, max(0, offset - COMPARED)):
        stream.seek(begin)
        ends.append(stream.read(min(COMPARED, offset - begin)))
    return {"file": [status.st_dev, status.st_ino], "ends": hashlib.sha256(b"".join(ends)).hexdigest()}
