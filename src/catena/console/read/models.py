"""Models: one row for each name, found and sorted in memory, and everything that is known of one version.

names, tags, artifacts, reports -> ModelBook.find(...)   read again only where the index has changed
ModelBook.one(ref)              -> versions, scores, Pareto of its compressed versions, change log, lineage
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import select

from catena.console.read.tables import Found, page_of, reading, stamp
from catena.core.errors import UsageError
from catena.core.language import Language
from catena.core.types import ModelVersion, Report, Run, Score
from catena.flow.report_compression import LOWER, SUITE as COMPRESSION, Made, compressed, measures, quality
from catena.govern.changes import Change, change_log
from catena.hub.drawing import as_svg
from catena.hub.lineage import trace
from catena.hub.repo.card import FRONT, card
from catena.hub.schema import artifacts, names as names_table
from catena.hub.store import Store

SORTS = ("changed", "name", "size", "parameters")
NO_SCORES = ("gate", COMPRESSION, "comparison", "plan")
"""Reports that measure nothing of the model by itself."""
# The drawing's own way of following the system's colours; the console has a switch of its own.
BY_SYSTEM = re.compile(r"@media \(prefers-color-scheme:dark\)\{.*\}\s*(?=</style>)", re.DOTALL)


@dataclass(frozen=True)
class ModelRow:
    """The newest version of a name."""

    name: str
    version: int
    digest: str
    form: str
    architecture: str
    parameters: int
    number_format: str
    size: int
    license: str
    context: int
    created: datetime
    tags: tuple[str, ...]
    """Of any version, with the version where it is not the newest: `production`, `best@2`."""
    scores: tuple[tuple[str, Score], ...]
    """`suite/score`, the newest of each."""

    @property
    def words(self) -> str:
        """What a search looks through."""
        parts = (self.name, self.form, self.architecture, self.number_format, self.license, *self.tags, self.digest)
        return " ".join(parts).lower()


@dataclass(frozen=True)
class Versioned:
    """One version of a model's name."""

    version: int
    digest: str
    created: datetime
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """The scores of one report."""

    digest: str
    ref: str
    suite: str
    created: datetime | None
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Pareto:
    """A model and what was made smaller of it."""

    made: tuple[Made, ...]
    columns: tuple[str, ...]
    measure: str
    """What is drawn over the size; empty where nothing can be."""
    lower: bool
    """Whether less of it is better."""


@dataclass(frozen=True)
class ModelView:
    """Everything about one version of a model, but its card, lineage and change log, which take longer."""

    ref: str
    name: str
    model: ModelVersion
    tags: tuple[str, ...]
    names: tuple[str, ...]
    versions: tuple[Versioned, ...]
    measured: tuple[Measured, ...]
    pareto: Pareto | None
    made_by: Run | None
    base: str
    """`name@version` of the model that it was made from or that it needs; empty for none."""


