"""A scorer for `evaluate.answers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def same_length(answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
    """Return 1.0 if both have the same number of characters."""
    return float(len(answer) == len(reference))
