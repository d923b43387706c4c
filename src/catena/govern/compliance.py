"""The compliance report: a checklist, and for each line the evidence that was found. Nothing is ticked without any.

    checks (each looks itself, at settings, keys, audit, models) -> held | failed | no evidence -> signed JSON, HTML

What was looked at is told with its value, so that a reader can follow why a line holds; what cannot be seen from here
(backups, contracts, people) is not on the list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from catena.core.errors import CatenaError
from catena.core.registry import require
from catena.core.types import DatasetVersion, ModelVersion, Report
from catena.govern import compliance_kept as kept, compliance_learning as learning
from catena.govern.audit.log import Places
from catena.govern.audit.reading import Query, entries
from catena.govern.audit.record import frames, opened
from catena.govern.audit.vault import Vault
from catena.govern.audit.verify import verify
from catena.govern.changes import change_log
from catena.govern.config import GovernConfig
from catena.govern.crypto import open_signer, sealing_keys
from catena.govern.keys import Keys
from catena.hub.erase import tombstones
from catena.hub.lineage import trace
from catena.hub.store import Store

PURPOSE = "compliance report"
OLD_KEY = timedelta(days=90)
QUARTER = timedelta(days=92)
Status = Literal["held", "failed", "no evidence"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the checklist."""

    id: str
    asks: str
    status: Status
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What was seen. A line without any never holds."""

    def __post_init__(self) -> None:
        if self.status == "held" and not self.evidence:
            raise ValueError(f"the line {self.id} holds without evidence")


@dataclass(frozen=True, slots=True)
class ComplianceReport:
    """All lines, at one moment."""

    time: str
    workspace: str
    lines: tuple[Line, ...]

    def counts(self) -> dict[Status, int]:
        """Return how many lines came out how."""
        found: dict[Status, int] = {"held": 0, "failed": 0, "no evidence": 0}
        for line in self.lines:
            found[line.status] += 1
        return found


@dataclass(frozen=True, slots=True)
class _Seen:
    store: Store
    config: GovernConfig
    now: datetime


Check = Callable[[_Seen], tuple[Status, Mapping[str, Any]]]


def collect(store: Store, config: GovernConfig, *, now: datetime | None = None) -> ComplianceReport:
    """Look at everything on the list; a check that cannot look has no evidence, and says why."""
    seen = _Seen(store, config, now or datetime.now(UTC))
    lines = []
    for id, (asks, check) in CHECKLIST.items():
        try:
            status, evidence = check(seen)
        except CatenaError as error:
            status, evidence = "no evidence", {"problem": error.message}
        lines.append(Line(id, asks, status, evidence))
    return ComplianceReport(seen.now.isoformat(timespec="seconds"), store.root.name, tuple(lines))


def signed(report: ComplianceReport, root: Path) -> bytes:
    """Return the report as JSON, with the workspace's signature over it."""
    body = json.dumps({**asdict(report), "counts": report.counts()}, ensure_ascii=False, default=str)
    signer = open_signer(root)
    told = {"report": body, "signature": signer.sign(PURPOSE, body.encode()), "public_key": signer.public_hex}
    return json.dumps(told, ensure_ascii=False, indent=2).encode() + b"\n"


def holds(told: bytes, root: Path) -> bool:
    """Tell whether a report is this workspace's own, and unchanged."""
    try:
        read = json.loads(told)
        return open_signer(root).holds(PURPOSE, str(read["report"]).encode(), str(read["signature"]))
    except (ValueError, KeyError, TypeError):
        return False


# -- the checks ----------------------------------------------------------------------------------------------------


def _held(good: bool, evidence: Mapping[str, Any]) -> tuple[Status, Mapping[str, Any]]:
    return ("held" if good else "failed"), evidence


def _stated(good: bool | None, evidence: Mapping[str, Any]) -> tuple[Status, Mapping[str, Any]]:
    """Return the status of evidence that may say nothing (None)."""
    return ("no evidence", evidence) if good is None else _held(good, evidence)


