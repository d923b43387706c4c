"""Evidence about what is learnt from users: consent that still stands, no personal data, drift looked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from catena.core.finding import DETECTORS
from catena.core.types import DatasetVersion
from catena.govern.audit.reading import Query, entries
from catena.govern.config import GovernConfig
from catena.govern.feedback.book import Book, book_path
from catena.hub.store import Store

MONTH = timedelta(days=31)
MOST_ROWS = 5000
"""Rows of a dataset that are looked through for personal data."""


def collected(store: Store) -> Iterator[tuple[str, DatasetVersion]]:
    """Yield (name@version, dataset) of the newest version of every dataset that was made of feedback."""
    newest = {row.name: row for row in store.index.versions()}
    for row in newest.values():
        artifact = store.index.artifact(row.digest)
        if isinstance(artifact, DatasetVersion) and "feedback" in artifact.profile:
            yield f"{row.name}@{row.version}", artifact


def consent(store: Store, config: GovernConfig) -> tuple[bool | None, Mapping[str, Any]]:
    """Tell whether every row that was collected from feedback stands under a consent that was not withdrawn."""
    found: dict[str, Any] = {}
    datasets = list(collected(store))
    if not datasets or not book_path(store.root).exists():
        return None, {"datasets made of feedback": len(datasets)}
    with Book(store.root, config.audit, config.feedback) as book:
        agreed = {one.trace for one in book.entries() if one.consent and not one.erased}
    for name, dataset in datasets:
        traces = [str(one.metadata.get("trace")) for one in store.open_dataset(dataset).samples()]
        without = [trace for trace in traces if trace not in agreed]
        rejected = dict(dataset.funnel.rejected) if dataset.funnel else {}
        found[name] = {
            "rows": len(traces),
            "consent withdrawn or erased since": without[:20],
            "kept back for want of consent": rejected.get("no_consent", 0),
        }
    return not any(one["consent withdrawn or erased since"] for one in found.values()), found


def masked(store: Store, config: GovernConfig) -> tuple[bool | None, Mapping[str, Any]]:
    """Look for personal data in what was collected from feedback, with the detector of moderation."""
    datasets = list(collected(store))
    if not datasets:
        return None, {"datasets made of feedback": 0}
    detector = DETECTORS.load("personal")()
    found: dict[str, Any] = {}
    for name, dataset in datasets:
        rows = list(islice(store.open_dataset(dataset).samples(), MOST_ROWS))
        holding = {one.id: [finding.kind for finding in detector.find(one.text)] for one in rows}
        holding = {id: kinds for id, kinds in holding.items() if kinds}
        changed = dict(dataset.funnel.changed) if dataset.funnel else {}
        found[name] = {
            "rows looked through": len(rows),
            "with personal data": holding,
            "masked when collected": changed,
        }
    return not any(one["with personal data"] for one in found.values()), found


def drift_watched(store: Store, config: GovernConfig, now: datetime) -> tuple[bool | None, Mapping[str, Any]]:
    """Tell whether drift was looked for within a month, by the audit."""
    found = [
        one
        for one in entries(store.root, config.audit, Query(kind="act", text="drift.report"))
        if one.get("act") == "drift.report"
    ]
    if not found:
        return None, {"drift reports": 0}
    last = found[-1]
    told = {
        "drift reports": len(found),
        "last": last["time"][:19],
        "verdict": last.get("verdict"),
        "drifted": last.get("drifted"),
    }
    return now - datetime.fromisoformat(last["time"]) <= MONTH, told