class ModelBook:
    """The models of a workspace. For threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._stamp: tuple[object, ...] | None = None
        self._rows: tuple[ModelRow, ...] = ()

    def find(
        self,
        *,
        search: str = "",
        tag: str = "",
        form: str = "",
        sort: str = "changed",
        offset: int = 0,
        limit: int = 50,
        may_use: Callable[[str], bool] = lambda name: True,
    ) -> Found[ModelRow]:
        """Return models: those with every word of `search`, this tag and form; the last changed first, or as sorted."""
        words = search.lower().split()
        chosen = [
            row
            for row in self.rows()
            if may_use(row.name)
            and (not form or row.form == form)
            and (not tag or tag in {mark.partition("@")[0] for mark in row.tags})
            and all(word in row.words for word in words)
        ]
        if sort == "name":
            chosen.sort(key=lambda row: row.name)
        elif sort in ("size", "parameters"):
            chosen.sort(key=lambda row: (getattr(row, sort), row.name))
        return page_of(chosen, offset, limit)

    def rows(self) -> tuple[ModelRow, ...]:
        """Return the newest version of every model's name, the last changed first."""
        with self._lock:
            now = stamp(self.store)
            if now != self._stamp:
                self._rows = tuple(_read(self.store))
                self._stamp = now
            return self._rows

    def one(self, ref: str) -> ModelView:
        """Return what is known of a model: `name`, `name@version`, `name@tag` or a digest. Raises `NotFound`."""
        store = self.store
        model = store.resolve(ref, ModelVersion)
        known = _names(store)
        names = known.get(model.digest, [])
        name = ref.partition("@")[0] if any(one.startswith(ref.partition("@")[0] + "@") for one in names) else ""
        name = name or (names[-1].rpartition("@")[0] if names else "")
        tags = store.index.tags(name) if name else {}
        versions = tuple(
            Versioned(
                row.version,
                row.digest,
                row.created,
                tuple(sorted(tag for (_, tag), digest in tags.items() if digest == row.digest)),
            )
            for row in reversed(store.index.versions(name=name) if name else [])
        )
        mine = next((one for one in versions if one.digest == model.digest), None)
        reports = list(_reports(store))
        about = [report for report in reports if report.subject == model.digest and report.suite != COMPRESSION]
        runs = [run for run in store.index.find_runs(output=model.digest) if model.digest not in run.inputs.values()]
        return ModelView(
            f"{name}@{mine.version}" if mine else model.digest[:12],
            name or model.digest[:12],
            model,
            mine.tags if mine else (),
            tuple(names),
            versions,
            tuple(_measured(report, known) for report in sorted(about, key=_age, reverse=True)),
            pareto(reports, model, {digest: refs[-1] for digest, refs in known.items()}),
            runs[0] if runs else None,
            known.get(model.base or "", [(model.base or "")[:12]])[-1],
        )

    def card(self, view: ModelView, language: Language = "en") -> str:
        """Return the model's card in Markdown, without the metadata that only hubs read."""
        return FRONT.sub("", card(self.store, view.model, view.name, language=language), count=1).strip()

    def lineage(self, view: ModelView) -> str:
        """Return the drawing of what the model was made from and what was made of it, as SVG in the page's colours."""
        return BY_SYSTEM.sub("", as_svg(trace(self.store, view.model)))

    def changes(self, view: ModelView) -> list[Change]:
        """Return the change log of the model's name, newest first."""
        return change_log(self.store, view.name)[::-1] if view.versions else []

    def tag(self, ref: str, tag: str, expected: str | None, by: str) -> None:
        """Put a tag on a model. `expected` is the digest that had it when the person looked (None: nothing had it).

        Where it stands there already, nothing is done. Raises `Conflict` where somebody else has moved it since.
        """
        name, wanted = ref.partition("@")[0], self.store.resolve(ref).digest
        with self.store.lock("tags"):
            if self._movable(name, tag, expected, wanted):
                self.store.tag(ref, tag, by=by)

    def untag(self, name: str, tag: str, expected: str, by: str) -> None:
        """Take a tag away; `expected` as for `tag`. Raises `Conflict`."""
        with self.store.lock("tags"):
            if self._movable(name, tag, expected, None):
                self.store.untag(name, tag, by=by)

    def _movable(self, name: str, tag: str, expected: str | None, wanted: str | None) -> bool:
        """Tell whether a tag is still to be moved: a second press finds it where the first one put it."""
        stands = self.store.index.tags(name).get((name, tag))
        if stands not in (expected, wanted):
            raise Conflict(name, tag, stands)
        return stands != wanted


class Conflict(UsageError):
    """Somebody else was faster."""

    http_status = 409

    def __init__(self, name: str, tag: str, stands: str | None) -> None:
        now = f"it stands on {stands[:12]} now" if stands else "it was taken away"
        super().__init__(f"somebody else has moved the tag {tag!r} of {name!r} meanwhile: {now}", hint="Look again.")


