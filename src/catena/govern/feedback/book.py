"""The book of answers and of what was said about them: a SQLite file in the workspace, for several processes.

    answers     (tag, name) -> id in the audit, model, time    who got which answer; a name is what a client calls it
    feedback    (tag, id)   -> rating, consent, sealed words   one for each answer and subject; a later one replaces it

No name of a person and no word of theirs is in it in clear: subjects are keyed hashes, and correction and comment are
sealed with the subject's data key of the audit, so that `catena audit erase` takes them along.

Answers are noted from the event loop at the cost of an append, and written by a thread; what was rated is on the disk
before `rate` returns.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from catena.core.errors import EnvironmentProblem, NotFound, environment_problem
from catena.core.registry import require
from catena.core.trace import Rating
from catena.govern.audit.log import Places
from catena.govern.audit.vault import Vault
from catena.govern.config import AuditConfig, FeedbackConfig
from catena.govern.crypto import NONCE_BYTES, sealing_keys
from catena.hub.locks import file_lock

logger = logging.getLogger(__name__)
FLUSH_S = 0.5
PRUNE_S = 600.0
MOST_WAITING = 200_000
Noted = tuple[str, str, tuple[str, ...], str, int]
"""Subject, trace, what a client may call it, model, and when, in microseconds."""
"""Answers that wait to be written; beyond it the oldest cannot be rated any more."""
BUSY_S = 10.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    tag TEXT NOT NULL, name TEXT NOT NULL, trace TEXT NOT NULL, model TEXT NOT NULL, time INTEGER NOT NULL,
    PRIMARY KEY (tag, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_by_time ON answers (time);
CREATE TABLE IF NOT EXISTS feedback (
    tag TEXT NOT NULL, trace TEXT NOT NULL, name TEXT NOT NULL, model TEXT NOT NULL,
    rating TEXT NOT NULL, consent INTEGER NOT NULL, corrected INTEGER NOT NULL,
    answered INTEGER NOT NULL, created INTEGER NOT NULL, changed INTEGER NOT NULL,
    revision INTEGER NOT NULL, number INTEGER NOT NULL UNIQUE,
    key TEXT NOT NULL, nonce BLOB NOT NULL, sealed BLOB NOT NULL,
    PRIMARY KEY (tag, trace)) WITHOUT ROWID;
"""
COLUMNS = (
    "tag, trace, name, model, rating, consent, corrected, answered, created, changed, revision, number, "
    "key, nonce, sealed"
)


def book_path(root: Path) -> Path:
    """Return where a workspace's book is."""
    return root / "feedback" / "feedback.sqlite"


