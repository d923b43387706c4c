"""Forgetting: a subject on demand, and everything after its time. Both leave proof."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from catena.core.digest import sha256_of_file
from catena.core.errors import IntegrityError, NotFound
from catena.govern.audit.checkpoints import Pruned
from catena.govern.audit.log import VERIFY, Log
from catena.govern.audit.record import GENESIS, frames
from catena.govern.audit.verify import verify
from catena.govern.config import AuditConfig
from catena.hub.locks import file_lock


def erase(log: Log, subject: str, *, reason: str, by: str) -> dict[str, Any]:
    """Destroy a subject's data keys; all that was recorded of it is unreadable from now on, and the chain still holds.

    The act is recorded under the subject's keyed hash, not its name. Raises `NotFound` for one with no records.
    """
    with file_lock(log.places.folder / "write.lock"):
        destroyed = log.vault.destroy(subject)
    if not destroyed:
        hint = "A subject is whom a key is for (`catena keys list`); what was erased before cannot be erased again."
        raise NotFound(f"the audit holds nothing that can be read of {subject!r}", hint=hint)
    act = {"act": "audit.erase", "tag": log.vault.tag(subject), "keys": destroyed, "reason": reason, "by": by}
    log.act(act)
    return act


def prune(log: Log, root: Path, config: AuditConfig, *, by: str, dry_run: bool = False) -> list[Pruned]:
    """Delete the segments that are older than `keep_days`; a signed receipt of each says what it held.

    Raises `IntegrityError`, and deletes nothing, where the audit does not verify: what was tampered with stays.
    """
    limit = (datetime.now(UTC) - timedelta(days=config.keep_days)).strftime("%Y-%m-%d")
    old = [path for path in log.places.segment_files() if path.stem < limit]
    if not old:
        return []
    if not verify(root, config).sound:
        raise IntegrityError("the audit does not verify, so nothing is pruned", hint=VERIFY)
    receipts = log.checkpoints.pruned()
    known = {receipt.segment: receipt for receipt in receipts}
    link = receipts[-1].link if receipts else GENESIS.hex()
    gone: list[Pruned] = []
    for path in old:
        if path.stem not in known:
            receipt = _receipt(path, link)
            link = receipt.link
            gone.append(receipt)
            if not dry_run:
                log.checkpoints.add_pruned(receipt)
        if not dry_run:
            path.unlink()
    if gone and not dry_run:
        told = [{"segment": one.segment, "first": one.first, "last": one.last} for one in gone]
        log.act({"act": "audit.prune", "segments": told, "by": by})
    return gone


def _receipt(path: Path, before: str) -> Pruned:
    data = path.read_bytes()
    held = [frame for _, frame in frames(data) if frame is not None]
    return Pruned(
        segment=path.stem,
        first=held[0].seq,
        last=held[-1].seq,
        before=before,
        link=held[-1].link.hex(),
        sha256=sha256_of_file(path),
        bytes=len(data),
        time=time.time_ns() // 1000,
    )
