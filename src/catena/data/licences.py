"""`data.licences`: each row's licence as an SPDX identifier; rows that licence or consent do not allow stay back.

A row without a licence of its own has its dataset's. `A OR B` is allowed where one of them is, `A AND B` where both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from catena.core.config import Config
from catena.core.errors import did_you_mean
from catena.core.sample import Sample, dig
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion

TABLE = Path(__file__).with_suffix(".yaml")
FAMILY = "family:"
UNKNOWN = "unknown"

# `CC BY-SA 4.0`, `cc-by-nc-4.0`, `creativecommons.org/licenses/by-sa/4.0/`; a licence without its version is not known.
TAIL = (
    r"[\s/_-]+v?(\d\.\d)(?:[\s/_-]+(?:international|intl|unported|[a-z]{2}))?"
    r"(?:[\s/]+(?:deed|legalcode|licen[cs]e)[.\w]*)?"
)
CREATIVE_COMMONS = re.compile(
    r"(?:cc|creative commons|creativecommons\.org/licenses)[\s/_-]*by((?:[\s/_-]+(?:nc|nd|sa))*)" + TAIL
)
# `Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International`
SPELLED = re.compile(
    r"(?:creative commons\s+|cc\s+)?attribution((?:[\s-]+(?:non-?commercial|no ?derivatives|share-?alike))*)" + TAIL
)
SHORT = (("noncommercial", "nc"), ("noderivatives", "nd"), ("sharealike", "sa"))
SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
JOINTS = frozenset({"OR", "AND", "WITH"})
PARTS = re.compile(r"\s+(OR|AND|WITH)\s+|[()]")
YES, NO = (
    frozenset({"true", "yes", "granted", "given", "1", "y", "是", "同意"}),
    frozenset({"false", "no", "refused", "withdrawn", "revoked", "0", "n", "否", "不同意", "撤回"}),
)


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return found


@cache
def _aliases() -> dict[str, str]:
    table = _table()
    known = {_key(name): name for names in table["families"].values() for name in names if "*" not in name}
    known |= {_key(alias): name for name, aliases in table["aliases"].items() for alias in (name, *aliases)}
    return known


def _key(text: str) -> str:
    return re.sub(r"[\s_./-]+", " ", text.casefold().removeprefix("the ")).strip()


def spdx_of(text: str | None) -> str:
    """Return the SPDX identifier, or expression, of a licence as people write it; `unknown` where it is none.

    What is not in the table is known only if it is a whole identifier of the table's; free text is never guessed at.
    """
    if not text or not text.strip():
        return UNKNOWN
    parts = [part.strip() for part in PARTS.split(text) if part and part.strip()]
    joints = JOINTS.intersection(parts)
    if not joints:
        return _single(" ".join(parts))
    if len(joints - {"WITH"}) > 1 and "(" in text:
        return UNKNOWN  # mixed and in brackets: for a person to read
    words = []
    for before, part in pairwise(["", *parts]):
        # An exception only allows more: it is kept as it stands.
        words.append(part if part in JOINTS or before == "WITH" else _single(part))
    return UNKNOWN if UNKNOWN in words else " ".join(words)


def _single(text: str) -> str:
    plain = re.sub(r"^https?://(?:www\.)?", "", text.strip().casefold()).rstrip("/")
    for pattern in (CREATIVE_COMMONS, SPELLED):
        if match := pattern.fullmatch(plain):
            words = match[1].replace("-", "").replace(" ", "")
            for long, short in SHORT:
                words = words.replace(long, short)
            parts = [part for part in ("nc", "nd", "sa") if part in words]
            return "-".join(["CC-BY", *(part.upper() for part in parts), match[2]])
    known = _aliases()
    plain = plain.removesuffix("/legalcode").removesuffix(".html").removesuffix(".txt")
    return known.get(_key(plain)) or known.get(_key(plain.rpartition("org/")[2])) or UNKNOWN


def matches(licence: str, entries: Sequence[str]) -> bool:
    """Tell whether one licence is in a list of identifiers, patterns (`CC-BY-*`) and families (`family:permissive`)."""
    patterns: list[str] = []
    for entry in entries:
        family = entry.removeprefix(FAMILY)
        patterns += _table()["families"][family] if entry.startswith(FAMILY) else [entry]
    return any(fnmatchcase(licence.lower(), pattern.lower()) for pattern in patterns)


class LicencesConfig(Config):
    allow: list[str] = Field(default_factory=list)
    """Licences to keep: SPDX identifiers or how people write them, patterns (CC-BY-*), families; all if empty.

    Families: family:public-domain, permissive, attribution, share-alike, noncommercial, no-derivatives, copyleft."""
    deny: list[str] = Field(default_factory=list)
    """Licences to keep back, in the same way; what is denied is not allowed by any pattern."""
    unknown: Literal["reject", "keep"] = "reject"
    """What happens to rows without a licence, or with one that is not known."""
    consent: Literal["not_refused", "given", "ignore"] = "not_refused"
    """Rows whose consent is refused or withdrawn are kept back; given keeps back those without consent too."""
    consent_key: str = "consent"
    """Where a row's consent is in its metadata (`consent`, `fields.consent`): true or false, granted or withdrawn."""
    license_key: str = ""
    """Where a row's own licence is in its metadata (`fields.license`); else what the row or its dataset carries."""

    @field_validator("allow", "deny")
    @classmethod
    def _are_known(cls, entries: list[str]) -> list[str]:
        found = []
        for entry in entries:
            family = entry.removeprefix(FAMILY)
            if entry.startswith(FAMILY) and family not in _table()["families"]:
                raise ValueError(f"there is no family {family!r}. {did_you_mean(family, _table()['families'])}")
            plain = entry if entry.startswith(FAMILY) or "*" in entry else spdx_of(entry)
            if plain == UNKNOWN:
                if not SPDX.fullmatch(entry):
                    raise ValueError(f"{entry!r} is no SPDX identifier. {did_you_mean(entry, _table()['aliases'])}")
                plain = entry
            found.append(plain)
        return found


