"""One process's part of a checkpoint: a safetensors file of pieces of global tensors, and where each piece lies.

A piece is found again by the name, shape and offset of its global tensor, so that a training may go on with another
number of processes, or divided in another way: whoever needs a region reads it from whichever parts hold some of it.

    weight [6, 4]       written by two           read by three
                        rank 0  rows 0-2         rank 0  rows 0-1   from part 0
                        rank 1  rows 3-5         rank 1  rows 2-3   from parts 0 and 1
                                                 rank 2  rows 4-5   from part 1
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from catena.core.errors import DataError

if TYPE_CHECKING:
    from catena.train.parallel.strategy import Piece

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Of the safetensors format (github.com/huggingface/safetensors, "Format")."""
HINT = "The model or its optimizer is not the one that was trained; empty the work folder to start over."


@dataclass(frozen=True, slots=True)
class Region:
    """A stored piece: which file holds it, under which key, and where it lies in its global tensor."""

    file: Path
    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors of the host as a safetensors file, synced to the disk; returns its SHA-256.

    Written by hand, because it runs beside the training: `safetensors.torch.save_file` copies every tensor first, and
    holds the interpreter's lock while it writes.
    """
    # The largest elements first: then each tensor begins at a multiple of its element.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        for block in (len(text).to_bytes(8, "little"), text):
            stream.write(block)
            digest.update(block)
        for name in names:
            held = _bytes(tensors[name])
            stream.write(held)
            digest.update(held)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:  # a buffer, which numpy's types do not say
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def keyed(pieces: Sequence[Piece]) -> dict[str, Piece]:
    """Give each piece that is written a key of its own: a process may hold several regions of one tensor."""
    found: dict[str, Piece] = {}
    for piece in pieces:
        if piece.writes:
            key = piece.name if piece.name not in found else f"{piece.name}@{','.join(map(str, piece.offset))}"
            found[key] = piece
    return found


def described(pieces: Mapping[str, Piece]) -> dict[str, Any]:
    """Return what the JSON beside a part says of its tensors."""
    return {
        key: {
            "name": piece.name,
            "shape": list(piece.shape),
            "offset": list(piece.offset),
            "size": list(piece.tensor.shape),
        }
        for key, piece in pieces.items()
    }


def stored_regions(folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Region]]:
    """Return the stored regions by the name of their global tensor, from what is said of each part's tensors."""
    found: dict[str, list[Region]] = {}
    for part, entries in parts.items():
        for key, entry in entries.items():
            region = Region(folder / part, key, tuple(entry["shape"]), tuple(entry["offset"]), tuple(entry["size"]))
            found.setdefault(entry["name"], []).append(region)
    return found


def check_fits(pieces: Sequence[Piece], stored: Mapping[str, Sequence[Region]], where: str, *, whole: bool) -> None:
    """Raise `DataError` where pieces of the training are not in a checkpoint, or have another shape there.

    With `whole` (one process holds everything) the checkpoint may hold no other weights either.
    """
    for piece in pieces:
        if piece.name not in stored:
            if piece.optional:
                continue
            raise DataError(f"{where} is of another architecture: it has no {piece.name}", hint=HINT)
        there = stored[piece.name][0].shape
        if there != piece.shape:
            raise DataError(
                f"{where} is of another architecture: {piece.name} is {list(there)} there, {list(piece.shape)} here",
                hint=HINT,
            )
    wanted = {piece.name for piece in pieces}
    extra = sorted(name for name in stored if name.startswith("model/") and name not in wanted)
    if extra and whole:
        raise DataError(f"{where} is of another architecture: it has {extra[0]}, which is not trained here", hint=HINT)


@torch.no_grad()
def fill(piece: Piece, stored: Sequence[Region]) -> None:
    """Copy a piece out of the stored regions that overlap it. Raises `DataError` where they leave a gap."""
    left = piece.tensor.numel()
    for region in stored:
        begin = [max(a, b) for a, b in zip(piece.offset, region.offset, strict=True)]
        end = [
            min(a + n, b + m)
            for a, n, b, m in zip(piece.offset, piece.tensor.shape, region.offset, region.size, strict=True)
        ]
        if any(a >= b for a, b in zip(begin, end, strict=True)):
            continue
        there = tuple(slice(a - o, b - o) for a, b, o in zip(begin, end, region.offset, strict=True))
        here = tuple(slice(a - o, b - o) for a, b, o in zip(begin, end, piece.offset, strict=True))
        with safe_open(region.file, framework="pt") as part:
            held = part.get_slice(region.key)[there] if there else part.get_tensor(region.key)
        piece.tensor[here].copy_(held)
        left -= math.prod(b - a for a, b in zip(begin, end, strict=True))
    if left:
        raise DataError(
            f"a checkpoint holds only a part of {piece.name}", hint="Use the one before it, or empty the work folder."
        )
