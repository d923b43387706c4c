"""API keys: `ctn_<id>_<secret>`. The secret is shown once; stored is its scrypt hash, in the workspace's index.

create -> the key, once          revoke -> refused from the next look at the index on
rotate -> a new key with the same rights; the old one goes on for a time of grace
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Connection, insert, select, update

from catena.core.errors import NotFound, UsageError, did_you_mean
from catena.core.types import Value
from catena.govern.roles import Action, Principal, Role
from catena.hub.index import Index, now
from catena.hub.schema import api_keys

PREFIX = "ctn"
FORM = re.compile(r"ctn_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
SUBJECT = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
# RFC 7914; 16 MiB and some 30 ms. The secret has 256 bits, so this is a second wall and not the only one.
SCRYPT = {"n": 1 << 14, "r": 8, "p": 1, "dklen": 32}
State = Literal["active", "expired", "revoked"]


class KeyRecord(Value):
    """A key as it is stored: everything but the secret."""

    id: str
    """Stands in the key itself, and is how people and the audit name it."""
    name: str
    """What it is for."""
    subject: str
    """Whom it belongs to."""
    role: Role
    models: tuple[str, ...] = ("*",)
    actions: tuple[Action, ...] | None = None
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    successor: str | None = None
    """Id of the key that took its place."""
    salt: str
    hash: str

    def state(self, at: datetime) -> State:
        """Tell whether it opens anything at a time."""
        if self.revoked is not None and self.revoked <= at:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= at else "active"

    def principal(self) -> Principal:
        """Return who asks with it."""
        return Principal(self.subject, self.role, self.id, self.models, self.actions)

    def shown(self, at: datetime) -> dict[str, object]:
        """Return what people may see."""
        body = self.model_dump(mode="json", exclude={"salt", "hash"})
        return {**body, "prefix": f"{PREFIX}_{self.id}", "state": self.state(at)}


def hashed(secret: str, salt: str) -> str:
    """Return the slow hash of a secret in hexadecimal."""
    return hashlib.scrypt(secret.encode(), salt=bytes.fromhex(salt), **SCRYPT).hex()


def split(key: str) -> tuple[str, str] | None:
    """Return a key's id and secret, or None for what is no key of ours."""
    match = FORM.fullmatch(key)
    return None if match is None else (match[1], match[2])


def opens(record: KeyRecord, secret: str) -> bool:
    """Tell whether a secret is the record's, in the same time whatever is wrong with it."""
    return hmac.compare_digest(hashed(secret, record.salt), record.hash)


def fresh(record: KeyRecord) -> tuple[str, KeyRecord]:
    """Return a new key, and the record with its hash."""
    secret, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
    return f"{PREFIX}_{record.id}_{secret}", record.model_copy(update={"salt": salt, "hash": hashed(secret, salt)})


class Keys:
    """The keys of a workspace. Each method is one transaction."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def create(
        self,
        name: str,
        role: Role,
        *,
        subject: str = "",
        models: tuple[str, ...] = ("*",),
        actions: tuple[Action, ...] | None = None,
        lifetime: timedelta | None = None,
    ) -> tuple[str, KeyRecord]:
        """Make a key; returns it and its record. `subject` is by default the name."""
        for text in (name, subject or name, *models):
            if not SUBJECT.fullmatch(text):
                raise UsageError(f"{text!r} cannot name a key, a subject or a model", hint="1 to 200 characters.")
        at = now()
        expires = None if lifetime is None else at + lifetime
        blank = KeyRecord(
            id=secrets.token_hex(6),
            name=name,
            subject=subject or name,
            role=role,
            models=models,
            actions=actions,
            created=at,
            expires=expires,
            salt="",
            hash="",
        )
        key, record = fresh(blank)
        with self._write() as connection:
            _add(connection, record)
        return key, record

    def all(self) -> list[KeyRecord]:
        """Return every key, oldest first."""
        query = select(api_keys.c.body).order_by(api_keys.c.created, api_keys.c.id)
        with self._index.translated(), self._index.engine.connect().execution_options(reads=True) as connection:
            return [KeyRecord.model_validate_json(body) for body in connection.execute(query).scalars()]

    def find(self, ref: str) -> KeyRecord:
        """Return a key by id, prefix or name; raises `NotFound` or, for a name of several, `UsageError`."""
        return _found(self.all(), ref)

    def revoke(self, ref: str) -> list[KeyRecord]:
        """Let a key open nothing any more; a name means also those of that name that go on for a time of grace.

        Returns the key, then those.
        """
        at = now()
        with self._write() as connection:
            records = _all(connection)
            found = _found(records, ref)
            graced = [one for one in records if one.successor and one.state(at) == "active"]
            ended = [found, *(one for one in graced if one.name == ref != found.id and one is not found)]
            for number, record in enumerate(ended):
                if record.revoked is None or record.revoked > at:
                    ended[number] = record.model_copy(update={"revoked": at})
                    _put(connection, ended[number])
        return ended

    def rotate(self, ref: str, *, grace: timedelta = timedelta(0)) -> tuple[str, KeyRecord]:
        """Make a key with the same rights and lifetime; the old one is refused after `grace`."""
        at = now()
        with self._write() as connection:
            old = _found(_all(connection), ref)
            if old.state(at) != "active":
                raise UsageError(f"the key {old.id} is {old.state(at)}", hint="Make a new one: catena keys create.")
            if old.successor:
                raise UsageError(f"the key {old.id} was rotated already: {old.successor} took its place")
            lifetime = None if old.expires is None else old.expires - old.created
            key, new = fresh(
                old.model_copy(
                    update={
                        "id": secrets.token_hex(6),
                        "created": at,
                        "expires": None if lifetime is None else at + lifetime,
                    }
                )
            )
            _add(connection, new)
            _put(connection, old.model_copy(update={"revoked": at + grace, "successor": new.id}))
        return key, new

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._index.translated(), self._index.engine.begin() as connection:
            yield connection


def _all(connection: Connection) -> list[KeyRecord]:
    query = select(api_keys.c.body).order_by(api_keys.c.created).with_for_update()
    return [KeyRecord.model_validate_json(body) for body in connection.execute(query).scalars()]


def _add(connection: Connection, record: KeyRecord) -> None:
    values = {"id": record.id, "created": record.created, "body": record.model_dump_json()}
    connection.execute(insert(api_keys).values(values))


def _put(connection: Connection, record: KeyRecord) -> None:
    change = update(api_keys).where(api_keys.c.id == record.id)
    connection.execute(change.values(body=record.model_dump_json()))


def _found(records: list[KeyRecord], ref: str) -> KeyRecord:
    wanted = ref.removeprefix(f"{PREFIX}_").partition("_")[0] if ref.startswith(f"{PREFIX}_") else ref
    by_id = [record for record in records if record.id == wanted]
    named = by_id or [record for record in records if record.name == ref]
    if len(named) > 1:
        last = [record for record in named if record.successor is None]
        alive = [record for record in last if record.state(now()) == "active"]
        named = next((some for some in (alive, last) if len(some) == 1), named)
    if len(named) == 1:
        return named[0]
    if named:
        raise UsageError(f"{len(named)} keys are named {ref!r}", hint="Give the id: catena keys list.")
    hint = did_you_mean(ref, {record.name for record in records}) or "`catena keys list` shows them."
    raise NotFound(f"there is no key {ref!r}", hint=hint)
