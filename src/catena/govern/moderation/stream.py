"""Deciding about a text, whole or piece by piece: what leaves, what is replaced, where it ends.

    push(piece) -> buffer -> find, pending -> hold -> findings before it decided -> text that may leave
    |......context......|..left..|....held....|
                        released hold         end

What has left never takes part in a finding that comes later, and how the text was cut does not change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from catena.core.finding import Act, Detector, Finding

CONTEXT = 512
"""Characters that have left and are still looked at, for what stands before a word decides whether it is one."""
SLACK = 128
"""So many more before they are forgotten: to cut a text costs too."""
STEP = 16
"""New characters until it is looked again: each look costs, and what is new is mostly held back anyway."""
Decide = Callable[[Finding], Act]
WEIGHT: dict[Act, int] = {"flag": 0, "mask": 1, "block": 2}


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done about a finding."""

    finding: Finding
    action: Act
    text: str
    """The text that it is about."""


@dataclass(slots=True)
class Outcome:
    """What a piece led to."""

    text: str = ""
    """What may leave."""
    decisions: list[Decision] = field(default_factory=list)
    blocked: bool = False
    """Nothing more will leave."""
    taken: int = 0
    """Characters that are decided with this."""
    changed: bool = False
    """Whether they do not leave as they came."""


class Stream:
    """One text that is being written."""

    def __init__(self, detectors: Sequence[Detector], decide: Decide) -> None:
        self._detectors, self._decide = detectors, decide
        self._buffer = ""
        self._released = 0
        self._seen = 0
        self.blocked = False

    @property
    def held(self) -> int:
        """How many characters have come and not left."""
        return len(self._buffer) - self._released

    def push(self, piece: str, *, end: bool = False) -> Outcome:
        """Take a piece, and give what may leave; `end` when nothing follows."""
        if self.blocked:
            return Outcome(blocked=True)
        self._buffer += piece
        if not end and len(self._buffer) - self._seen < STEP:
            return Outcome()
        self._seen = len(self._buffer)
        findings = sorted(
            (one for detector in self._detectors for one in detector.find(self._buffer) if one.end > self._released),
            key=lambda one: (one.start, -one.end),
        )
        hold = len(self._buffer) if end else self._hold(findings)
        outcome = self._settle([one for one in findings if one.end <= hold], hold)
        self._trim()
        return outcome

    def _hold(self, findings: Sequence[Finding]) -> int:
        """Return up to where everything is decided: no finding may begin before it and end behind."""
        hold = min((detector.pending(self._buffer) for detector in self._detectors), default=len(self._buffer))
        for one in reversed(findings):
            if one.start < hold < one.end:
                hold = one.start
        return max(hold, self._released)

    def _settle(self, findings: Sequence[Finding], hold: int) -> Outcome:
        outcome = Outcome()
        parts: list[str] = []
        at = self._released
        for group in _overlapping(findings):
            start, end = max(group[0].start, self._released), max(one.end for one in group)
            acts = [(one, self._decide(one)) for one in group]
            outcome.decisions += [Decision(one, act, self._buffer[one.start : one.end]) for one, act in acts]
            worst, act = max(acts, key=lambda pair: WEIGHT[pair[1]])
            if act == "flag":
                continue
            parts.append(self._buffer[at:start])
            at = end
            if act == "block":
                self.blocked = outcome.blocked = True
                break
            parts.append(masked(worst))
        outcome.changed = bool(parts) or self.blocked
        if not self.blocked:
            parts.append(self._buffer[at:hold])
        outcome.text = "".join(parts)
        outcome.taken = hold - self._released
        self._released = hold
        return outcome

    def _trim(self) -> None:
        cut = self._released - CONTEXT
        if cut <= SLACK:
            return
        cut = min(detector.aligned(self._buffer, cut) for detector in self._detectors) if self._detectors else cut
        if cut > 0:
            self._buffer = self._buffer[cut:]
            self._released, self._seen = self._released - cut, self._seen - cut


def masked(finding: Finding) -> str:
    """Return what stands in a finding's place."""
    return "***" if finding.kind == "words" else f"[{finding.kind.upper()}]"


def _overlapping(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Return findings in groups that share text."""
    groups: list[list[Finding]] = []
    end = -1
    for one in findings:
        if groups and one.start < end:
            groups[-1].append(one)
        else:
            groups.append([one])
        end = max(end, one.end)
    return groups
