"""The workspace's secrets for governance: a signing key (Ed25519) and a sealing key (AES-256), made when needed.

<workspace>/keys/govern.key    the private signing key, for its owner's eyes only (mode 0600)
            keys/govern.pub    the public key, 32 bytes in hexadecimal: give it to whoever has to check
            keys/audit.key     wraps the audit's data keys (0600); `CATENA_AUDIT_KEY` takes its place
            keys/audit.key.new takes its place when `catena audit rewrap` is through

Every signature is over a purpose and a message, so that what was signed for one thing never passes for another.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from catena.core.errors import ConfigError, IntegrityError
from catena.core.registry import require
from catena.hub.files import rename_durably, write_atomically
from catena.hub.locks import file_lock

PRIVATE, PUBLIC, SEALING = "govern.key", "govern.pub", "audit.key"
SEALING_VARIABLE = "CATENA_AUDIT_KEY"
NEXT, NEXT_VARIABLE = "audit.key.new", "CATENA_AUDIT_KEY_NEW"
KEY_BYTES = 32
NONCE_BYTES = 12


class Signer:
    """Signs and checks in the workspace's name. The private key is read once."""

    def __init__(self, private: Any, public: Any) -> None:
        self._private, self._public = private, public

    @property
    def public_hex(self) -> str:
        """The public key in hexadecimal."""
        raw: bytes = self._public.public_bytes_raw()
        return raw.hex()

    def sign(self, purpose: str, message: bytes) -> str:
        """Return the signature in hexadecimal."""
        signature: bytes = self._private.sign(_framed(purpose, message))
        return signature.hex()

    def holds(self, purpose: str, message: bytes, signature: str) -> bool:
        """Tell whether a signature is this workspace's own over exactly this."""
        invalid = require("cryptography.exceptions").InvalidSignature
        try:
            self._public.verify(bytes.fromhex(signature), _framed(purpose, message))
        except (invalid, ValueError):
            return False
        return True


def _framed(purpose: str, message: bytes) -> bytes:
    return f"catena {purpose} v1\n".encode() + message


def open_signer(root: Path) -> Signer:
    """Return the workspace's signer; its key is made when there is none. Raises `IntegrityError` for a damaged one."""
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519")
    raw = _kept(root, PRIVATE, lambda: ed25519.Ed25519PrivateKey.generate().private_bytes_raw())
    private = ed25519.Ed25519PrivateKey.from_private_bytes(raw)
    public = private.public_key()
    told = root / "keys" / PUBLIC
    if not told.exists():
        write_atomically(told, public.public_bytes_raw().hex().encode() + b"\n")
    return Signer(private, public)


def sealing_key(root: Path) -> bytes:
    """Return the key that wraps the audit's data keys: of the environment, else the workspace's own."""
    if os.environ.get(SEALING_VARIABLE):
        return _given(SEALING_VARIABLE)
    return _kept(root, SEALING, lambda: secrets.token_bytes(KEY_BYTES))


def sealing_keys(root: Path) -> list[bytes]:
    """Return the sealing key, and behind it the one that is to take its place while keys are wrapped anew."""
    keys = [sealing_key(root)]
    if os.environ.get(SEALING_VARIABLE):
        keys += [_given(NEXT_VARIABLE)] if os.environ.get(NEXT_VARIABLE) else []
    elif (root / "keys" / NEXT).exists():
        keys.append(_kept(root, NEXT, None))
    return keys


def next_sealing_key(root: Path) -> bytes:
    """Return the key that is to take the sealing key's place, made when there is none. Raises `ConfigError`."""
    if not os.environ.get(SEALING_VARIABLE):
        return _kept(root, NEXT, lambda: secrets.token_bytes(KEY_BYTES))
    if not os.environ.get(NEXT_VARIABLE):
        raise ConfigError(
            f"the sealing key is that of {SEALING_VARIABLE}, so the next one must be in {NEXT_VARIABLE}",
            hint=f'For example: export {NEXT_VARIABLE}="$(openssl rand -hex {KEY_BYTES})"',
        )
    return _given(NEXT_VARIABLE)


def adopt_next_sealing_key(root: Path) -> None:
    """Put the next key in the sealing key's place, where both are files; the old one is written over first."""
    path = root / "keys" / SEALING
    if os.environ.get(SEALING_VARIABLE):
        return
    with file_lock(root / "locks" / "keys.lock"):
        write_over(path)
        rename_durably(root / "keys" / NEXT, path)


def write_over(path: Path) -> None:
    """Write random bytes over a secret that is about to go."""
    with path.open("r+b") as stream:
        stream.write(secrets.token_bytes(path.stat().st_size))
        stream.flush()
        os.fsync(stream.fileno())


def _given(variable: str) -> bytes:
    given = os.environ.get(variable, "")
    try:
        key = bytes.fromhex(given)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{variable} is not a key of {KEY_BYTES} bytes in hexadecimal",
            hint=f'For example: export {variable}="$(openssl rand -hex {KEY_BYTES})"',
        )
    return key


def aes(key: bytes) -> Any:
    """Return AES-256-GCM under a key."""
    return require("cryptography.hazmat.primitives.ciphers.aead").AESGCM(key)


def _kept(root: Path, name: str, make: Any) -> bytes:
    folder = root / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / name
    with file_lock(root / "locks" / "keys.lock"):
        if not path.exists():
            write_atomically(path, make(), mode=0o600)
    raw = path.read_bytes()
    if len(raw) != KEY_BYTES:
        raise IntegrityError(f"the key {path} is damaged", hint="Restore it from a copy.")
    return raw
