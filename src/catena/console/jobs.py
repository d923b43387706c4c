"""Runs that were started here: each a child process with a folder of its own, which outlives the console.

<workspace>/console/jobs/<id>/job.json       who started it, when, and which process it is
                              recipe.yaml    the text that runs
                              events.jsonl   what `catena run --json` says
                              errors.txt     what it says beside
Whether it lives is asked of the system (process id and start time: an id that was given to another process is not it),
so that a console that is started again finds what goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil

from catena.core.errors import NotFound, UsageError
from catena.hub.files import write_atomically
from catena.hub.store import Store

State = Literal["running", "done", "failed", "cancelled", "interrupted"]
MOST_AT_ONCE = 8
MOST_ERROR_BYTES = 20_000
MOST_END_BYTES = 1 << 20
"""Of the last line of what a job says."""
MOST_LOG = 200
"""Lines of a log that are kept while it is read."""
_CHILDREN: dict[str, subprocess.Popen[bytes]] = {}  # ours: asked for their end, so that none stays a zombie


@dataclass(frozen=True)
class Job:
    """One run that was started here."""

    id: str
    recipe: str
    by: str
    started: str
    """ISO 8601, UTC."""
    pid: int
    born: float
    """When the system says that the process began, in seconds since 1970."""

    @property
    def at(self) -> datetime:
        """When it was started."""
        return datetime.fromisoformat(self.started)


@dataclass
class StepState:
    """How far a step is."""

    key: str
    status: str = ""
    stage: str = ""
    seconds: float | None = None
    ref: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """The newest value of each curve."""
    message: str = ""


@dataclass
class Progress:
    """What a job's events say so far; `follow` reads on where it was."""

    group: str = ""
    steps: dict[str, StepState] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    end: Mapping[str, Any] | None = None
    offset: int = 0


def start(store: Store, name: str, text: str, by: str) -> Job:
    """Start a recipe in a process of its own. Raises `UsageError` where too many run already."""
    alive = [job for job in jobs(store) if state(store, job) == "running"]
    if len(alive) >= MOST_AT_ONCE:
        raise UsageError(f"{len(alive)} runs go on already", hint="Stop one, or wait for its end.")
    id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    folder = _folder(store, id)
    folder.mkdir(parents=True)
    write_atomically(folder / "recipe.yaml", text.encode())
    words = [
        sys.executable,
        "-m",
        "catena",
        "run",
        str(folder / "recipe.yaml"),
        "--json",
        "--workspace",
        str(store.root),
    ]
    with (folder / "events.jsonl").open("wb") as said, (folder / "errors.txt").open("wb") as beside:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=beside,
            cwd=store.root.parent,  # paths in a recipe are seen from where the workspace lies
            start_new_session=True,  # Ctrl-C at the console's terminal is not meant for it
        )
    _CHILDREN[id] = child
    born = psutil.Process(child.pid).create_time()
    job = Job(id, name, by, datetime.now(UTC).isoformat(), child.pid, born)
    write_atomically(folder / "job.json", json.dumps(asdict(job)).encode())
    return job


def jobs(store: Store) -> list[Job]:
    """Return every run that was started here, the newest first."""
    found = []
    for file in sorted((store.root / "console" / "jobs").glob("*/job.json"), reverse=True):
        try:
            found.append(Job(**json.loads(file.read_bytes())))
        except (OSError, ValueError, TypeError):
            continue  # a console that was killed while it started this one
    return found


def job(store: Store, id: str) -> Job:
    """Return one by its id; raises `NotFound`."""
    found = next((one for one in jobs(store) if one.id == id), None)
    if found is None:
        raise NotFound(f"no run {id!r} was started here", hint="The page of runs shows all that there were.")
    return found


def state(store: Store, job: Job) -> State:
    """Return how a job stands: whether its process lives, or what it said at its end."""
    child = _CHILDREN.get(job.id)
    ended = child is not None and child.poll() is not None
    if not ended and _lives(job):
        return "running"
    said = _last(_folder(store, job.id) / "events.jsonl").get("status")
    return said if said in ("done", "failed", "cancelled") else "interrupted"


def follow(store: Store, job: Job, told: Progress) -> Progress:
    """Read what a job has said since the last time; a line that is not through yet waits for the next time."""
    try:
        with (_folder(store, job.id) / "events.jsonl").open("rb") as stream:
            stream.seek(told.offset)
            block = stream.read()
    except FileNotFoundError:
        return told
    whole = block.rpartition(b"\n")[0]
    told.offset += len(whole) + 1 if whole else 0
    for line in whole.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            _take(told, event)
    return told


def errors(store: Store, job: Job) -> str:
    """Return what a job wrote beside its events, the end of it where it is long."""
    try:
        return (_folder(store, job.id) / "errors.txt").read_bytes()[-MOST_ERROR_BYTES:].decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def stop(store: Store, job: Job) -> None:
    """Ask a job to stop as Ctrl-C does: it leaves a checkpoint, and the same recipe goes on from there."""
    if state(store, job) != "running":
        raise UsageError("this run has ended already")
    os.kill(job.pid, signal.SIGTERM)


def _last(events: Path) -> Mapping[str, Any]:
    """Return the `end`, which is the last line, without those before it: of a training they are millions."""
    try:
        with events.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - MOST_END_BYTES))
            event = json.loads(stream.read().rstrip().rpartition(b"\n")[2])
    except (FileNotFoundError, ValueError):
        return {}
    return event if isinstance(event, dict) and event.get("event") == "end" else {}


def _take(told: Progress, event: Mapping[str, Any]) -> None:
    kind, step = event.get("event"), str(event.get("step") or "")
    if kind == "start":
        told.group = str(event.get("group", ""))
        told.steps = {key: StepState(key) for key in event.get("steps", ())}
    elif kind == "end":
        told.end = event
        told.group = str(event.get("group", told.group))
    elif kind == "step":
        at = told.steps.setdefault(step, StepState(step))
        at.status, at.stage = str(event.get("status", "")), str(event.get("stage", at.stage))
        at.seconds, at.ref = event.get("seconds", at.seconds), str(event.get("ref", at.ref))
        at.message = str(event.get("message", at.message))
    elif kind == "progress":
        told.steps.setdefault(step, StepState(step)).progress = event
    elif kind == "metric" and event.get("at_step") is not None:
        told.steps.setdefault(step, StepState(step)).metrics[str(event.get("name"))] = float(event.get("value") or 0)
    elif kind == "log":
        told.log = [*told.log[-MOST_LOG:], f"{step}: {event.get('message')}" if step else str(event.get("message"))]


def _lives(job: Job) -> bool:
    try:
        process = psutil.Process(job.pid)
        return abs(process.create_time() - job.born) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _folder(store: Store, id: str) -> Path:
    return store.root / "console" / "jobs" / id
