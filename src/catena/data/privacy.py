"""`data.mask`: personal data (see `pii`) is masked, replaced by keyed pseudonyms, or takes its row out.

Pseudonyms are HMAC-SHA256 under a key from the environment: equal values stay equal, nobody without the key can test a
guess, and the key is in no row, config or event.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from pydantic import Field, field_validator

from catena.core.config import Config
from catena.core.errors import EnvironmentProblem
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.pii import KINDS, Kind, Span, find

# Addresses and domains that stand for nobody: RFC 2606, 5737, 3849, loopback, private, multicast and reserved networks.
NOBODY = [
    *("example.com", "example.org", "example.net", "example.edu"),
    *("0.0.0.0/8", "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"),
    "224.0.0.0/3",
    *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "::/127", "2001:db8::/32", "fe80::/10", "ff00::/8"),
]
SHORTEST_KEY = 16


class MaskConfig(Config):
    mode: Literal["mask", "drop", "pseudonym"] = "mask"
    """mask writes [EMAIL]; pseudonym writes [EMAIL:4f1c...], equal for equal values; drop keeps the whole row back."""
    kinds: list[Kind] = Field(default_factory=lambda: list(KINDS), min_length=1)
    """What to look for."""
    keep: list[str] = Field(default_factory=lambda: list(NOBODY))
    """Not personal: values as they stand, mail domains (with their subdomains), and networks such as 127.0.0.0/8."""
    key_variable: str = "CATENA_PSEUDONYM_KEY"
    """Environment variable with the secret key of mode pseudonym, at least 16 bytes; another key, another name."""

    @field_validator("keep")
    @classmethod
    def _networks_are_networks(cls, keep: list[str]) -> list[str]:
        for entry in keep:
            if "/" in entry:
                ip_network(entry)  # its ValueError is a good sentence
        return keep


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
    """Return [KIND:12 hexadecimal digits]; how the value is spaced, punctuated and capitalised does not matter."""
    plain = "".join(letter for letter in value.casefold() if letter.isalnum() or letter in "@.:")
    return f"[{kind.upper()}:{hmac.new(key, f'{kind}:{plain}'.encode(), hashlib.sha256).hexdigest()[:12]}]"


def replace_spans(text: str, spans: Sequence[Span], name: Callable[[str, str], str]) -> str:
    """Return the text with each span replaced by `name(kind, value)`."""
    parts, position = [], 0
    for span in spans:
        parts += [text[position : span.start], name(span.kind, text[span.start : span.end])]
        position = span.end
    return "".join((*parts, text[position:]))


def map_texts(data: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a sample's data with every text in it changed: `text`, `input`, `output`, and the messages' contents."""
    result = {key: change(value) if isinstance(value, str) else value for key, value in data.items()}
    if "messages" in data:
        result["messages"] = [{**message, "content": change(message["content"])} for message in data["messages"]]
    return result


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


@stage("data.mask")
def mask(ctx: Context, cfg: MaskConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Mask, pseudonymise or keep back personal data: mail, telephone, identity, card, account and IP numbers."""
    kept, name, wanted = Kept(cfg.keep), _namer(cfg), frozenset(cfg.kinds)
    changed: Counter[str] = Counter()

    def masked(sample: Sample) -> tuple[Sample, Counter[str]]:
        counts: Counter[str] = Counter()

        def change(text: str) -> str:
            spans = [span for span in find(text) if span.kind in wanted]
            spans = [span for span in spans if (span.kind, text[span.start : span.end]) not in kept]
            counts.update(span.kind for span in spans)
            return replace_spans(text, spans, name) if spans else text

        return replace(sample, data=map_texts(sample.data, change)), counts

    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        samples = ctx.store.open_dataset(source).samples()
        for sample in ctx.progress("Personal data", source.rows).over(samples):
            result, counts = masked(sample)
            if counts and cfg.mode == "drop":
                detail = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
                out.reject(sample, "personal_data", detail)
                continue
            changed.update({f"masked_{kind}": count for kind, count in counts.items()})
            out.add(result)
        return out.commit(changed=dict(sorted(changed.items())))
