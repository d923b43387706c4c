"""The audit, for who may see it: entries page by page, its standing, a check that runs in the background.

That somebody looked is written down, as with `catena audit search`; what was found is not.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from catena.core.errors import CatenaError
from catena.govern.audit.checkpoints import Checkpoints
from catena.govern.audit.log import Log, Places
from catena.govern.audit.reading import Query, newest
from catena.govern.audit.record import moment
from catena.govern.audit.verify import Verification, verify
from catena.govern.compliance import holds
from catena.govern.config import AuditConfig
from catena.govern.crypto import open_signer
from catena.settings import load_settings
from catena.workspace import Workspace

KINDS = ("request", "answer", "act", "gap", "erased", "damaged")
PAGE = 50
GIST = 160
"""Characters of an entry that stand in the list."""


@dataclass(frozen=True)
class Entry:
    """One record."""

    seq: int
    time: datetime | None
    kind: str
    who: str
    what: str
    """One line: the route, the model, the status, the act."""
    body: str
    """All of it, as JSON for people."""


@dataclass(frozen=True)
class Found:
    """A page of entries, newest first."""

    entries: tuple[Entry, ...]
    next: str
    """For the next page; empty at the end."""
    looked: int
    until: datetime | None


@dataclass(frozen=True)
class Standing:
    """How the audit is."""

    exists: bool
    records: int
    """Number of the newest."""
    segments: int
    bytes: int
    first_day: str
    written: datetime | None
    """When the newest record was written."""
    checkpoint: datetime | None
    """Time of the newest signed checkpoint in the log that is copied elsewhere."""
    forged: bool
    """Whether records are there and no truly signed tip."""
    keep_days: int


@dataclass(frozen=True)
class ComplianceSummary:
    """The newest compliance report of the workspace."""

    file: str
    time: str
    counts: Mapping[str, int]
    signed: bool
    """Whether it is this workspace's own and unchanged."""


def config_of(workspace: Workspace) -> AuditConfig:
    """Return the settings that hold for a workspace's audit."""
    return load_settings(workspace=workspace.store.root, environment=os.environ).govern.audit


def search(workspace: Workspace, query: Query, by: str, start: str = "", limit: int = PAGE) -> Found:
    """Return a page of entries; the first page of a search is written down, `by` whom."""
    root, config = workspace.store.root, config_of(workspace)
    if not Places(root, config).folder.exists():
        return Found((), "", 0, None)
    page = newest(root, config, query, start=start, limit=limit)
    if not start:
        told = {key: str(value) for key, value in asdict(query).items() if value and key != "subject"}
        with Log(root, config) as log:
            tag = {"tag": log.vault.tag(query.subject)} if query.subject else {}
            log.act({"act": "audit.search", "by": by, **tag, "query": told, "found": len(page.entries)})
    return Found(tuple(map(_entry, page.entries)), page.next, page.looked, _time(page.until))


def acted(workspace: Workspace, by: str, act: str, **fields: Any) -> None:
    """Write down what somebody has changed here, as commands do; tags and releases have logs of their own.

    Raises what kept it from being written: the change itself stands by then.
    """
    with Log(workspace.store.root, config_of(workspace)) as log:
        log.act({"act": act, "by": by, **fields})


def _entry(told: dict[str, Any]) -> Entry:
    rest = {key: value for key, value in told.items() if key not in ("seq", "time", "kind")}
    who = str(told.get("subject") or told.get("by") or "")
    body = json.dumps(rest, ensure_ascii=False, indent=2, default=str)
    return Entry(told["seq"], _time(told["time"]), told["kind"], who, _gist(told), body)


def _gist(told: Mapping[str, Any]) -> str:
    if told["kind"] in ("erased", "damaged"):
        return ""
    if told["kind"] == "act":
        rest = {key: value for key, value in told.items() if key not in ("seq", "time", "kind", "act", "by")}
        return f"{told.get('act', '')}  {_short(rest)}"[:GIST]
    if told["kind"] == "gap":
        return _short({key: told[key] for key in ("lost", "reason") if key in told})
    place = " ".join(str(told[key]) for key in ("method", "path", "status", "model") if told.get(key))
    return f"{place}  {_words(told.get('body'))}"[:GIST].strip()


def _words(body: Any) -> str:
    """Return what was said in a request or an answer, where it is a chat; else its JSON."""
    if isinstance(body, dict):
        if isinstance(messages := body.get("messages"), list) and messages and isinstance(messages[-1], dict):
            return _line(messages[-1].get("content"))
        if isinstance(text := body.get("text"), dict):
            return _line(" ".join(map(str, text.values())))
        if isinstance(choices := body.get("choices"), list) and choices and isinstance(choices[0], dict):
            return _line((choices[0].get("message") or {}).get("content") or choices[0].get("text"))
    return "" if body in (None, "") else _short(body)


