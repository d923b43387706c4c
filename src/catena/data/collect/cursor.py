"""Incremental collection: whatever the source, a run asks only for what is new and leaves every row it had.

    version before --> cursor, known rows --\\
    connector --> batches --> journal (workdir) --> rows by key, rejects by key --> new version with its cursor

A connector knows a source; this module knows how to go on, what to keep, and what the next run begins with. Rows are in
the order of their keys, so that a source collected at once and one collected in many runs give the same dataset.
"""

from __future__ import annotations

import heapq
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from catena.core.digest import digest_of
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion, Shape
from catena.data.by_hand import ByHand, from_the_start
from catena.data.collect.client import HttpError
from catena.data.collect.journal import Batch, Item, Journal, Position, storable
from catena.hub.datasets import DatasetWriter

BATCH_ITEMS = 256
BATCH_BYTES = 8 << 20
FORGOTTEN = frozenset({400, 404, 410, 422})
EMPTY: dict[Shape, dict[str, Any]] = {
    "document": {"text": ""},
    "conversation": {"messages": []},
    "example": {"input": "", "output": ""},
    "media": {"content": b"", "media_type": ""},
}


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier run left."""

    cursor: Mapping[str, Any]
    """Empty in the first run."""
    position: Position | None
    """Where an unfinished pass goes on, or None."""
    before: DatasetVersion | None
    context: Context

    def known(self, name: str) -> dict[str, Any]:
        """Return one metadata field of every row and reject of the version before, by key."""
        if self.before is None:
            return {}
        opened = self.context.store.open_dataset(self.before)
        found = {key_of(sample): sample.metadata.get(name) for sample, _, _ in opened.rejects()}
        for text in opened.table(columns=["metadata"]).column("metadata").to_pylist():
            facts = orjson.loads(text)
            found[facts.get("key", "")] = facts.get(name)
        found.pop("", None)
        return found


def key_of(sample: Sample) -> str:
    """Return what the source calls a row; nothing for one that a person added."""
    return str(sample.metadata.get("key", ""))


class Connector(Protocol):
    """One kind of source, with its config."""

    name: str
    shape: Shape
    license: str | None
    identity: Mapping[str, Any]
    """What decides which records come and how they look; when it changes, everything is collected anew."""
    passing: frozenset[str]
    """Metadata that may change while the record does not, for example `etag`: no reason for a new row."""

    def batches(self, past: Past) -> Iterator[Batch]:
        """Yield what is new since the cursor; the last batch carries the next cursor."""
        ...


def collect(ctx: Context, connector: Connector, max_records: int) -> DatasetVersion:
    """Ask a source for what is new and return the version before with it.

    `max_records` bounds one run: it ends after the batch that reaches it, and the next run goes on there. What could
    not be taken is among the rejects. Raises `RemoteError` when the source fails; what had come is kept for the next
    try.
    """
    before, stored = _before(ctx, connector)
    basis = {"identity": digest_of(dict(connector.identity)), "before": before.digest if before else ""}
    journal = Journal(ctx.workdir / "collect", basis)
    past = Past(stored.get("cursor") or {}, stored.get("position"), before, ctx)
    if journal.end is None:
        _fill(ctx, journal, connector, past, max_records)
    end = dict(journal.end or {})
    # A wiki says its licence itself; then it stands in the cursor.
    told = (end.get("cursor") or {}).get("license") or (end.get("position") or {}).get("license")
    license = connector.license or told
    with ctx.store.new_dataset(connector.shape, license=license) as writer:
        merge = _Merge(connector, ByHand(ctx, before, key_of), journal)
        counts = merge.write(writer)
        cursor = {"connector": connector.name, "identity": basis["identity"], **end}
        profile = {"cursor": cursor, "collect": dict(sorted(counts.items())), **merge.by_hand.profile(merge.gone)}
        version = writer.commit(profile=profile)
    if merge.passed_over:
        ctx.events.log(f"{merge.passed_over} rows stay as people left them, whatever the source says now")
    for name, count in sorted(counts.items()):
        ctx.events.metric(name, count)
    shutil.rmtree(journal.folder)
    return version


def _before(ctx: Context, connector: Connector) -> tuple[DatasetVersion | None, dict[str, Any]]:
    """Return the version to go on from and what it keeps of its run; nothing when it came from elsewhere."""
    latest = ctx.store.latest(ctx.name)
    if not isinstance(latest, DatasetVersion):
        return None, {}
    stored = dict(latest.profile.get("cursor") or {})
    if latest.shape != connector.shape or stored.get("identity") != digest_of(dict(connector.identity)):
        from_the_start(ctx, latest, key_of)
        return None, {}
    return latest, stored


def _fill(ctx: Context, journal: Journal, connector: Connector, past: Past, max_records: int) -> None:
    """Bring batches into the journal until the pass or the limit ends."""
    past = replace(past, position=journal.position or past.position)
    try:
        _run(ctx, journal, connector, past, max_records)
    except HttpError as error:
        # A server may have forgotten the place that an earlier run stopped at.
        if past.position is None or journal.position not in (None, past.position) or error.status not in FORGOTTEN:
            raise
        ctx.events.log(f"the pass begins anew, its place is not known any more: {error}")
        journal.restart()
        _run(ctx, journal, connector, replace(past, position=None), max_records)


def _run(ctx: Context, journal: Journal, connector: Connector, past: Past, max_records: int) -> None:
    progress = ctx.progress(connector.name, unit="records", done=journal.items)
    with closing(connector.batches(past)) as batches:  # type: ignore[type-var]
        for batch in batches:
            checked = tuple(_checked(item, connector.shape) for item in batch.items)
            journal.write(replace(batch, items=checked))
            progress.advance(len(checked))
            if batch.cursor is not None:
                journal.finish({"cursor": dict(batch.cursor), "position": None})
                break
            if batch.stop or journal.items >= max_records:
                ctx.events.log(f"the limit of one run is reached; the next goes on behind {journal.items} records")
                journal.finish({"cursor": dict(past.cursor), "position": dict(batch.position)})
                break
    progress.finish()
    assert journal.end is not None, f"{connector.name} ended without a cursor"


def _checked(item: Item, shape: Shape) -> Item:
    """Return the item, or a reject in its place when no table can hold it (lone surrogates, 128-bit numbers)."""
    problem = storable(item)
    if not problem:
        return item
    key = item.key.encode("utf-8", "replace").decode()
    source = item.source.encode("utf-8", "replace").decode()
    reason = "lone_surrogate" if "surrogate" in problem else "not_storable"
    return Item(key, "reject", EMPTY[shape], source=source, reason=reason, detail=problem)


class _Merge:
    """The version before and the journal become one dataset; both come in the order of keys and are streamed."""

    def __init__(self, connector: Connector, by_hand: ByHand, journal: Journal) -> None:
        self._connector, self._journal = connector, journal
        self.by_hand, self._before = by_hand, by_hand.opened
        index = journal.index()
        told = {item.key: item.outcome for item in journal.read(index.values())}
        # What a person changed or took out stays so, unless the source has it no more.
        self._new = {key: what for key, what in told.items() if what == "gone" or key not in by_hand.keys}
        self._index = {key: place for key, place in index.items() if key in self._new}
        self.passed_over = len(told) - len(self._new)
        self.gone = {key for key, what in told.items() if what == "gone"}
        self._license = connector.license
        self._gone: list[tuple[str, Sample, str, str]] = []
        self._counts: Counter[str] = Counter(dict.fromkeys(("new", "changed", "unchanged", "gone", "kept"), 0))

    def write(self, writer: DatasetWriter) -> Counter[str]:
        """Write rows and rejects; returns how many rows were new, changed, unchanged, gone, and kept unasked."""
        self._license = writer.license
        fresh = ((item.key, 1, self._sample(item)) for item in self._items("row"))
        merged = heapq.merge(self._old_rows(), fresh, key=lambda entry: entry[:2])
        old: Sample | None = None
        for key, is_new, sample in merged:
            if not is_new and self._new.get(key) == "row":
                old = sample
                continue
            if is_new:
                writer.add(self._newer(old if old is not None and key_of(old) == key else None, sample))
                old = None
            else:
                self._counts["kept"] += 1
                writer.add(sample)
        rejects = ((i.key, self._sample(i), i.reason, i.detail) for i in self._items("reject"))
        for _, sample, reason, detail in heapq.merge(
            sorted(self._gone, key=_first), rejects, sorted(self._old_rejects(), key=_first), key=_first
        ):
            writer.reject(sample, reason, detail)
        return self._counts

    def _items(self, outcome: str) -> Iterator[Item]:
        return self._journal.read(place for key, place in self._index.items() if self._new[key] == outcome)

    def _old_rows(self) -> Iterator[tuple[str, int, Sample]]:
        for sample in self.by_hand.rows():
            key = key_of(sample)
            if self._new.get(key) == "gone":
                self._counts["gone"] += 1
                empty = replace(sample, data=EMPTY[self._connector.shape])
                self._gone.append((key, empty, "gone", "the source no longer has it"))
            else:
                yield key, 0, sample

    def _old_rejects(self) -> Iterator[tuple[str, Sample, str, str]]:
        for sample, reason, detail in self._before.rejects() if self._before else ():
            now = self._new.get(key_of(sample))
            # What was gone and still is stays recorded; any other reject is over when its record is gone or well.
            if now is None or (now == "gone" and reason == "gone"):
                yield key_of(sample), sample, reason, detail

    def _newer(self, old: Sample | None, new: Sample) -> Sample:
        """Return the old row when the new one says the same: a new ETag alone makes no new version."""
        if old is None:
            self._counts["new"] += 1
            return new
        same = replace(new, metadata=self._lasting(new)) == replace(old, metadata=self._lasting(old))
        self._counts["unchanged" if same else "changed"] += 1
        return old if same else new

    def _lasting(self, sample: Sample) -> dict[str, Any]:
        return {name: value for name, value in sample.metadata.items() if name not in self._connector.passing}

    def _sample(self, item: Item) -> Sample:
        data = {name: item.data.get(name, empty) for name, empty in EMPTY[self._connector.shape].items()}
        return Sample(
            id=sample_id(item.key, data),
            data=data,
            # Through JSON, so that a row compares equal to itself read back.
            metadata=orjson.loads(orjson.dumps({**item.metadata, "key": item.key})),
            source=item.source,
            license=item.license or self._license,
            split=item.split,
        )


def _first(entry: tuple[str, Sample, str, str]) -> str:
    return entry[0]


def in_batches(stream: Iterable[tuple[tuple[Item, ...], Position]]) -> Iterator[Batch]:
    """Group (items, position behind them) into batches of bounded count and size."""
    items: list[Item] = []
    size = 0
    last: Position | None = None
    for some, position in stream:
        items.extend(some)
        size += sum(item.size for item in some)
        last = position
        if len(items) >= BATCH_ITEMS or size >= BATCH_BYTES:
            yield Batch(tuple(items), position)
            items, size, last = [], 0, None
    if last is not None:
        yield Batch(tuple(items), last)


def later(first: Any, second: Any) -> Any:
    """Return the later of two cursor values: numbers by size, ISO 8601 times by instant, other text by code point."""
    if first is None or second is None:
        return second if first is None else first
    return second if _rank(second) > _rank(first) else first


def _rank(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), str(value)
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return 2, 0.0, str(value)
    return 1, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), ""
