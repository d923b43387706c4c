"""How the workspace's index stands while a gateway runs: it may start without it, says so, and goes on when it answers.

Which weights a deploy file's names stood for is remembered (`resolved.json` in the state folder), so that a name can be
served while the index cannot be asked what it stands for.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

from catena.core.errors import CatenaError, EnvironmentProblem
from catena.core.types import ModelVersion
from catena.hub.files import write_atomically
from catena.hub.store import Store

logger = logging.getLogger(__name__)
LOOK_S = 2.0
RESOLVED = "resolved.json"


class Standing:
    """What is known of the index."""

    def __init__(self, store: Store, state: Path) -> None:
        self._store, self._file = store, state / RESOLVED
        self.problem = store.away.message if store.away is not None else ""
        """Why the index cannot be used; empty while it can."""
        if self.problem:
            logger.warning("starting without the index, with what was known: %s", self.problem)

    def digest_of(self, ref: str) -> str:
        """Return the digest of a stored model; while the index is away, what it was when it last answered.

        Raises `EnvironmentProblem` where that is not known, and `NotFound` as the index does.
        """
        known = self._known()
        try:
            digest = self._store.resolve(ref, ModelVersion).digest
        except EnvironmentProblem:
            if ref not in known:
                raise
            return known[ref]
        if known.get(ref) != digest:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps({**known, ref: digest}, indent=2).encode() + b"\n")
        return digest

    async def watch(self) -> None:
        """Look again and again, until cancelled; what changes is logged."""
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Ask the index once; an older one that comes back is brought up to date."""
        try:
            self._store.check()
        except CatenaError as error:
            if not self.problem:
                logger.warning("the index is away; what is known goes on: %s", error)
            self.problem = error.message
        else:
            if self.problem:
                logger.warning("the index answers again")
            self.problem = ""

    def _known(self) -> dict[str, str]:
        try:
            told = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return {str(ref): str(digest) for ref, digest in told.items()} if isinstance(told, dict) else {}