def _names(store: Store) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in store.index.versions():
        found.setdefault(row.digest, []).append(f"{row.name}@{row.version}")
    return found


def _reports(store: Store) -> Iterable[Report]:
    with reading(store) as connection:
        query = select(artifacts.c.body).where(artifacts.c.kind == "report").order_by(artifacts.c.created)
        bodies = list(connection.execute(query).scalars())
    return [Report.model_validate_json(body) for body in bodies]


def _measured(report: Report, names: Mapping[str, Sequence[str]]) -> Measured:
    ref = (names.get(report.digest) or [report.digest[:12]])[-1]
    return Measured(report.digest, ref, report.suite, report.created, report.scores)


def _age(report: Report) -> float:
    return report.created.timestamp() if report.created else 0.0


def pareto(reports: Iterable[Report], model: ModelVersion, labels: Mapping[str, str]) -> Pareto | None:
    """Return a model beside its compressed versions, whether it is the whole one or one of them; None where none is."""
    mine = [report for report in reports if report.suite == COMPRESSION]
    bases = {
        report.details["baseline"] for report in mine if model.digest in (report.subject, report.details["baseline"])
    }
    chosen = [report for report in mine if report.details["baseline"] in bases]
    if not chosen:
        return None
    made = compressed(chosen, labels)
    best = quality(made)
    return Pareto(tuple(made), tuple(measures(made)), best, best in LOWER)


def _read(store: Store) -> list[ModelRow]:
    with reading(store) as connection:
        bodies = connection.execute(
            select(artifacts.c.digest, artifacts.c.body).where(artifacts.c.kind.in_(("model", "report")))
        ).all()
        versions = connection.execute(select(names_table).order_by(names_table.c.version)).all()
    records: dict[str, dict[str, Any]] = {}
    scores: dict[str, dict[str, tuple[str, Score]]] = {}
    for digest, body in bodies:
        record = orjson.loads(body)
        if record["kind"] == "model":
            records[digest] = record
        elif record["suite"] not in NO_SCORES:
            for key, score in record["scores"].items():
                old = scores.setdefault(record["subject"], {}).get(f"{record['suite']}/{key}")
                if old is None or old[0] <= str(record.get("created") or ""):
                    newer = str(record.get("created") or ""), Score.model_validate(score)
                    scores[record["subject"]][f"{record['suite']}/{key}"] = newer
    newest = {row.name: row for row in versions if row.digest in records}
    numbers = {(row.name, row.digest): row.version for row in versions}
    tags: dict[str, list[str]] = {}
    for (name, tag), digest in sorted(store.index.tags().items()):
        if name in newest:
            at = "" if newest[name].digest == digest else f"@{numbers.get((name, digest), '?')}"
            tags.setdefault(name, []).append(f"{tag}{at}")
    rows = [
        _row(row, records[row.digest], tuple(tags.get(name, ())), scores.get(row.digest, {}))
        for name, row in newest.items()
    ]
    return sorted(rows, key=lambda row: (-row.created.timestamp(), row.name))


def _row(
    row: Any, record: Mapping[str, Any], tags: tuple[str, ...], scores: Mapping[str, tuple[str, Score]]
) -> ModelRow:
    created = row.created if row.created.tzinfo else row.created.replace(tzinfo=UTC)
    return ModelRow(
        name=row.name,
        version=row.version,
        digest=row.digest,
        form=record.get("form") or "",
        architecture=record.get("architecture") or "",
        parameters=record.get("parameters") or 0,
        number_format=record.get("quantization") or record.get("dtype") or "",
        size=sum(file["size"] for file in record.get("files") or ()),
        license=record.get("license") or "",
        context=record.get("context") or 0,
        created=created,
        tags=tags,
        scores=tuple((key, score) for key, (_, score) in sorted(scores.items())),
    )
