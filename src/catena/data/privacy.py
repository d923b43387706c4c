"""`data.mask`: personal data (see `pii`) is masked, replaced by keyed pseudonyms, or takes its row out.

Pseudonyms are HMAC-SHA256 under a key from the environment: equal values stay equal, nobody without the key can test a
guess, and the key is in no row, config or event. The config holds a fingerprint of the key: another key is other work.
Rows that are kept back are masked too: people read the table of rejects.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from catena.core.config import Config
from catena.core.errors import EnvironmentProblem
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.pii import KINDS, Kind, Span, canonical, find, plain_form
from catena.data.shards import Outcome, map_rows, write_rows

# Addresses and domains that stand for nobody: RFC 2606, 5737, 3849, loopback, private, multicast and reserved networks.
NOBODY = [
    *("example.com", "example.org", "example.net", "example.edu"),
    *("0.0.0.0/8", "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"),
    "224.0.0.0/3",
    *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "::/127", "2001:db8::/32", "fe80::/10", "ff00::/8"),
]
SHORTEST_KEY = 16
BEGINNING = 1000
"""Characters of each text that are stored of a row that is too large."""
TEXTS = frozenset({"text", "messages", "input", "output"})


class MaskConfig(Config):
    mode: Literal["mask", "drop", "pseudonym"] = "mask"
    """mask writes [EMAIL]; pseudonym writes [EMAIL:4f1c...], equal for equal values; drop keeps the whole row back."""
    kinds: list[Kind] = Field(default_factory=lambda: list(KINDS), min_length=1)
    """What to look for."""
    keep: list[str] = Field(default_factory=lambda: list(NOBODY))
    """Not personal: values as they stand, mail domains (with their subdomains), and networks such as 127.0.0.0/8."""
    key_variable: str = "CATENA_PSEUDONYM_KEY"
    """Environment variable with the secret key of mode pseudonym, at least 16 bytes; another key, another name."""
    key_fingerprint: str = Field("", pattern=r"^([0-9a-f]{8})?$")
    """Filled in from the key, so that a changed key makes the step anew; write it down to insist on that very key."""
    max_characters: int = Field(20_000_000, ge=1)
    """Longer rows are kept back as `too_large`: to look through one takes minutes; only its beginning is stored."""
    metadata: bool = True
    """Look through the texts in the metadata too (titles, authors); the row's source is left as it is."""

    @field_validator("keep")
    @classmethod
    def _networks_are_networks(cls, keep: list[str]) -> list[str]:
        for entry in keep:
            if "/" in entry:
                ip_network(entry)  # its ValueError is a good sentence
        return keep

    @field_validator("key_fingerprint")
    @classmethod
    def _is_of_the_key(cls, given: str, info: ValidationInfo) -> str:
        key = os.environ.get(info.data.get("key_variable", ""), "").encode()
        if info.data.get("mode") != "pseudonym" or len(key) < SHORTEST_KEY:
            return given
        found = fingerprint(key)
        if given and given != found:
            raise ValueError(f"the key in {info.data['key_variable']} is another one than this was made with")
        return found


@lru_cache(maxsize=8)
def fingerprint(key: bytes) -> str:
    """Return 8 hexadecimal digits that change with the key and do not help to guess it: scrypt (RFC 7914) is slow, and
    32 bits are too few to tell a right guess from a lucky one.
    """
    return hashlib.scrypt(key, salt=b"catena data.mask key fingerprint", n=1 << 14, r=8, p=1, dklen=4).hex()


