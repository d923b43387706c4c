"""What `catena show` gathers about a stored thing, and how it looks on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from catena.cli.progress import duration, size
from catena.cli.views import facts, interval
from catena.core.errors import UsageError
from catena.core.events import read_events
from catena.core.sample import Sample
from catena.core.types import ARTIFACT, Artifact, DatasetVersion, Report
from catena.hub.funnel import funnel_of, run_of

if TYPE_CHECKING:
    from catena.cli.out import Out
    from catena.hub.store import Store

TEXT_SHOWN = 400
"""Characters of a sample's text that people are shown; JSON has all of them."""
COUNTS_SHOWN = 12
"""Entries of a count that people are shown."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What was asked for beyond the record."""

    samples: int = 0
    rejects: bool = False
    reason: str | None = None
    funnel: bool = False
    events: bool = False
    limit: int = 20
    """How many rejects and events at most."""


def record_of(store: Store, ref: str, parts: Parts) -> dict[str, Any]:
    """Return `ref`, `names`, `tags`, `artifact` (every field), `run`, `scores`, and the parts that were asked for."""
    artifact = store.resolve(ref)
    names = [f"{row.name}@{row.version}" for row in store.index.versions(digest=artifact.digest)]
    run = run_of(store, artifact, ref)
    runs = [] if run is None else [run]
    record: dict[str, Any] = {
        "ref": ref,
        "names": names,
        "tags": [f"{name}@{tag}" for (name, tag), digest in store.index.tags().items() if digest == artifact.digest],
        "artifact": artifact.model_dump(mode="json"),
        "run": {**runs[0].model_dump(mode="json"), "seconds": runs[0].seconds} if runs else None,
        "scores": scores_of(store, artifact),
    }
    if parts.samples or parts.rejects:
        record.update(_rows(store, artifact, parts))
    if parts.funnel:
        record["funnel"] = funnel_of(store, artifact, ref)
    if parts.events:
        found = read_events(store.group_folder(runs[0].group) / "events.jsonl") if runs else iter(())
        record["events"] = [event for event in found if event.get("step") == runs[0].step][-parts.limit :]
    return record


def scores_of(store: Store, artifact: Artifact) -> list[dict[str, Any]]:
    """Return the reports about an artifact, newest last: `report` (digest), `suite`, `scores`."""
    return [
        {
            "report": found.digest,
            "suite": found.suite,
            "scores": {name: score.model_dump() for name, score in found.scores.items()},
        }
        for found in store.index.all_artifacts()
        if isinstance(found, Report) and found.subject == artifact.digest
    ]


def _rows(store: Store, artifact: Artifact, parts: Parts) -> dict[str, Any]:
    if not isinstance(artifact, DatasetVersion):
        raise UsageError(f"a {artifact.kind} has no samples", hint="--samples and --rejects are for datasets.")
    opened = store.open_dataset(artifact)
    found: dict[str, Any] = {}
    if parts.samples:
        found["samples"] = [sample_record(sample) for sample in islice(opened.samples(), parts.samples)]
    if parts.rejects:
        found["rejects"] = [
            {**sample_record(sample), "reason": reason, "detail": detail}
            for sample, reason, detail in islice(opened.rejects(parts.reason), parts.limit)
        ]
    return found


def sample_record(sample: Sample) -> dict[str, Any]:
    """Return a sample as JSON; bytes are told by their number."""
    data = {key: f"<{len(value)} bytes>" if isinstance(value, bytes) else value for key, value in sample.data.items()}
    return {
        "id": sample.id,
        "source": sample.source,
        "license": sample.license,
        "parents": list(sample.parents),
        "split": sample.split,
        "metadata": dict(sample.metadata),
        "data": data,
    }


def print_record(out: Out, record: Mapping[str, Any]) -> None:
    """Print a record for a person."""
    artifact = ARTIFACT.validate_python(record["artifact"])
    splits = record["artifact"].get("splits", {})
    bytes_held = sum(file.size for file in artifact.files)
    out.fields(
        {
            "digest": artifact.digest,
            "kind": artifact.kind,
            "what": facts(artifact),
            "names": ", ".join(record["names"]),
            "tags": ", ".join(record["tags"]),
            "created": artifact.created and artifact.created.isoformat(sep=" ", timespec="seconds"),
            "licence": artifact.license,
            **_profile(record["artifact"].get("profile", {})),
            "splits": ", ".join(f"{name} {split['rows']:,}" for name, split in splits.items()),
            "files": f"{len(artifact.files)} ({size(bytes_held)})" if artifact.files else "",
            "parents": ", ".join(digest[:12] for digest in artifact.parents),
            **_run_fields(record["run"]),
        }
    )
    if isinstance(artifact, Report):
        scores = {name: score.model_dump() for name, score in artifact.scores.items()}
        _print_scores(out, [{"suite": artifact.suite, "scores": scores}])
    _print_scores(out, record["scores"])
    for part in ("samples", "rejects", "events"):
        if record.get(part) == []:
            out.note(f"no {part}")
    for row in record.get("funnel", ()):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in {**row["rejected"], **row["changed"]}.items())
        out.line(f"{row['rows_in']:>9,} -> {row['rows_out']:>9,}  {row['ref']}  {reasons}".rstrip())
    for sample in record.get("samples", ()):
        out.line(f"\n[{sample['id']}] {sample['source']} {sample['split'] or ''}".rstrip())
        out.line(_shortened(sample))
    for sample in record.get("rejects", ()):
        out.line(f"\n[{sample['id']}] {sample['source']}  rejected: {sample['reason']} {sample['detail']}".rstrip())
        out.line(_shortened(sample))
    for event in record.get("events", ()):
        out.line(" ".join(f"{key}={value}" for key, value in event.items() if key != "step" and value is not None))


def _profile(profile: Mapping[str, Any]) -> dict[str, str]:
    """Return what a stage counted: licences, languages, labels, duplicates; of many, the most frequent."""
    return {
        name: _counts(found)
        for name, found in profile.items()
        if isinstance(found, Mapping) and found and all(type(count) is int for count in found.values())
    }


def _counts(found: Mapping[str, int]) -> str:
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {rows:,}" for name, rows in ordered[:COUNTS_SHOWN])
    return shown + (f", and {len(ordered) - COUNTS_SHOWN} more" if len(ordered) > COUNTS_SHOWN else "")


def _run_fields(run: Mapping[str, Any] | None) -> dict[str, Any]:
    if run is None:
        return {}
    took = f" in {duration(run['seconds'])}" if run["seconds"] is not None else ""
    config = ", ".join(f"{key}={value}" for key, value in run["config"].items())
    return {"made by": f"run {run['id']} ({run['stage']}{took})", "config": config, "seed": run["seed"] or ""}


def _print_scores(out: Out, reports: list[dict[str, Any]]) -> None:
    for report in reports:
        for name, score in report["scores"].items():
            out.line(f"{report['suite']}: {name} = {interval(score)}")


def _shortened(sample: Mapping[str, Any]) -> str:
    data = sample["data"]
    if "messages" in data:
        text = "\n".join(f"{message['role']}: {message['content']}" for message in data["messages"])
    else:
        text = "\n".join(str(value) for value in data.values())
    return text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN] + " ..."
