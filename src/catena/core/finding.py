"""What is found in a text, and who finds: the protocol between moderation and those who know how.

Domains never import each other: moderation (`govern`) reaches the patterns of personal data (`data`) by name, as
`serve` reaches engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from catena.core.registry import Registry

Act = Literal["block", "mask", "flag"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something at text[start:end]."""

    start: int
    end: int
    kind: str
    """`words`, `classifier`, or a kind of personal data."""
    detail: str = ""
    """The entry of a list, or a score."""
    action: Act | None = None
    """What its own entry asks for; None: what the settings say of its kind."""


class Detector(Protocol):
    """Finds things in a text, also while the text is still being written."""

    def find(self, text: str) -> list[Finding]:
        """Return everything in the text, in order."""

    def pending(self, text: str) -> int:
        """Return the place from which on the text, with what may follow it, may become part of a finding.

        The findings that begin before it are final: `find` says of the text, whatever follows, the same ones.
        """

    def aligned(self, text: str, at: int) -> int:
        """Return the last place up to `at` before which the text may be forgotten: `at` itself for most."""


DETECTORS = Registry("detector", {"personal": "catena.data.personal:Personal"})
