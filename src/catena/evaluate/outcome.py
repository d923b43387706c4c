"""What a task gave: lines for people to look at, and the numbers that its scores are sums of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from catena.evaluate.measures import Array

Line = dict[str, Any]


@dataclass
class Outcome:
    """What one task gave: a line for each row, and evidence `[rows, k]` by measure, in the same order."""

    lines: list[Line]
    evidence: dict[str, Array]
    notes: dict[str, Any] = field(default_factory=dict)
    """Counts that a reader should know: answers that could not be read, that were cut."""