def _line(text: Any) -> str:
    return " ".join(str(text).split())[:GIST]


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:GIST]


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def standing(workspace: Workspace) -> Standing:
    """Say how much there is, and when it was last written and signed."""
    root, config = workspace.store.root, config_of(workspace)
    places = Places(root, config)
    files = places.segment_files() if places.folder.exists() else []
    if not files:
        return Standing(places.folder.exists(), 0, 0, 0, "", None, None, forged=False, keep_days=config.keep_days)
    checkpoints = Checkpoints(places.checkpoints, open_signer(root))
    try:
        tip = checkpoints.tip(checkpoints.raw_tip())
    finally:
        checkpoints.close()
    kept = max((mark.time for _, mark in checkpoints.log() if mark is not None), default=0)
    return Standing(
        exists=True,
        records=tip.seq if tip else 0,
        segments=len(files),
        bytes=sum(file.stat().st_size for file in files),
        first_day=files[0].stem,
        written=moment(tip.time) if tip and tip.seq else None,
        checkpoint=moment(kept) if kept else None,
        forged=tip is None,
        keep_days=config.keep_days,
    )


def compliance(workspace: Workspace) -> ComplianceSummary | None:
    """Return the newest compliance report; None where there is none that can be read."""
    files = sorted((workspace.store.root / "compliance").glob("compliance-*.json"))
    if not files:
        return None
    data = files[-1].read_bytes()
    try:
        report = json.loads(json.loads(data)["report"])
        return ComplianceSummary(
            files[-1].name, report["time"], report["counts"], signed=holds(data, workspace.store.root)
        )
    except (ValueError, KeyError, TypeError):
        return ComplianceSummary(files[-1].name, "", {}, signed=False)


@dataclass(frozen=True)
class Check:
    """A check of the whole audit, under way or over."""

    by: str
    started: datetime
    deep: bool
    done: int = 0
    of: int = 0
    """Bytes."""
    ended: datetime | None = None
    result: Verification | None = None
    problem: str = ""

    @property
    def share(self) -> float:
        """How far it is, 0 to 1."""
        return 1.0 if self.ended else self.done / self.of if self.of else 0.0


@dataclass
class Checks:
    """The checks of one workspace: one at a time, for all who look."""

    last: Check | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self.last is not None and self.last.ended is None

    def begin(self, workspace: Workspace, by: str, *, deep: bool, verify: Callable[..., Verification] = verify) -> bool:
        """Begin one in a thread; tells whether it did, which it does not while one is under way."""
        with self._lock:
            if self.running:
                return False
            self._stop.clear()
            self.last = Check(by, datetime.now(UTC), deep)
            work = (workspace, self.last, verify)
            self._thread = threading.Thread(target=self._run, args=work, name="catena-console-check", daemon=True)
            self._thread.start()
        return True

    def stop(self) -> None:
        """End the one that is under way."""
        self._stop.set()

    def wait(self) -> None:
        """Wait for the end of the one that is under way."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, workspace: Workspace, check: Check, verify: Callable[..., Verification]) -> None:
        def on_progress(done: int, of: int) -> None:
            if self._stop.is_set():
                raise InterruptedError
            self.last = replace(check, done=done, of=of)

        result, problem = None, ""
        try:
            config = config_of(workspace)
            result = verify(workspace.store.root, config, deep=check.deep, on_progress=on_progress)
            with Log(workspace.store.root, config) as log:
                told = {"records": result.records, "sound": result.sound}
                log.act({"act": "audit.verify", "by": check.by, "deep": check.deep, **told})
        except InterruptedError:
            problem = "stopped"
        except CatenaError as error:  # a result stands, also where that somebody checked could not be written down
            problem = "" if result is not None and not result.sound else error.message
        except Exception as error:  # noqa: BLE001  # shown to who looks; a thread has nobody else to tell
            problem = f"{type(error).__name__}: {error}"
        ended = datetime.now(UTC)
        self.last = replace(self.last or check, ended=ended, result=result, problem=problem)


_CHECKS: WeakKeyDictionary[Workspace, Checks] = WeakKeyDictionary()


def checks_of(workspace: Workspace) -> Checks:
    """Return a workspace's checks, the same for all who look."""
    return _CHECKS.setdefault(workspace, Checks())
