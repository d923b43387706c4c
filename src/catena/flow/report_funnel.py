"""The funnel of the report: what each data step took in, let out, and kept back, with examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from catena.core.sample import Sample
from catena.core.types import DatasetVersion, Funnel, Run
from catena.hub.store import Store

REASONS_SHOWN = 4
EXAMPLES_SHOWN = 2
EXAMPLE_CHARACTERS = 160


@dataclass(frozen=True)
class Example:
    """A row that was kept back."""

    reason: str
    detail: str
    source: str
    text: str


@dataclass(frozen=True)
class FunnelStep:
    """One data step."""

    step: str
    stage: str
    shape: str
    rows_in: int
    rows_out: int
    rejected: Mapping[str, int]
    changed: Mapping[str, int]
    splits: Mapping[str, int]
    examples: tuple[Example, ...]

    @property
    def kept(self) -> float:
        """Share of the rows taken in that went on, between 0 and 1."""
        kept = self.rows_in - sum(self.rejected.values())
        return min(max(kept / self.rows_in, 0.0), 1.0) if self.rows_in else 0.0


def funnel_step(store: Store, run: Run, dataset: DatasetVersion) -> FunnelStep:
    """Return the funnel of a step with examples of its rejects, the most frequent reasons first."""
    found = run.profile.get("funnel")
    funnel = Funnel.model_validate(found) if found else dataset.funnel
    rejected = dict(sorted(funnel.rejected.items(), key=lambda item: (-item[1], item[0]))) if funnel else {}
    return FunnelStep(
        step=run.step,
        stage=run.stage,
        shape=dataset.shape,
        rows_in=funnel.rows_in if funnel else dataset.rows,
        rows_out=dataset.rows,
        rejected=rejected,
        changed=funnel.changed if funnel else {},
        splits={name: split.rows for name, split in dataset.splits.items()},
        examples=_examples(store, dataset, list(rejected)[:REASONS_SHOWN]),
    )


def _examples(store: Store, dataset: DatasetVersion, reasons: list[str]) -> tuple[Example, ...]:
    if not dataset.rejects or not reasons:
        return ()
    opened = store.open_dataset(dataset)
    found = [row for reason in reasons for row in islice(opened.rejects(reason), EXAMPLES_SHOWN)]
    return tuple(Example(reason, detail, sample.source, _excerpt(sample)) for sample, reason, detail in found)


def _excerpt(sample: Sample) -> str:
    text = " ".join(sample.text.split())
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1] + "…"
