from __future__ import annotations

import pytest

from catena.core.errors import ConfigError
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.licences import spdx_of
from tests.data.stores import document, put, rejects, run, samples


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("CC BY-SA 4.0", "CC-BY-SA-4.0"),
        ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
        ("https://creativecommons.org/licenses/by-sa/4.0/", "CC-BY-SA-4.0"),
        ("http://creativecommons.org/licenses/by/3.0/deed.en", "CC-BY-3.0"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International", "CC-BY-NC-SA-4.0"),
        ("CC BY-NC-ND 4.0", "CC-BY-NC-ND-4.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("public domain", "CC-PDDC"),
        ("apache-2.0", "Apache-2.0"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("The MIT License", "MIT"),
        ("(MIT)", "MIT"),
        ("BSD (3-clause)", "BSD-3-Clause"),
        ("MIT OR Apache-2.0", "MIT OR Apache-2.0"),
        ("(MIT OR CC BY 4.0)", "MIT OR CC-BY-4.0"),
        ("GPLv2 WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("版权所有", "LicenseRef-proprietary"),
        ("CC BY", "unknown"),
        ("MIT OR mine", "unknown"),
        ("see the file", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_licences_are_known_however_people_write_them(written: str | None, known: str) -> None:
    assert spdx_of(written) == known


def mixed(context: Context) -> DatasetVersion:
    written = ["MIT", "CC BY-SA 4.0", "cc-by-nc-4.0", "GPLv3", "MIT OR GPL-3.0", "MIT AND GPL-3.0", "our own", None]
    rows = [document(f"text {place}", license=licence) for place, licence in enumerate(written)]
    return put(context.store, rows)


def kept(context: Context, version: DatasetVersion) -> list[str | None]:
    return [row.license for row in samples(context.store, version)]


def test_allowed_families_patterns_and_spellings_go_on_with_their_identifier(context: Context) -> None:
    made = run(context, "data.licences", {"allow": ["family:permissive", "cc by-sa 4.0"]}, source=mixed(context))
    # The last row has no licence of its own: it has its dataset's, CC0-1.0, which is not allowed here.
    assert kept(context, made) == ["MIT", "CC-BY-SA-4.0", "MIT OR GPL-3.0-only"]
    assert samples(context.store, made)[1].metadata["license_as_given"] == "CC BY-SA 4.0"
    assert made.profile["licences"] == {"CC-BY-SA-4.0": 1, "MIT": 1, "MIT OR GPL-3.0-only": 1}
    assert made.profile["licences_before"]["unknown"] == 1
    found = [(reason, detail) for _, reason, detail in rejects(context.store, made)]
    assert ("licence", "CC-BY-NC-4.0") in found
    assert ("licence", "unknown: our own") in found
    assert ("licence", "CC0-1.0") in found


def test_what_is_denied_is_not_allowed_by_any_pattern(context: Context) -> None:
    made = run(
        context, "data.licences", {"allow": ["*"], "deny": ["CC-BY-NC-*", "family:copyleft"]}, source=mixed(context)
    )
    assert kept(context, made) == ["MIT", "CC-BY-SA-4.0", "MIT OR GPL-3.0-only", "CC0-1.0"]


def test_unknown_licences_may_stay(context: Context) -> None:
    made = run(context, "data.licences", {"unknown": "keep"}, source=mixed(context))
    assert made.rejects == 0
    assert kept(context, made)[6] == "our own"
    assert made.profile["licences"]["unknown"] == 1


@pytest.mark.parametrize(
    ("policy", "numbers"), [("not_refused", [0, 1, 4]), ("given", [0, 1]), ("ignore", [0, 1, 2, 3, 4])]
)
def test_consent_decides_too(context: Context, policy: str, numbers: list[int]) -> None:
    consents = [True, "granted", False, "withdrawn", None]
    rows = [
        document(f"text {place}", metadata={} if consent is None else {"consent": consent})
        for place, consent in enumerate(consents)
    ]
    made = run(context, "data.licences", {"consent": policy}, source=put(context.store, rows))
    assert [int(row.text.split()[1]) for row in samples(context.store, made)] == numbers
    assert {reason for _, reason, _ in rejects(context.store, made)} <= {"no_consent"}


def test_families_and_identifiers_are_checked(context: Context) -> None:
    source = mixed(context)
    with pytest.raises(ConfigError, match=r"no family 'permisive'. Did you mean 'permissive'"):
        run(context, "data.licences", {"allow": ["family:permisive"]}, source=source)
    with pytest.raises(ConfigError, match="is no SPDX identifier"):
        run(context, "data.licences", {"deny": ["whatever they say"]}, source=source)


ROWWISE: dict[str, dict[str, object]] = {
    "data.filter": {"filters": {"length": {"min_tokens": 1}}},
    "data.dedup": {},
    "data.mask": {},
    "data.language": {},
    "data.split": {},
    "data.licences": {},
}


@pytest.mark.parametrize("stage", ROWWISE)
def test_every_stage_keeps_each_row_s_licence_source_and_consent(context: Context, stage: str) -> None:
    texts = [
        "The first of two quite different texts about rivers.",
        "Another one, on mountains, snow and long winters.",
    ]
    rows = [
        document(text, license=licence, source=f"page/{licence}", metadata={"consent": "granted"})
        for text, licence in zip(texts, ("MIT", "CC-BY-4.0"), strict=True)
    ]
    made = run(context, stage, ROWWISE[stage], source=put(context.store, rows))
    found = [(row.license, row.source, row.metadata["consent"]) for row in samples(context.store, made)]
    assert found == [("MIT", "page/MIT", "granted"), ("CC-BY-4.0", "page/CC-BY-4.0", "granted")]


def test_licence_and_consent_of_ingested_records_are_read_from_their_own_fields(context: Context) -> None:
    told = [("MIT", "yes"), ("proprietary", "yes"), ("MIT", "no"), ("", "yes")]
    rows = [
        document(f"text {place}", metadata={"fields": {"license": licence, "agreed": agreed}})
        for place, (licence, agreed) in enumerate(told)
    ]
    values = {"allow": ["MIT"], "license_key": "fields.license", "consent": "given", "consent_key": "fields.agreed"}
    made = run(context, "data.licences", values, source=put(context.store, rows))
    assert kept(context, made) == ["MIT"]
    assert [(reason, detail) for _, reason, detail in rejects(context.store, made)] == [
        ("licence", "LicenseRef-proprietary"),
        ("no_consent", "fields.agreed: no"),
        ("licence", "CC0-1.0"),
    ]
