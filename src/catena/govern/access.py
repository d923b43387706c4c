"""Who asks: from a credential to a `Principal`, in microseconds, also while the index is away.

    index --every 2 s--> records in memory --signed--> <workspace>/keys/access.json
    credential --keyed digest--> known? -> record's state now -> Principal
                              \\-> scrypt, in a thread, few at once -> known from then on

The first use of a key costs one scrypt; every further use one keyed hash and one look-up. A key that is in no record
may have been made just now: the index is asked at once, a few times a second at most. Expiry and revocation are
judged at every use. When the index cannot be asked, the records of the last time go on, also over a restart: the copy
on disk is signed, and too old a copy opens nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from catena.core.errors import CatenaError, EnvironmentProblem, UsageError
from catena.govern import keys
from catena.govern.config import AuthConfig
from catena.govern.crypto import Signer
from catena.govern.keys import KeyRecord
from catena.govern.roles import Principal
from catena.hub.files import write_atomically

logger = logging.getLogger(__name__)
SNAPSHOT = "access.json"
PURPOSE = "access snapshot"
MOST_KNOWN = 10_000
MOST_WAITING = 64
"""First uses that may wait for their scrypt; more are told to come back."""
LOOK_S = 0.25
"""After one look for a key that was made just now, so long there is none, in seconds: strangers may send anything."""
LOOK_WAIT_S = 1.0
"""So long such a key waits for the index, in seconds."""


class Denied(UsageError):
    """A request without the right to what it asks; `code` is for machines."""

    def __init__(self, message: str, *, code: str, status: int = 401) -> None:
        super().__init__(message)
        self.code = code
        self.http_status = status


NO_CREDENTIAL = "this server needs an API key: send it as Authorization: Bearer ctn_..."


class Access:
    """Checks credentials. `load` asks the index for all records."""

    def __init__(
        self,
        load: Callable[[], Sequence[KeyRecord]],
        root: Path,
        signer: Signer,
        config: AuthConfig,
        tokens: Callable[[str], Principal] | None = None,
    ) -> None:
        self._load, self._config, self._tokens = load, config, tokens
        self._file, self._signer = root / "keys" / SNAPSHOT, signer
        self._records: dict[str, KeyRecord] = {}
        self._loaded: datetime | None = None
        self._problem = ""
        self._secret = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._checking: dict[bytes, asyncio.Future[Any]] = {}
        self._refreshing = threading.Lock()
        self._looking: asyncio.Future[bool] | None = None
        self._looked_at = 0.0
        # Two, or a provider that hangs while its keys are fetched would keep ours from being checked.
        self._for_keys, self._for_tokens = _Desk("catena-keys"), _Desk("catena-tokens")
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # -- records -----------------------------------------------------------------------------------------------------

    def open(self) -> Access:
        """Read the records, from the index or else from the signed copy, and go on looking for changes."""
        if not self.refresh():
            self._read_snapshot()
        self._thread = threading.Thread(target=self._watch, name="catena-access", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(10)
        self._for_keys.close()
        self._for_tokens.close()

    def refresh(self) -> bool:
        """Ask the index once; tells whether it answered."""
        with self._refreshing:  # an older answer must not take the place of a newer one
            return self._refresh()

    def _refresh(self) -> bool:
        try:
            records = self._load()
        except CatenaError as error:
            if not self._problem:
                logger.warning("keys are checked by what was known: %s", error)
            self._problem = error.message
            return False
        if self._problem:
            logger.warning("the index answers again: keys are up to date")
        self._problem = ""
        found = {record.id: record for record in records}
        changed = found != self._records or self._loaded is None
        self._records, self._loaded = found, datetime.now(UTC)
        if changed:
            self._wrong = OrderedDict()  # what did not open an older record may open a newer one
        # The copy also tells when it was last true, so it is renewed now and then without a change.
        if changed or self._copy_is_old():
            self._write_snapshot()
        return True

    def status(self) -> dict[str, Any]:
        """Tell how old the knowledge is, for health and metrics."""
        return {"keys": len(self._records), "loaded": self._loaded, "problem": self._problem}

    def _watch(self) -> None:
        while not self._ended.wait(self._config.refresh_s):
            try:
                self.refresh()
            except Exception:
                logger.exception("looking for changed keys failed")

    def _copy_is_old(self) -> bool:
        try:
            age = datetime.now(UTC).timestamp() - self._file.stat().st_mtime
        except OSError:
            return True
        return age > min(600.0, self._config.stale_after_h * 900)

    def _write_snapshot(self) -> None:
        assert self._loaded is not None
        body = json.dumps(
            {
                "loaded": self._loaded.isoformat(),
                "keys": [record.model_dump(mode="json") for record in self._records.values()],
            }
        )
        signature = self._signer.sign(PURPOSE, body.encode())
        try:
            write_atomically(self._file, json.dumps({"body": body, "signature": signature}).encode(), mode=0o600)
        except OSError as error:
            logger.warning("the copy of the keys cannot be written: %s", error)

    def _read_snapshot(self) -> None:
        try:
            copy = json.loads(self._file.read_bytes())
            body = str(copy["body"])
            if not self._signer.holds(PURPOSE, body.encode(), str(copy["signature"])):
                raise EnvironmentProblem(
                    "the index cannot be asked, and the copy of the keys is not the workspace's own",
                    hint=f"Remove {self._file} and bring the database back.",
                )
            told = json.loads(body)
            records = [KeyRecord.model_validate(one) for one in told["keys"]]
            loaded = datetime.fromisoformat(told["loaded"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise EnvironmentProblem(
                f"the index cannot be asked ({self._problem}), and there is no copy of the keys", hint="Start it first."
            ) from error
        self._records, self._loaded = {record.id: record for record in records}, loaded
        logger.warning("started without the index: keys are those of %s", loaded.isoformat())

    # -- checking ----------------------------------------------------------------------------------------------------

    async def identify(self, credential: str) -> Principal:
        """Return who asks; raises `Denied` 401."""
        if not credential:
            raise Denied(NO_CREDENTIAL, code="missing_api_key")
        self._require_knowledge()
        shown = credential.encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(shown, key=self._secret, digest_size=32).digest()
        known = self._known.get(digest)
        if known is not None:
            return self._judge(known)
        if digest in self._wrong:
            raise _invalid()
        if self._tokens is not None and not credential.startswith(f"{keys.PREFIX}_"):
            principal: Principal = await self._for_tokens.run(self._tokens, credential)
            return principal
        parts = keys.split(credential)
        record = None if parts is None else self._records.get(parts[0])
        if parts is not None and record is None and await self._looks():
            record = self._records.get(parts[0])
        if parts is None or record is None:
            raise _invalid()  # not remembered: it costs nothing to find out, and the key may be made in a moment
        if not await self._opens(digest, record, parts[1]):
            _remember(self._wrong, digest, None)
            raise _invalid()
        _remember(self._known, digest, record.id)
        return self._judge(record.id)

    def again(self, principal: Principal) -> Principal:
        """Return who had asked, with the rights that the key has now; raises `Denied` where it opens nothing now.

        For work that goes on after its request. A token is not kept, so that whoever came with one stays who they were.
        """
        self._require_knowledge()
        return principal if principal.key == "jwt" else self._judge(principal.key)

    def _require_knowledge(self) -> None:
        limit = timedelta(hours=self._config.stale_after_h)
        if self._loaded is None or datetime.now(UTC) - self._loaded > limit:
            raise EnvironmentProblem("keys could not be checked for too long: the index is away", hint="Bring it back.")

    def _judge(self, id: str) -> Principal:
        record = self._records.get(id)
        if record is None:
            raise _invalid()
        state = record.state(datetime.now(UTC))
        if state != "active":
            raise Denied(f"the API key {keys.PREFIX}_{id} is {state}", code=f"{state}_api_key")
        return record.principal()

    async def _opens(self, digest: bytes, record: KeyRecord, secret: str) -> bool:
        """Tell whether a secret opens a key; many who ask with the same one at once wait for one answer."""
        checking = self._checking.get(digest)
        if checking is None:
            checking = self._checking[digest] = asyncio.ensure_future(self._for_keys.run(keys.opens, record, secret))
            checking.add_done_callback(lambda _: self._checking.pop(digest, None))
        return bool(await asyncio.shield(checking))

    async def _looks(self) -> bool:
        """Ask the index for what was made just now, once for all who come meanwhile; tells whether it was asked."""
        if self._looking is None:
            if self._problem or time.monotonic() - self._looked_at < LOOK_S:
                return False
            self._looking = asyncio.ensure_future(asyncio.to_thread(self.refresh))
            self._looking.add_done_callback(self._has_looked)
        done, _ = await asyncio.wait({self._looking}, timeout=LOOK_WAIT_S)
        return bool(done)

    def _has_looked(self, looking: asyncio.Future[bool]) -> None:
        self._looking, self._looked_at = None, time.monotonic()
        if not looking.cancelled() and looking.exception() is not None:
            logger.error("looking for new keys failed", exc_info=looking.exception())


class _Desk:
    """A thread that checks credentials, and a bound for those who wait for it."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting = 0

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what work says; raises `EnvironmentProblem` where too many wait."""
        if self._waiting >= MOST_WAITING:
            raise EnvironmentProblem("too many new credentials at once", hint="Try again in a moment.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        finally:
            self._waiting -= 1


def _invalid() -> Denied:
    return Denied("the API key is not valid", code="invalid_api_key")


def _remember(cache: OrderedDict[bytes, Any], digest: bytes, value: Any) -> None:
    cache[digest] = value
    while len(cache) > MOST_KNOWN:
        cache.popitem(last=False)
