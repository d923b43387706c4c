"""Scorers: an answer and a reference in, a score out. Found by name (`SCORERS` in `catena.core.generate`)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any


def exact(answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
    """Return 1.0 if both are the same text; line breaks and repeated spaces do not count."""
    return float(_normal(answer) == _normal(reference))


def contains(answer: str, reference: str, metadata: Mapping[str, Any]) -> float:
    """Return 1.0 if the reference stands somewhere in the answer. An empty reference is in no answer."""
    wanted = _normal(reference)
    return float(bool(wanted) and wanted in _normal(answer))


def _normal(text: str) -> str:
    # NFC: an é typed as one character and as two is one answer. `split` knows the ideographic space too.
    return " ".join(unicodedata.normalize("NFC", text).split())
