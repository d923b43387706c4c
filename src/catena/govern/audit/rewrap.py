"""A new sealing key: every data key is opened once and sealed again, while servers write on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catena.govern.audit.log import Log
from catena.govern.crypto import adopt_next_sealing_key, next_sealing_key
from catena.hub.locks import file_lock


def rewrap(log: Log, root: Path, *, by: str) -> dict[str, Any]:
    """Seal all data keys by the next sealing key and put it in the old one's place; returns the act, which is recorded.

    Writers wait meanwhile, and take the new key with their next commit. Raises `ConfigError` where the key is given by
    the environment and the next one is not.
    """
    key = next_sealing_key(root)
    with file_lock(log.places.folder / "write.lock"):
        count = log.vault.rewrap(key)
        adopt_next_sealing_key(root)
    act = {"act": "audit.rewrap", "keys": count, "by": by}
    log.act(act)
    return act
