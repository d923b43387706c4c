"""The workspace's signing key (Ed25519): it vouches for tombstones, and for commits that an erasure rewrote.

<workspace>/keys/erasure.key   the private key, for its owner's eyes only (mode 0600)
            keys/erasure.pub   the public key, 32 bytes in hexadecimal: give it to whoever has to check
"""

from __future__ import annotations

from pathlib import Path

from catena.core.registry import require
from catena.hub.files import write_atomically
from catena.hub.locks import file_lock

PRIVATE, PUBLIC = "erasure.key", "erasure.pub"


def sign(root: Path, message: str) -> str:
    """Return the signature of a text in hexadecimal; the key is made when it is first needed."""
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "data")
    folder = root / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    with file_lock(root / "locks" / "keys.lock"):
        if not (folder / PRIVATE).exists():
            fresh = ed25519.Ed25519PrivateKey.generate()
            write_atomically(folder / PUBLIC, fresh.public_key().public_bytes_raw().hex().encode() + b"\n")
            write_atomically(folder / PRIVATE, fresh.private_bytes_raw(), mode=0o600)
    key = ed25519.Ed25519PrivateKey.from_private_bytes((folder / PRIVATE).read_bytes())
    signature: bytes = key.sign(message.encode())
    return signature.hex()


def signature_holds(root: Path, message: str, signature: str | None) -> bool:
    """Tell whether a signature is the workspace's own over this text."""
    public = root / "keys" / PUBLIC
    if signature is None or not public.exists():
        return False
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "data")
    exceptions = require("cryptography.exceptions", "data")
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public.read_text().strip()))
    try:
        key.verify(bytes.fromhex(signature), message.encode())
    except (exceptions.InvalidSignature, ValueError):
        return False
    return True
