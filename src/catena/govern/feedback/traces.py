"""Traces from the audit: a request and its answer are joined by their id, and with what was said of them.

book (feedback since a cursor) -> ids, data keys -> one pass over the audit's frames, those keys opened -> traces
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from catena.core.registry import require
from catena.core.trace import Rating, Trace
from catena.govern.audit.log import Places
from catena.govern.audit.record import frames, moment, opened
from catena.govern.audit.vault import Vault
from catena.govern.config import AuditConfig, FeedbackConfig
from catena.govern.crypto import sealing_keys
from catena.govern.feedback.book import Book, Entry, book_path
from catena.govern.feedback.texts import TOO_LARGE, Unusable, answered, fingerprint, question

LONGEST = timedelta(hours=6)
"""Between a request and the end of its answer."""
MOST_OPEN = 50_000
"""Requests that wait for their answer while a window is read; beyond it the oldest is taken for unanswered."""
TEXT_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
Pair = tuple[dict[str, Any] | None, dict[str, Any] | None]


class AuditTraces:
    """The traces of a workspace whose servers write an audit."""

    def __init__(self, root: Path, folder: Path | None = None) -> None:
        self._root, self._config = root, AuditConfig(folder=folder)
        self._places = Places(root, self._config)
        self._vault = Vault(self._places.subjects, partial(sealing_keys, root))
        self._invalid = require("cryptography.exceptions").InvalidTag

    def rated(self, since: int, limit: int | None = None) -> tuple[list[Trace], int]:
        """Return the traces whose feedback is new or changed since a cursor, in its order, and the next cursor."""
        if not book_path(self._root).exists():
            return [], since
        with Book(self._root, self._config, FeedbackConfig()) as book:
            said = book.entries(since=since, limit=limit)
        if not said:
            return [], since
        wanted = {one.trace for one in said if not one.erased}
        keys = {key for one in said if not one.erased for key in self._keys_of(one)}
        first = min(datetime.fromtimestamp(one.answered / 1e6, UTC) for one in said) - LONGEST
        pairs: dict[str, Pair] = {}
        for key, entry in self._entries(first, None, keys):
            if entry.get("id") in wanted and entry["kind"] in ("request", "answer"):
                request, answer = pairs.get(entry["id"], (None, None))
                made = {**entry, "data_key": key}
                pairs[entry["id"]] = (made, answer) if entry["kind"] == "request" else (request, made)
        traces = [_rated(one, self._joined(pairs.get(one.trace, (None, None)))) for one in said]
        return traces, max(one.number for one in said)

    def window(self, since: datetime | None, until: datetime | None) -> Iterator[Trace]:
        """Yield all traces of a time that were answered, oldest first; what was said of them is not looked up."""
        waiting: dict[str, dict[str, Any]] = {}
        for key, entry in self._entries(since, until, None):
            if entry["kind"] == "request" and entry.get("path") in TEXT_ROUTES:
                waiting[entry["id"]] = {**entry, "data_key": key}
                while len(waiting) > MOST_OPEN:
                    waiting.pop(next(iter(waiting)))
            elif entry["kind"] == "answer" and (request := waiting.pop(entry.get("id", ""), None)) is not None:
                trace = self._joined((request, {**entry, "data_key": key}))
                if trace is not None:
                    yield trace

    def destroyed(self, keys: Iterable[str]) -> set[str]:
        """Return those of these data keys that exist no more."""
        self._vault.refresh()
        return {key for key in set(keys) if self._vault.cipher(bytes.fromhex(key)) is None}

    # -- the audit ---------------------------------------------------------------------------------------------------

    def _keys_of(self, said: Entry) -> set[bytes]:
        """Return the data keys of who said something: the answer may be sealed with an older one."""
        files = (self._places.subjects / said.tag[:2]).glob(f"{said.tag}.*")
        return {bytes.fromhex(path.suffix[1:]) for path in files}

    def _entries(
        self, since: datetime | None, until: datetime | None, keys: set[bytes] | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (data key, entry) of a time; with `keys`, of these alone."""
        first = 0 if since is None else int(since.timestamp() * 1e6)
        last = None if until is None else int(until.timestamp() * 1e6)
        for path in self._places.segment_files():
            if (since is not None and path.stem < f"{since:%Y-%m-%d}") or path.stat().st_size == 0:
                continue
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for _, frame in frames(data):
                    if frame is None or (last is not None and frame.time >= last):
                        break
                    if frame.time < first or (keys is not None and frame.key not in keys):
                        continue
                    cipher = self._vault.cipher(frame.key)
                    if cipher is None:
                        continue
                    try:
                        entry = opened(frame, cipher)
                    except (self._invalid, ValueError):
                        continue  # `catena audit verify` tells of it
                    at = moment(frame.time)
                    yield frame.key.hex(), {**entry, "time": at.isoformat(timespec="milliseconds") if at else ""}

    def _joined(self, pair: Pair) -> Trace | None:
        """Return the trace of a request and its answer; None where either is not there."""
        request, answer = pair
        if request is None or answer is None:
            return None
        trace = Trace(
            id=str(request["id"]),
            time=str(request["time"]),
            subject=self._vault.tag(str(request.get("subject", ""))),
            key=str(answer["data_key"]),
            model=str(request.get("model", "")),
            digest=fingerprint(answer.get("body")),
            status=int(answer.get("status", 0)),
            ms=float(answer.get("ms", 0.0)),
            decisions=tuple(one for one in answer.get("decisions") or () if isinstance(one, Mapping)),
        )
        if answer.get("cut") or "sha256" in request or "sha256" in answer:  # the latter two: only the beginning is kept
            return replace(trace, problem="cut" if answer.get("cut") else TOO_LARGE)
        try:
            trace = replace(trace, messages=question(str(request.get("path", "")), request.get("body")))
            if trace.status < 400:
                text, finish = answered(answer.get("body"))
                trace = replace(trace, answer=text, finish=finish)
        except Unusable as reason:
            return replace(trace, problem=str(reason))
        return trace


def _rated(said: Entry, trace: Trace | None) -> Trace:
    """Return a trace with what was said of it; one that cannot be read any more has no text."""
    rating: Rating = said.rating
    at = datetime.fromtimestamp(said.answered / 1e6, UTC).isoformat(timespec="milliseconds")
    if said.erased or trace is None:
        problem = "erased" if said.erased else "missing"
        return Trace(said.trace, at, said.tag, said.key, said.model, problem=problem, rating=rating)
    return replace(trace, rating=rating, correction=said.correction, consent=said.consent)
