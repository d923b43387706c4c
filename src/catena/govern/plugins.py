"""Plugins: an index to search and to install from. It is one file of JSON, beside wheels or with their URLs.

    {"format": 1, "plugins": [{"name", "version", "summary", "license", "adds": ["filter:shout"],
                               "file", "size", "sha256", "requires": [], "key", "signature"}]}

Each entry is signed (Ed25519) by who publishes it, over everything in it. Whoever serves the index, or a mirror, can
leave entries out; they cannot change one. Nothing is installed unless the signature is of a trusted key, and size,
SHA-256, name and version are those that were signed. Only wheels: a source package runs code before anybody could look
at it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urljoin, urlsplit

from pydantic import Field, ValidationError

from catena.core.digest import canonical_json, sha256_of_file
from catena.core.errors import (
    CatenaError,
    ConfigError,
    DataError,
    IntegrityError,
    NotFound,
    RemoteError,
    UsageError,
    did_you_mean,
)
from catena.core.registry import PLUGIN_GROUP, require
from catena.core.types import Value
from catena.hub.files import write_atomically

LARGEST_INDEX = 16 << 20
LARGEST_WHEEL = 1 << 30
FETCH_S = 60.0
WHEEL = re.compile(r"[A-Za-z0-9_.!+-]+\.whl")


class Plugin(Value):
    """One entry of an index."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]+$")
    summary: str = ""
    license: str = ""
    adds: tuple[str, ...] = ()
    """What it registers: `filter:shout`, `stage:example.upper`."""
    requires: tuple[str, ...] = ()
    """Packages that it needs."""
    file: str
    """Name of the wheel beside the index, or its URL."""
    size: int = Field(ge=1, le=LARGEST_WHEEL)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Public key of who publishes it."""
    signature: str = ""

    def statement(self) -> bytes:
        """Return what the signature covers."""
        return b"catena plugin\n" + canonical_json(self.model_dump(mode="json", exclude={"signature"}))

    def signed(self) -> bool:
        """Tell whether the signature is that of `key`."""
        ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519")
        invalid = require("cryptography.exceptions").InvalidSignature
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key)).verify(
                bytes.fromhex(self.signature), self.statement()
            )
        except (invalid, ValueError):
            return False
        return True


def read_index(where: str) -> list[Plugin]:
    """Read an index from a file or URL; raises `RemoteError` or `DataError`."""
    if not where:
        raise ConfigError("no index of plugins is set", hint="Say --index FILE-OR-URL, or set plugins.index.")
    try:
        body = json.loads(_fetch(where, LARGEST_INDEX))
        entries = body["plugins"]
        if body.get("format") != 1 or not isinstance(entries, list):
            raise ValueError("it is of another format")
        return [Plugin.model_validate(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{where} is no index of plugins: {first}", hint="`catena plugins sign` writes one.") from error


def search(plugins: Iterable[Plugin], words: str) -> list[Plugin]:
    """Return the newest version of each plugin that has every word in name, summary or what it adds."""
    newest: dict[str, Plugin] = {}
    for plugin in plugins:
        text = " ".join((plugin.name, plugin.summary, *plugin.adds)).lower()
        if all(word in text for word in words.lower().split()):
            known = newest.get(plugin.name)
            if known is None or _order(plugin.version) > _order(known.version):
                newest[plugin.name] = plugin
    return [newest[name] for name in sorted(newest)]


def chosen(plugins: Sequence[Plugin], name: str, version: str = "") -> Plugin:
    """Return a plugin by name, its newest version or this one; raises `NotFound`."""
    named = [plugin for plugin in plugins if _normal(plugin.name) == _normal(name)]
    if not named:
        raise NotFound(f"the index has no plugin {name!r}", hint=did_you_mean(name, {one.name for one in plugins}))
    found = [plugin for plugin in named if not version or plugin.version == version]
    if not found:
        raise NotFound(f"{name} has no version {version!r}", hint=did_you_mean(version, {one.version for one in named}))
    return max(found, key=lambda plugin: _order(plugin.version))


def require_trusted(plugin: Plugin, keys: Iterable[str]) -> None:
    """Raise `IntegrityError` where the entry is not signed as it says, or by nobody who is trusted."""
    if not plugin.signed():
        raise IntegrityError(
            f"the signature of {plugin.name} {plugin.version} does not hold: its entry was changed",
            hint="Nothing was installed. Tell whoever publishes the index.",
        )
    if plugin.key not in {key.lower() for key in keys}:
        raise IntegrityError(
            f"{plugin.name} {plugin.version} is signed by {plugin.key[:16]}..., whom nobody here trusts",
            hint="If you do: --trust KEY, or add the key to plugins.keys in catena.yaml.",
        )


def install(
    where: str, name: str, keys: Iterable[str], *, version: str = "", target: Path | None = None, deps: bool = False
) -> Plugin:
    """Install a plugin of an index with pip, into this environment or into `target`; returns it.

    Nothing is given to pip before signature, key, size, SHA-256, name and version have been checked.
    """
    plugin = chosen(read_index(where), name, version)
    require_trusted(plugin, keys)
    file = Path(urlsplit(plugin.file).path).name
    if not WHEEL.fullmatch(file):
        raise DataError(f"{plugin.file!r} is no wheel", hint="Only wheels are installed.")
    with tempfile.TemporaryDirectory(prefix="catena-plugin-") as folder:
        path = Path(folder) / file
        path.write_bytes(_fetch(_beside(where, plugin.file), plugin.size))
        if path.stat().st_size != plugin.size or sha256_of_file(path) != plugin.sha256:
            raise IntegrityError(
                f"the file of {plugin.name} {plugin.version} is not the one that was signed",
                hint="Nothing was installed.",
            )
        described = wheel_facts(path)
        if (_normal(described["name"]), described["version"]) != (_normal(plugin.name), plugin.version):
            raise IntegrityError(f"{file} holds {described['name']} {described['version']}, not {plugin.name}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps"] if not deps else []
        command += ["--target", str(target)] if target is not None else []
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise CatenaError(f"pip could not install {plugin.name}: {last}", hint="See what it needs: requires.")
    return plugin


def wheel_facts(path: Path) -> dict[str, Any]:
    """Return name, version, summary, licence, requirements and entry points of a wheel, without running any of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            [place] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            head = Parser().parsestr(archive.read(place).decode())
            points = place.removesuffix("METADATA") + "entry_points.txt"
            text = archive.read(points).decode() if points in archive.namelist() else ""
    except (zipfile.BadZipFile, ValueError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no wheel: {error}", hint="Build one: python -m pip wheel --no-deps .") from error
    section = re.search(rf"^\[{re.escape(PLUGIN_GROUP)}\]\s*$(.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE)
    adds = [line.partition("=")[0].strip() for line in (section[1] if section else "").splitlines() if "=" in line]
    return {
        "name": str(head["Name"]),
        "version": str(head["Version"]),
        "summary": str(head["Summary"] or ""),
        "license": str(head["License-Expression"] or head["License"] or ""),
        "requires": [str(one) for one in head.get_all("Requires-Dist") or ()],
        "adds": sorted(adds),
    }


def sign(wheel: Path, index: Path, key: Path) -> Plugin:
    """Put a wheel into an index (made if absent), signed by the private key in a file (made if absent, mode 0600)."""
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519")
    if not key.exists():
        write_atomically(key, ed25519.Ed25519PrivateKey.generate().private_bytes_raw().hex().encode(), mode=0o600)
    try:
        private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key.read_text().strip()))
    except ValueError as error:
        raise DataError(f"{key} holds no private key", hint="Give a file that does not exist to make one.") from error
    place = os.path.relpath(wheel, index.parent).replace(os.sep, "/")
    draft = Plugin(
        **wheel_facts(wheel),
        file=place,
        size=wheel.stat().st_size,
        sha256=sha256_of_file(wheel),
        key=private.public_key().public_bytes_raw().hex(),
    )
    plugin = draft.model_copy(update={"signature": private.sign(draft.statement()).hex()})
    held = read_index(str(index)) if index.exists() else []
    kept = [one for one in held if (one.name, one.version) != (plugin.name, plugin.version)]
    entries = [one.model_dump(mode="json") for one in (*kept, plugin)]
    text = json.dumps({"format": 1, "plugins": entries}, indent=2, ensure_ascii=False)
    write_atomically(index, text.encode() + b"\n")
    return plugin


