"""A small classifier of texts: hashed character n-grams and one weight each. numpy alone, some microseconds a sentence.

    text -> plain letters (`fold.py`) -> n-grams of 1 to `longest` characters -> hashes -> distinct columns
         -> (sum of their weights / root of their number + bias) -> logistic -> probability

Characters and not words: Chinese has no spaces, and whoever writes a word in another way writes most n-grams as before.
A long text is judged piece by piece, each piece with what stands before it: so the end of a text is judged like the end
of a stream, and a stream may leave sentence by sentence.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catena.core.errors import DataError
from catena.core.finding import Finding
from catena.govern.moderation.fold import plain_form

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FORMAT = 1
SENTENCE = re.compile(r"[.!?。！？…；;\n]+[\s\"'”’」』)]*")
LONGEST_PIECE = 160
"""A sentence is judged after so many characters, ended or not."""
WINDOW = 240
"""Characters that a judgement looks at: the piece, and before it."""
SPACES = re.compile(r"\s+")
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5, 0xD6E8FEB86659FD93)


@dataclass(frozen=True, slots=True)
class Shape:
    """How texts become columns."""

    longest: int = 4
    bits: int = 18


def columns(text: str, shape: Shape) -> npt.NDArray[np.int32]:
    """Return the distinct columns of a text, sorted."""
    import numpy as np

    plain = f" {SPACES.sub(' ', plain_form(text)).strip()} "
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    made = []
    hashes = np.zeros(len(codes), dtype=np.uint64)
    for size in range(1, shape.longest + 1):
        if len(codes) < size:
            break
        hashes = hashes[: len(codes) - size + 1] * np.uint64(MULTIPLIERS[4]) + codes[size - 1 :] * np.uint64(
            MULTIPLIERS[(size - 1) % 4]
        )
        mixed = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(MULTIPLIERS[0]) + np.uint64(size)
        made.append((mixed >> np.uint64(64 - shape.bits)).astype(np.int32))
    found = np.concatenate(made)
    found.sort()  # several times as fast as numpy's unique, which hashes
    return found[np.concatenate(([True], found[1:] != found[:-1]))]


class Filter:
    """A trained classifier; also the detector `classifier`."""

    def __init__(self, weights: npt.NDArray[np.float32], bias: float, threshold: float, shape: Shape) -> None:
        self.weights, self.bias, self.threshold, self.shape = weights, bias, threshold, shape
        self.score = lru_cache(512)(self._score)  # a stream asks about the same pieces again and again
        """Return the probability that a text is bad."""

    def _score(self, text: str) -> float:
        import numpy as np

        found = columns(text, self.shape)
        value = float(self.weights[found].sum()) / max(len(found), 1) ** 0.5 + self.bias
        return float(1 / (1 + np.exp(-np.clip(value, -30, 30))))

    def find(self, text: str) -> list[Finding]:
        """Return the pieces of a text whose window is bad."""
        found = []
        for start, end in pieces(text):
            score = self.score(text[max(0, end - WINDOW) : end])
            if score >= self.threshold:
                found.append(Finding(start, end, "classifier", f"{score:.3f}"))
        return found

    def pending(self, text: str) -> int:
        """Return where the last piece begins: one that is not followed by anything may still go on."""
        last = 0
        for start, _ in pieces(text):
            last = start
        return last

    def aligned(self, text: str, at: int) -> int:
        """Return the beginning of the piece that a place is in: only there a text may be cut without other pieces."""
        return max((start for start, _ in pieces(text) if start <= at), default=0)

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write `weights.npy` and `filter.json`."""
        import numpy as np

        np.save(folder / "weights.npy", self.weights.astype(np.float16))
        told = {"format": FORMAT, "bias": self.bias, "threshold": self.threshold, **asdict(self.shape), **facts}
        (folder / "filter.json").write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_filter(folder: Path, threshold: float | None = None) -> Filter:
    """Read a stored filter; raises `DataError` for a folder that holds none."""
    import numpy as np

    try:
        told = json.loads((folder / "filter.json").read_text(encoding="utf-8"))
        weights = np.load(folder / "weights.npy", allow_pickle=False).astype(np.float32)
        shape = Shape(int(told["longest"]), int(told["bits"]))
        if told["format"] != FORMAT or weights.shape != (1 << shape.bits,):
            raise ValueError("another format")
        return Filter(weights, float(told["bias"]), threshold or float(told["threshold"]), shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} holds no text filter: {error}", hint="Train one: catena run recipes/moderation.yaml"
        ) from error


def pieces(text: str) -> list[tuple[int, int]]:
    """Return where the pieces of a text begin and end: sentences, and parts of very long ones."""
    found: list[tuple[int, int]] = []
    start = 0
    for end in (*(match.end() for match in SENTENCE.finditer(text)), len(text)):
        while end - start > LONGEST_PIECE:
            found.append((start, start + LONGEST_PIECE))
            start += LONGEST_PIECE
        if end > start:
            found.append((start, end))
            start = end
    return found