@dataclass(frozen=True, slots=True)
class Said:
    """What a user says of an answer."""

    rating: Rating
    consent: bool
    correction: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One feedback as it is kept."""

    trace: str
    """Id of the request in the audit."""
    request: str
    """What the client called it."""
    model: str
    rating: Rating
    consent: bool
    corrected: bool
    answered: int
    """Microseconds since 1970, UTC; so are the next two."""
    created: int
    changed: int
    revision: int
    """1 for the first; each change adds one."""
    number: int
    """Rises with every change in the book."""
    tag: str
    key: str
    subject: str = ""
    correction: str = ""
    comment: str = ""
    erased: bool = False
    """Whether its data key was destroyed: the words are gone."""

    @property
    def id(self) -> str:
        """The name under which it is read."""
        return f"fb-{self.trace}-{self.tag[:8]}"


# All rows in one step: `executemany` takes the interpreter's lock for every row, from those who answer requests.
NOTE = """
INSERT OR REPLACE INTO answers
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]')
FROM json_each(?)
"""


class Book:
    """The writing and reading end. Any thread may call; also a context manager."""

    def __init__(self, root: Path, audit: AuditConfig, config: FeedbackConfig) -> None:
        self.root, self.config = root, config
        self.listeners: list[Callable[[str, bool], None]] = []
        """Called with the client's name of a request and whether it was liked, once for each rated answer."""
        self._places = Places(root, audit)
        self._vault = Vault(self._places.subjects, partial(sealing_keys, root))
        self._invalid = require("cryptography.exceptions").InvalidTag
        self._lock = threading.RLock()
        self._waiting: deque[Noted] = deque(maxlen=MOST_WAITING)
        self._ended = threading.Event()
        self._pruned = time.monotonic()
        path = book_path(root)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            self._db.close()
            raise EnvironmentProblem(f"the book of feedback {path} cannot be used: {error}") from error
        self._thread = threading.Thread(target=self._run, name="catena-feedback", daemon=True)
        self._thread.start()

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits, and stop."""
        self._ended.set()
        self._thread.join(30)
        with self._lock:
            self._db.close()

    # -- answers -----------------------------------------------------------------------------------------------------

    def note(self, subject: str, trace: str, names: Sequence[str], model: str) -> None:
        """Note that a subject got an answer, and what a client may call it. Never waits."""
        self._waiting.append((subject, trace, tuple(names), model, time.time_ns() // 1000))

    def flush(self) -> int:
        """Write the answers that wait; returns how many. Where they cannot be written they wait on."""
        with self._lock:
            batch = []
            while self._waiting:
                batch.append(self._waiting.popleft())
            if batch:
                try:
                    self._write(batch)
                except BaseException:
                    self._waiting.extendleft(reversed(batch))
                    raise
            return len(batch)

    def _write(self, batch: Sequence[Noted]) -> None:
        tags: dict[str, str] = {}
        rows = []
        for subject, trace, names, model, at in batch:
            tag = tags.get(subject) or tags.setdefault(subject, self._vault.tag(subject))
            rows += [(tag, name, trace, model, at) for name in dict.fromkeys((trace, *names)) if name]
        with self._writing():
            self._db.execute(NOTE, (orjson.dumps(rows).decode(),))

    def _run(self) -> None:
        while not self._ended.wait(FLUSH_S):
            self._tidy()
        self._tidy()

    def _tidy(self) -> None:
        try:
            self.flush()
            if time.monotonic() - self._pruned >= PRUNE_S:
                self.prune()
        except Exception:
            logger.exception("answers could not be noted for feedback")

    def prune(self) -> int:
        """Forget answers that are too old to be rated, or too many; returns how many rows went."""
        self._pruned = time.monotonic()
        oldest = time.time_ns() // 1000 - int(self.config.keep_days * 86400e6)
        with self._lock, self._writing():
            gone = self._db.execute("DELETE FROM answers WHERE time < ?", (oldest,)).rowcount
            (count,) = self._db.execute("SELECT count(*) FROM answers").fetchone()
            if count > self.config.most_answers:
                many = count - self.config.most_answers
                edge = self._db.execute("SELECT time FROM answers ORDER BY time LIMIT 1 OFFSET ?", (many,)).fetchone()
                gone += self._db.execute("DELETE FROM answers WHERE time < ?", edge).rowcount
        return int(gone)

    # -- feedback ----------------------------------------------------------------------------------------------------

    def rate(self, subject: str, name: str, said: Said) -> tuple[Entry, bool]:
        """Keep what a subject says of an answer that it got; returns it, and whether that changed anything.

        The same again changes nothing; something else replaces it. Raises `NotFound` for an answer that this subject
        did not get, or that is too old: the two are not told apart.
        """
        self.flush()
        with self._lock, self._writing():
            self._vault.refresh()
            tag = self._vault.tag(subject)
            found = self._db.execute(
                "SELECT trace, model, time FROM answers WHERE tag = ? AND name = ?", (tag, name)
            ).fetchone()
            if found is None:
                raise NotFound(
                    f"there is no answer {name!r} that this key got",
                    hint="Send the `x-request-id` or the `id` of an answer, with the key that asked.",
                )
            trace, model, answered = found
            before = self._one(tag, trace)
            if before is not None and not before.erased and _same(before, said):
                return before, False
            key, cipher = self._key_for(subject)
            words = {"subject": subject, "correction": said.correction, "comment": said.comment}
            nonce = secrets.token_bytes(NONCE_BYTES)
            sealed = cipher.encrypt(nonce, orjson.dumps(words), _about(tag, trace))
            at = time.time_ns() // 1000
            (number,) = self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM feedback").fetchone()
            created, revision = (before.created, before.revision + 1) if before is not None else (at, 1)
            self._db.execute(
                f"INSERT OR REPLACE INTO feedback ({COLUMNS}) VALUES ({', '.join('?' * 15)})",
                (
                    *(tag, trace, name, model, said.rating, said.consent, bool(said.correction)),
                    *(answered, created, at, revision, number, key.hex(), nonce, sealed),
                ),
            )
            made = self._one(tag, trace)
            assert made is not None
            return made, True

    def entries(self, *, since: int = 0, model: str = "", rating: str = "", limit: int | None = None) -> list[Entry]:
        """Return feedback whose number is above `since`, in the order of the last change."""
        conditions, values = ["number > ?"], [since]
        for column, value in (("model", model), ("rating", rating)):
            if value:
                conditions.append(f"{column} = ?")
                values.append(value)  # type: ignore[arg-type]
        query = f"SELECT {COLUMNS} FROM feedback WHERE {' AND '.join(conditions)} ORDER BY number LIMIT ?"
        with self._lock:
            self._vault.refresh()
            return [self._entry(row) for row in self._db.execute(query, (*values, -1 if limit is None else limit))]

    def entry(self, id: str) -> Entry:
        """Return one feedback by its id; raises `NotFound`."""
        trace, _, tag = id.removeprefix("fb-").partition("-")
        query = f"SELECT {COLUMNS} FROM feedback WHERE trace = ? AND substr(tag, 1, 8) = ?"
        with self._lock:
            self._vault.refresh()
            row = self._db.execute(query, (trace, tag)).fetchone()
            if row is None:
                raise NotFound(f"there is no feedback {id!r}", hint="GET /v1/feedback lists them.")
            return self._entry(row)

    def counts(self) -> dict[tuple[str, str], int]:
        """Return how many answers of each model have each rating."""
        with self._lock:
            rows = self._db.execute("SELECT model, rating, count(*) FROM feedback GROUP BY model, rating").fetchall()
        return {(model, rating or "none"): count for model, rating, count in rows}

    def _one(self, tag: str, trace: str) -> Entry | None:
        query = f"SELECT {COLUMNS} FROM feedback WHERE tag = ? AND trace = ?"
        row = self._db.execute(query, (tag, trace)).fetchone()
        return None if row is None else self._entry(row)

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        tag, trace, name, model, rating, consent, corrected, answered, created, changed, revision, number, *rest = row
        key, nonce, sealed = rest
        cipher = self._vault.cipher(bytes.fromhex(key))
        words: dict[str, str] = {}
        if cipher is not None:
            try:
                words = orjson.loads(cipher.decrypt(nonce, sealed, _about(tag, trace)))
            except self._invalid:
                logger.error("the feedback on %s is damaged", trace)
        return Entry(
            *(trace, name, model, rating, bool(consent), bool(corrected), answered, created, changed),
            *(revision, number, tag, key),
            subject=words.get("subject", ""),
            correction=words.get("correction", ""),
            comment=words.get("comment", ""),
            erased=cipher is None,
        )

    def _key_for(self, subject: str) -> tuple[bytes, Any]:
        # The audit makes keys under this lock too: the same subject must not get two.
        with file_lock(self._places.folder / "write.lock"):
            self._vault.refresh()
            return self._vault.key_for(subject)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise EnvironmentProblem(f"the book of feedback cannot be written: {error}") from error
        except OSError as error:
            raise environment_problem(error, self._places.folder) or error from error


def _about(tag: str, trace: str) -> bytes:
    return f"catena feedback {tag} {trace}".encode()


def _same(entry: Entry, said: Said) -> bool:
    kept = (entry.rating, entry.consent, entry.correction, entry.comment)
    return kept == (said.rating, said.consent, said.correction, said.comment)