def allowed(licence: str, cfg: LicencesConfig) -> bool:
    """Tell whether a config lets an SPDX identifier or expression go on."""
    if licence == UNKNOWN:
        return cfg.unknown == "keep"
    choices = (option.split(" AND ") for option in licence.split(" OR "))
    return any(all(_one_allowed(part.partition(" WITH ")[0], cfg) for part in option) for option in choices)


def _one_allowed(licence: str, cfg: LicencesConfig) -> bool:
    return not matches(licence, cfg.deny) and (not cfg.allow or matches(licence, cfg.allow))


def consent_of(metadata: Mapping[str, Any], key: str) -> bool | None:
    """Return a row's consent; None where nothing is said."""
    word = str(dig(metadata, key)).strip().casefold()
    return True if word in YES else False if word in NO else None


def licence_of(sample: Sample, cfg: LicencesConfig) -> str | None:
    """Return the licence that a row is said to have: in its metadata, where that is asked for, else its own."""
    told = dig(sample.metadata, cfg.license_key) if cfg.license_key else None
    return sample.license if told in (None, "") else str(told)


def reason(sample: Sample, licence: str, given: str | None, cfg: LicencesConfig) -> tuple[str, str] | None:
    """Return (reason, detail) for keeping a row of a licence, `given` in these words, back; or None."""
    consent = consent_of(sample.metadata, cfg.consent_key)
    if cfg.consent != "ignore" and (consent is False or (cfg.consent == "given" and consent is None)):
        return "no_consent", f"{cfg.consent_key}: {dig(sample.metadata, cfg.consent_key)}"
    if not allowed(licence, cfg):
        return "licence", licence if licence != UNKNOWN else f"unknown: {given or 'none'}"
    return None


@stage("data.licences")
def licences(ctx: Context, cfg: LicencesConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Write each row's licence as SPDX identifier, and keep back what the lists or a missing consent do not allow."""
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        for sample in ctx.progress("Licences", source.rows).over(ctx.store.open_dataset(source).samples()):
            given = licence_of(sample, cfg) or source.license
            licence = spdx_of(given)
            before[licence] += 1
            found = reason(sample, licence, given, cfg)
            if found is not None:
                out.reject(sample, *found)
                continue
            after[licence] += 1
            known = licence != UNKNOWN
            as_given = {"license_as_given": given} if known and given != licence else {}
            out.add(replace(sample, license=licence if known else given, metadata={**sample.metadata, **as_given}))
        profile = {"licences": dict(sorted(after.items())), "licences_before": dict(sorted(before.items()))}
        return out.commit(profile=profile)