class Kept:
    """The values that stay as they are."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._values = {entry.casefold() for entry in entries if "/" not in entry}
        self._networks = [ip_network(entry) for entry in entries if "/" in entry]

    def __contains__(self, found: tuple[str, str]) -> bool:
        kind, value = found[0], found[1].casefold()
        if value in self._values:
            return True
        if kind == "ip":
            address = ip_address(value)
            return any(address in network for network in self._networks)
        domain = value.partition("@")[2]
        return bool(domain) and any(domain == entry or domain.endswith("." + entry) for entry in self._values)


def pseudonym(key: bytes, kind: str, value: str) -> str:
    """Return [KIND:12 hexadecimal digits], the same for every way to write the value (see `pii.canonical`)."""
    known = f"{kind}:{canonical(kind, value)}"
    return f"[{kind.upper()}:{hmac.new(key, known.encode(), hashlib.sha256).hexdigest()[:12]}]"


def replace_spans(text: str, spans: Sequence[Span], name: Callable[[str, str], str]) -> str:
    """Return the text with each span replaced by `name(kind, value)`."""
    parts, position = [], 0
    for span in spans:
        parts += [text[position : span.start], name(span.kind, text[span.start : span.end])]
        position = span.end
    return "".join((*parts, text[position:]))


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON-like value with every text in it changed; keys of mappings stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(item, change) for item in value]
    return value


def key_from(variable: str) -> bytes:
    """Return the secret key; raises `EnvironmentProblem` where it is absent or too short to be one."""
    key = os.environ.get(variable, "").encode()
    if len(key) < SHORTEST_KEY:
        problem = f"is shorter than {SHORTEST_KEY} bytes" if key else "is not set"
        raise EnvironmentProblem(
            f"pseudonyms need a secret key, and the environment variable {variable} {problem}",
            hint=f'Set it, for example: export {variable}="$(openssl rand -hex 32)", and keep it safe.',
        )
    return key


def _namer(cfg: MaskConfig) -> Callable[[str, str], str]:
    if cfg.mode != "pseudonym":
        return lambda kind, value: f"[{kind.upper()}]"
    key = key_from(cfg.key_variable)
    return lambda kind, value: pseudonym(key, kind, value)


def mask_row(cfg: MaskConfig) -> Callable[[Sample], Outcome]:
    """Return the function that replaces the personal data in one row."""
    name, kept, wanted = _namer(cfg), Kept(cfg.keep), frozenset(cfg.kinds)

    def masked(sample: Sample) -> Outcome:
        counts: Counter[str] = Counter()
        length = len(sample.text) if sample.data.keys() & TEXTS else 0
        if length > cfg.max_characters:
            # Twice as much is looked through: what the cut went through is not in what is stored.
            sample = replace(sample, data=_map_data(sample.data, lambda text: text[: 2 * BEGINNING]))

        def change(text: str) -> str:
            spans = [span for span in find(text) if span.kind in wanted]
            spans = [span for span in spans if (span.kind, plain_form(text[span.start : span.end])[0]) not in kept]
            counts.update(span.kind for span in spans)
            return replace_spans(text, spans, name) if spans else text

        metadata = map_texts(sample.metadata, change) if cfg.metadata else sample.metadata
        result = replace(sample, data=_map_data(sample.data, change), metadata=metadata)
        if length > cfg.max_characters:
            result = replace(result, data=_map_data(result.data, lambda text: text[:BEGINNING]))
            return Outcome(result, "too_large", f"{length} characters, the first {BEGINNING} are kept")
        if counts and cfg.mode == "drop":
            return Outcome(
                result, "personal_data", ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
            )
        return Outcome(result, counts={f"masked_{kind}": count for kind, count in counts.items()})

    return masked


def _map_data(data: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    result = {key: change(value) if isinstance(value, str) else value for key, value in data.items()}
    if "messages" in data:  # the role is a word of the format
        result["messages"] = [{**message, "content": change(message["content"])} for message in data["messages"]]
    return result


@stage("data.mask")
def mask(ctx: Context, cfg: MaskConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Mask, pseudonymise or keep back personal data: mail, telephone, identity, card, account and IP numbers."""
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        changed = write_rows(out, map_rows(ctx, source, "catena.data.privacy:mask_row", cfg, label="Personal data"))
        return out.commit(changed=dict(sorted(changed.items())))
