"""The door: who comes in, and for how long.

    POST /login  key --Access--> session: a random token in a cookie (HttpOnly, SameSite=Strict)
    <workspace>/console/sessions.json  SHA-256 of the token -> id of the key, end, the key sealed under the token

The file opens nothing by itself: the token that opens a session, and unseals the key with which the person asks the
gateway, is in the browser's cookie only; the key never is. Whether a key still opens is asked of `Access` every time.
A workspace without any key has one local administrator on loopback, and the pages say so.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from catena.core.errors import DataError, EnvironmentProblem
from catena.core.registry import require
from catena.govern.access import Access, Denied
from catena.govern.crypto import NONCE_BYTES, aes
from catena.govern.roles import Principal
from catena.hub.files import write_atomically

LOCAL = Principal("local", "admin")
"""Who is there while a workspace has no keys."""
MOST_SESSIONS = 10_000
MOST_WRONG, WRONG_WINDOW_S = 10, 300.0
"""Wrong keys from one address, and the time after which they are forgotten, in seconds."""
MOST_ADDRESSES = 10_000


class TooMany(Denied):
    """Too many wrong keys from one address."""

    def __init__(self) -> None:
        super().__init__("too many wrong keys from here", code="too_many_attempts", status=429)


@dataclass(frozen=True)
class Session:
    """One browser that has signed in."""

    key: str
    """Id of the API key."""
    until: float
    """End, in seconds since 1970."""
    sealed: str
    """The API key under the token, in hexadecimal."""


class Sessions:
    """Sessions of a workspace; they live over a restart of the console."""

    def __init__(self, root: Path, access: Access, *, hours: float, local: bool = True) -> None:
        self._access, self.lifetime_s, self._local = access, hours * 3600, local
        self._file = root / "console" / "sessions.json"
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        self._sessions = _read(self._file)
        self._wrong: dict[str, deque[float]] = {}

    @property
    def local(self) -> bool:
        """Whether anybody on loopback is the administrator: there is no key yet, and it was not ruled out."""
        return self._local and self._access.status()["keys"] == 0

    @property
    def only_keys(self) -> bool:
        """Whether everybody needs a key, also while there is none."""
        return not self._local

    async def open(self, key: str, address: str) -> str:
        """Check an API key and return a new session's token. Raises `Denied`, also for too many wrong ones."""
        wrong = self._wrong.setdefault(address, deque())
        while wrong and wrong[0] < time.monotonic() - WRONG_WINDOW_S:
            wrong.popleft()
        if len(wrong) >= MOST_WRONG:
            raise TooMany
        began = time.monotonic()
        wrong.append(began)  # taken for wrong until it is known to be right: many at once are many
        while len(self._wrong) > MOST_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]
        try:
            principal = await self._access.identify(key)
        except EnvironmentProblem:
            wrong.remove(began)  # nobody looked at it
            raise
        self._wrong.pop(address, None)
        token = secrets.token_urlsafe(32)
        sealed = _seal(token, key)
        self._sessions[_named(token)] = Session(principal.key, time.time() + self.lifetime_s, sealed)
        self._write()
        return token

    def person(self, token: str) -> Principal | None:
        """Return who a token stands for, with the rights of this moment; None where it opens nothing (any more)."""
        session = self._sessions.get(_named(token)) if token else None
        if session is None or session.until < time.time():
            return None
        try:
            return self._access.again(Principal("", "user", session.key))
        except Denied:
            return None

    def key(self, token: str) -> str:
        """Return the API key of a session, empty for the local administrator."""
        session = self._sessions.get(_named(token)) if token else None
        return "" if session is None else _unseal(token, session.sealed)

    def close(self, token: str) -> None:
        """End a session."""
        if self._sessions.pop(_named(token), None) is not None:
            self._write()

    def _write(self) -> None:
        alive = {name: one for name, one in self._sessions.items() if one.until >= time.time()}
        self._sessions = dict(list(alive.items())[-MOST_SESSIONS:])
        body = json.dumps({name: asdict(one) for name, one in self._sessions.items()})
        write_atomically(self._file, body.encode(), mode=0o600)


def _read(file: Path) -> dict[str, Session]:
    try:
        return {name: Session(**one) for name, one in json.loads(file.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file} cannot be read: {error}", hint="Remove it: everybody signs in again.") from error


def _named(token: str) -> str:
    return hashlib.sha256(b"catena console session\n" + token.encode()).hexdigest()


def _under(token: str) -> bytes:
    return hashlib.sha256(b"catena console seal\n" + token.encode()).digest()


def _seal(token: str, key: str) -> str:
    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed: bytes = aes(_under(token)).encrypt(nonce, key.encode(), None)
    return (nonce + sealed).hex()


def _unseal(token: str, sealed: str) -> str:
    raw = bytes.fromhex(sealed)
    try:
        opened: bytes = aes(_under(token)).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None)
    except require("cryptography.exceptions").InvalidTag as error:
        raise DataError("the session is damaged", hint="Sign in again.") from error
    return opened.decode()
