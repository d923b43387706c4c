"""Check an audit with the public key alone: python scripts/verify_audit.py AUDIT CHECKPOINTS PUBLIC_KEY_FILE

Shares no code with Catena, so that one mistake cannot hide in both. Prints what it found; exit code 1 if not all holds.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def signed(key: Ed25519PublicKey, purpose: str, line: bytes) -> dict | None:
    """Return a line's content if its signature is the workspace's own."""
    try:
        body = json.loads(line)
        signature = bytes.fromhex(body.pop("signature"))
        message = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        key.verify(signature, f"catena {purpose} v1\n{message}".encode())
    except (ValueError, KeyError, TypeError, AttributeError, InvalidSignature):
        return None
    return body


def main(audit: Path, checkpoints: Path, public: Path) -> int:
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public.read_text().strip()))
    raw = (checkpoints / "tip").read_bytes()
    slots = [raw[at : at + 512].rstrip() for at in range(0, len(raw), 512)]
    marks = [signed(key, "audit checkpoint", line) for line in slots + lines(checkpoints / "log.jsonl")]
    receipts = [signed(key, "audit pruned", line) for line in lines(checkpoints / "pruned.jsonl")]
    if None in marks or None in receipts:
        print("a signature does not hold")
        return 1
    links = {mark["seq"]: mark["link"] for mark in marks}
    seq, link = (receipts[-1]["last"], bytes.fromhex(receipts[-1]["link"])) if receipts else (0, bytes(32))
    for path in sorted((audit / "segments").glob("*.log")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            _, length, number = struct.unpack_from(">4sIQ", data[at : at + 16].ljust(16, b"\0"))
            end, seq = at + 52 + length, seq + 1
            link = hashlib.sha256(link + data[at:end]).digest()
            whole = data[end : end + 36] == link + struct.pack(">I", 88 + length)
            if not whole or number != seq or links.get(seq, link.hex()) != link.hex():
                print(f"{path.name}: record {seq}, at byte {at}, is not what was written")
                return 1
            at = end + 36
    if max(links, default=0) > seq:
        print(f"records {seq + 1} to {max(links)} are missing")
        return 1
    print(f"{seq} records hold")
    return 0


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