def installed() -> list[dict[str, Any]]:
    """Return the packages of this environment that add something to Catena, with what they add."""
    found: dict[str, dict[str, Any]] = {}
    for entry in metadata.entry_points(group=PLUGIN_GROUP):
        package = entry.dist
        name, version = (package.name, package.version) if package is not None else ("?", "?")
        adds: list[str] = found.setdefault(name, {"name": name, "version": version, "adds": []})["adds"]
        adds.append(entry.name)
    return [{**one, "adds": sorted(set(one["adds"]))} for _, one in sorted(found.items())]


def _fetch(where: str, limit: int) -> bytes:
    try:
        if "://" not in where:
            with Path(where).open("rb") as stream:
                data = stream.read(limit + 1)
        elif where.startswith(("https://", "http://")):
            with urllib.request.urlopen(where, timeout=FETCH_S) as answer:
                data = answer.read(limit + 1)
        else:
            raise UsageError(f"{where!r} is neither a file nor an http(s) URL")
    except FileNotFoundError as error:
        raise NotFound(f"there is no {where}") from error
    except (URLError, OSError) as error:
        raise RemoteError(f"{where} cannot be read: {error}") from error
    if len(data) > limit:
        raise IntegrityError(f"{where} is longer than the {limit} bytes that it may have")
    return bytes(data)


def _beside(index: str, file: str) -> str:
    """Return where a file of an index is."""
    if "://" in file:
        return file
    if "://" in index:
        return urljoin(index, file)
    return str(Path(index).parent / file)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return what orders versions: numbers by their size, and words (`1.0rc1`) before the number's end."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    return (*((1, int(part), "") if part.isdigit() else (-1, 0, part) for part in parts), (0, 0, ""))