def _auth(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    auth = seen.config.auth
    return _held(auth.on, {"govern.auth.on": auth.on, "govern.allow_open": seen.config.allow_open})


def _keys_hashed(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    records = Keys(seen.store.index).all()
    if not records:
        return "no evidence", {"keys": 0}
    good = sum(len(record.hash) == 64 and len(record.salt) == 32 for record in records)
    return _held(good == len(records), {"keys": len(records), "hashed with scrypt and a salt of their own": good})


def _keys_young(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    active = [record for record in Keys(seen.store.index).all() if record.state(seen.now) == "active"]
    if not active:
        return "no evidence", {"active keys": 0}
    old = [
        {"id": record.id, "name": record.name, "days": (seen.now - record.created).days}
        for record in active
        if seen.now - record.created > OLD_KEY
    ]
    return _held(not old, {"active keys": len(active), "older than 90 days": old})


def _keys_end(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    active = [record for record in Keys(seen.store.index).all() if record.state(seen.now) == "active"]
    if not active:
        return "no evidence", {"active keys": 0}
    endless = [record.id for record in active if record.expires is None]
    return _held(not endless, {"active keys": len(active), "without an end": endless})


def _secrets(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    paths = [*(seen.store.root / "keys").glob("*.key"), seen.store.root / "keys" / "access.json"]
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in paths if path.exists()}
    if not modes:
        return "no evidence", {}
    return _held(all(mode.endswith("00") for mode in modes.values()), {"modes of the files in keys/": modes})


def _audit_on(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    config = seen.config.audit
    newest = 0
    for path in Places(seen.store.root, config).segment_files()[-1:]:
        newest = max((frame.time for _, frame in frames(path.read_bytes()) if frame is not None), default=0)
    if not newest:
        return ("failed" if not config.on else "no evidence"), {"govern.audit.on": config.on, "records": 0}
    at = datetime.fromtimestamp(newest / 1e6, UTC).isoformat(timespec="seconds")
    return _held(config.on, {"govern.audit.on": config.on, "newest record": at, "when full": config.when_full})


def _audit_sound(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    found = verify(seen.store.root, seen.config.audit)
    told: dict[str, Any] = {
        "records": found.records,
        "bytes": found.bytes,
        "signed checkpoints met": found.checkpoints,
        "behind the tip": found.unanchored,
        "pruned": found.pruned,
        "findings": [f"{finding.where}: {finding.problem}" for finding in found.findings],
    }
    if not found.records and found.sound:
        return "no evidence", told
    return _held(found.sound, told)


def _audit_sealed(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    """Open the newest record that can be opened, and look for its words in the file as it lies there."""
    places = Places(seen.store.root, seen.config.audit)
    vault = Vault(places.subjects, partial(sealing_keys, seen.store.root))
    invalid = require("cryptography.exceptions").InvalidTag
    for path in reversed(places.segment_files()):
        data = path.read_bytes()
        held = [frame for _, frame in frames(data) if frame is not None]
        for frame in reversed(held):
            cipher = vault.cipher(frame.key)
            if cipher is None:
                continue
            try:
                entry = opened(frame, cipher)
            except (invalid, ValueError):
                continue  # a broken one is evidence of nothing; `audit-sound` tells of it
            words = [str(value).encode() for value in entry.values() if isinstance(value, str) and len(value) > 7]
            clear = sum(word in data for word in words)
            told = {"record": frame.seq, "cipher": "AES-256-GCM", "values looked for": len(words), "in clear": clear}
            return _held(clear == 0, {**told, "data keys": vault.subjects()})
    return "no evidence", {"records that can be opened": 0}


def _retention(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    from catena.govern.audit.checkpoints import Checkpoints

    config, places = seen.config.audit, Places(seen.store.root, seen.config.audit)
    days = [path.stem for path in places.segment_files()]
    if not days:
        return "no evidence", {"govern.audit.keep_days": config.keep_days, "segments": 0}
    early = []
    pruned = (
        Checkpoints(places.checkpoints, open_signer(seen.store.root)).pruned() if places.checkpoints.exists() else []
    )
    for one in pruned:
        age = datetime.fromtimestamp(one.time / 1e6, UTC) - datetime.fromisoformat(one.segment).replace(tzinfo=UTC)
        early += [one.segment] if age < timedelta(days=180) else []
    told = {"govern.audit.keep_days": config.keep_days, "oldest segment": days[0], "segments": len(days)}
    return _held(config.keep_days >= 180 and not early, {**told, "pruned": len(pruned), "pruned too early": early})


def _elsewhere(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    places = Places(seen.store.root, seen.config.audit)
    if not (places.checkpoints / "tip").exists():
        return "no evidence", {"checkpoints": 0}
    devices = {"audit": places.folder.stat().st_dev, "checkpoints": places.checkpoints.stat().st_dev}
    told = {"another disk": devices["audit"] != devices["checkpoints"], "checkpoints": str(places.checkpoints)}
    return _held(devices["audit"] != devices["checkpoints"], told)


def _moderated(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    config = seen.config.moderation
    told = {"govern.moderation.on": config.on, "words": config.words, "personal": config.personal}
    return _held(config.on and config.prompts and config.answers, {**told, "classifier": config.classifier})


def _moderation_figures(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    ref = seen.config.moderation.classifier
    if not ref:
        return "no evidence", {"govern.moderation.classifier": ""}
    model = seen.store.resolve(ref, ModelVersion)
    about = [
        one
        for one in seen.store.index.all_artifacts()
        if isinstance(one, Report) and one.suite == "moderation" and one.subject == model.digest
    ]
    if not about:
        return "no evidence", {"classifier": ref, "reports": 0}
    scores = {key: score.model_dump(exclude_none=True) for key, score in about[-1].scores.items()}
    ordinary = about[-1].scores.get("false_positives_ordinary")
    good = ordinary is not None and ordinary.high is not None and ordinary.high < 0.005
    return _held(good, {"classifier": ref, "report": about[-1].digest[:12], "scores": scores})


def _production(store: Store) -> Iterator[tuple[str, ModelVersion]]:
    for (name, tag), digest in store.index.tags().items():
        artifact = store.index.artifact(digest)
        if tag == "production" and isinstance(artifact, ModelVersion):
            yield name, artifact


def _licences(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    behind: dict[str, dict[str, str]] = {}
    for name, model in _production(seen.store):
        graph = trace(seen.store, model, down=False)
        data = {}
        for node in graph.nodes:
            artifact = seen.store.index.artifact(node.id) if node.kind == "dataset" else None
            if isinstance(artifact, DatasetVersion):
                data[node.label] = artifact.license or "unknown"
        behind[name] = data
    if not any(behind.values()):
        return "no evidence", {"models in production": sorted(behind)}
    unknown = sorted({label for data in behind.values() for label, licence in data.items() if licence == "unknown"})
    return _held(not unknown, {"datasets behind models in production": behind, "licence unknown": unknown})


def _logged(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    changes = change_log(seen.store)
    versions = [change for change in changes if change.what == "version"]
    if not versions:
        return "no evidence", {"model versions": 0}
    orphans = [f"{change.name} {change.detail}" for change in versions if not change.run]
    told = {"model versions": len(versions), "moves of tags": len(changes) - len(versions), "made by no run": orphans}
    return _held(not orphans, told)


def _gated(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    found: dict[str, Any] = {}
    reports = [one for one in seen.store.index.all_artifacts() if isinstance(one, Report) and one.suite == "gate"]
    for name, model in _production(seen.store):
        won = [one.digest[:12] for one in reports if one.details.get("winner") == model.digest]
        found[name] = won[-1] if won else None
    if not found:
        return "no evidence", {"models in production": 0}
    return _held(all(found.values()), {"gate that each model in production won": found})


def _erasures(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    marks = tombstones(seen.store)
    acts = list(entries(seen.store.root, seen.config.audit, Query(kind="act", text="audit.erase")))
    if not marks and not acts:
        return "no evidence", {"erasures": 0}
    broken = [mark.id for mark, valid in marks if not valid]
    return _held(not broken, {"of data": len(marks), "of the audit": len(acts), "signature does not hold": broken})


def _quarterly(seen: _Seen) -> tuple[Status, Mapping[str, Any]]:
    found = [
        one["time"]
        for one in entries(seen.store.root, seen.config.audit, Query(kind="act"))
        if one.get("act") == "compliance.report"
    ]
    if not found:
        return "no evidence", {"reports before this one": 0}
    last = datetime.fromisoformat(found[-1])
    told = {"reports before this one": len(found), "last": found[-1][:19]}
    return _held(seen.now - last <= QUARTER, told)


CHECKLIST: Mapping[str, tuple[str, Check]] = {
    "auth": ("Every route but /health asks for a key or a token", _auth),
    "keys-hashed": ("Keys are stored as salted, slow hashes only", _keys_hashed),
    "keys-young": ("No active key is older than 90 days", _keys_young),
    "keys-end": ("Every active key expires", _keys_end),
    "secrets": ("Private keys can be read by their owner only", _secrets),
    "audit-on": ("Requests, answers and decisions are written down", _audit_on),
    "audit-sound": ("The audit verifies: nothing changed, removed, added or reordered", _audit_sound),
    "audit-sealed": ("The audit is encrypted at rest", _audit_sealed),
    "kept-sealed": (
        "Jobs, their files and answers in the cache are encrypted at rest, so that an erasure reaches them",
        lambda seen: _stated(*kept.sealed(seen.store)),
    ),
    "audit-kept": ("The audit is kept for 180 days or more", _retention),
    "audit-elsewhere": ("Checkpoints are kept on another disk than the records", _elsewhere),
    "moderation-on": ("Prompts and answers are moderated", _moderated),
    "moderation-figures": (
        "Moderation finds fewer than 0.5 % of ordinary texts, with 95 % confidence",
        _moderation_figures,
    ),
    "feedback-consent": (
        "What was collected from users' feedback was given with a consent that still stands",
        lambda seen: _stated(*learning.consent(seen.store, seen.config)),
    ),
    "feedback-masked": (
        "No personal data is in what was collected from users' feedback",
        lambda seen: _stated(*learning.masked(seen.store, seen.config)),
    ),
    "drift-watched": (
        "Drift of what is asked and answered was looked for within a month",
        lambda seen: _stated(*learning.drift_watched(seen.store, seen.config, seen.now)),
    ),
    "licences": ("The licence of every dataset behind a model in production is known", _licences),
    "change-log": ("Every version of a model tells what it was made by and from", _logged),
    "gates": ("Every model in production won a gate", _gated),
    "erasures": ("Erasures are proved", _erasures),
    "quarterly": ("A report like this one was made in the quarter before", _quarterly),
}
