"""A release under way: its model, its candidate's replicas, how far it is, and what a restart needs of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from catena.serve.gateway.config import ModelConfig
from catena.serve.gateway.pool import Pool
from catena.serve.releases.evidence import Cusum
from catena.serve.releases.plan import Release
from catena.serve.releases.shadow import Shadow
from catena.serve.releases.tags import Move

Phase = Literal["starting", "under way", "baking"]


@dataclass(eq=False)
class Active:
    """A release under way."""

    model: str
    candidate: str
    spec: ModelConfig
    release: Release
    pool: Pool
    phase: Phase = "starting"
    shadow: Shadow | None = None
    cusums: dict[str, Cusum] = field(default_factory=dict)
    old: Pool | None = None
    """While it bakes: the replicas before it, still warm."""
    old_spec: ModelConfig | None = None
    promoted: float = 0.0
    """When, by the clock on the wall: a restart goes on with it."""
    move: Move | None = None
    """What it did to a tag of the store."""
    again: float = 0.0
    """Not before this moment is tried again what the disk or the index did not let it do."""


def kept_of(one: Active) -> dict[str, Any]:
    """Return what a restart needs of a release."""
    kept: dict[str, Any] = {
        "id": one.release.id,
        "candidate": one.candidate,
        "release": one.release.config.model_dump(mode="json"),
        "step": one.release.step,
    }
    if one.phase == "baking" and one.old_spec is not None:
        # By its digest where it was named by the tag, for that stands on the candidate now.
        old = one.old_spec.model_copy(update={"model": one.move.before}) if one.move else one.old_spec
        usual = {name: cusum.usual for name, cusum in one.cusums.items()}
        kept |= {"old": old.model_dump(mode="json"), "usual": usual, "promoted": one.promoted}
        kept["move"] = asdict(one.move) if one.move else None
    return kept
