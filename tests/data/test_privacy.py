from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from catena.core.config import parse
from catena.core.errors import ConfigError, EnvironmentProblem
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.data.pii import find
from catena.data.privacy import MaskConfig, pseudonym
from tests.data.stores import document, documents, put, rejects, run, samples

KEY = "correct horse battery staple"


def found(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find(text)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Write to jane.doe+news@mail.acme.co.uk.", "email", "jane.doe+news@mail.acme.co.uk"),
        ("邮箱是zhang3@163.com。", "email", "zhang3@163.com"),
        ("电话13812345678转", "phone", "13812345678"),
        ("手机：138-1234-5678", "phone", "138-1234-5678"),
        ("call +86 138 1234 5678 now", "phone", "+86 138 1234 5678"),
        ("座机010-62345678", "phone", "010-62345678"),
        ("Ring +44 20 7946 0958 or", "phone", "+44 20 7946 0958"),
        ("Ring +1 650-253-0000 2020", "phone", "+1 650-253-0000"),
        ("Ring 020 7946 0958, or", "phone", "020 7946 0958"),
        ("Ring 0086 138 1234 5678", "phone", "0086 138 1234 5678"),
        ("電話は090-1234-5678です", "phone", "090-1234-5678"),
        ("전화 010-4541-1234 입니다", "phone", "010-4541-1234"),
        ("拨打400-820-8820", "phone", "400-820-8820"),
        ("（010）62345678转", "phone", "（010）62345678"),
        ("手机１３８１２３４５６７８。", "phone", "１３８１２３４５６７８"),
        ("手机138\u200b1234\u200b5678。", "phone", "138\u200b1234\u200b5678"),
        ("call 138–1234–5678", "phone", "138–1234–5678"),
        ("write to a＠qq.com", "email", "a＠qq.com"),
        ("SSN 536 22 8726", "us_ssn", "536 22 8726"),
        ("SSN: 536228726", "us_ssn", "536228726"),
        ("旧身份证110105491231002", "cn_id", "110105491231002"),
        ("身份证 110105 19491231 002X", "cn_id", "110105 19491231 002X"),
        ("Amex 3782 822463 10005", "bank_card", "3782 822463 10005"),
        ("卡号4111-1111-1111-1111", "bank_card", "4111-1111-1111-1111"),
        ("地址：2001:4860::af62（", "ip", "2001:4860::af62"),
        ("Call (650) 253-0000.", "phone", "(650) 253-0000"),
        ("SSN 536-22-8726", "us_ssn", "536-22-8726"),
        ("身份证11010519491231002X，", "cn_id", "11010519491231002X"),
        ("card 4111 1111 1111 1111,", "bank_card", "4111 1111 1111 1111"),
        ("银行卡6222020200112230012", "bank_card", "6222020200112230012"),
        ("Amex 378282246310005", "bank_card", "378282246310005"),
        ("pay DE89 3704 0044 0532 0130 00 NOW PLEASE", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
        ("服务器114.114.114.114上", "ip", "114.114.114.114"),
        ("from 8.8.8.8.", "ip", "8.8.8.8"),
        ("via 2001:4860:4860::8888", "ip", "2001:4860:4860::8888"),
        ("on fe80::1", "ip", "fe80::1"),
    ],
)
def test_personal_data_is_found_where_it_begins_and_ends(text: str, kind: str, value: str) -> None:
    assert found(text) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "@property and user@host and a@b.T",
        "order 10012345678, id 12012345678",
        "订单号 15412345678 不是手机",
        "hash a13812345678b, 0.13812345678, 138123456789",
        "4111111111111112 and 0000000000000000 and 9111111111111111",
        "110105194912310021 has a wrong check digit",
        "000-12-3456, 666-12-3456, 900-12-3456",
        "GB82WEST12345698765433",
        "Python 3.11.0, version 1.2.3.4, v1.2.3.4, foo==1.2.3.4, section 1.2.3.4, 版本号：2.0.0.1",
        "OID 1.3.6.1.4.1 and 256.1.1.1 and 1.2.3",
        "a[1::2] at 12:30:45 with std::vector and 00:1a:2b:3c:4d:5e and 1:2:3",
        "2024-01-02 03:04:05.678901 and 0x13812345678",
        "pi is 3.14159265358979323846",
        "order 13812345678, 订单号：13812345678, tracking number 4111111111111111",
        "Chrome/120.0.6099.109, driver-1.2.3.4.tar.gz, upgraded to 10.1.2.3",
        "00:1a:2b:ff:fe:3c:4d:5e is a network card, icon@2x.png a file, git@github.com:acme/tool.git a repository",
        "9558 8036 0870 0992 013 and 6538 0162 0812 4998 have wrong check digits",
        "DE58 5492 3376 5165 8338 09 has wrong ones too",
        "110105001301002 is no day, 536228726 is only a number",
        "1234567890123 and 1698765432 and 1698765432123 and 20231105123456",
        "",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert not found(text)


def test_spans_are_in_order_and_do_not_overlap() -> None:
    spans = find("a@x.com 8.8.8.8 13812345678 a@x.com 4111111111111111")
    assert [span.kind for span in spans] == ["email", "ip", "phone", "email", "bank_card"]
    assert all(first.end <= second.start for first, second in pairwise(spans))


@pytest.mark.parametrize("text", ["a" * 200_000, "1" * 200_000, "a.b@" * 50_000, "1 " * 100_000, "AB12 " * 20_000])
def test_no_text_makes_the_patterns_crawl(text: str) -> None:
    start = time.process_time()
    find(text)
    assert time.process_time() - start < 5  # quadratic behaviour would take minutes


def test_masking_counts_each_kind_and_leaves_everything_else(context: Context) -> None:
    source = documents(context.store, "ask bob@acme.io or ann@acme.io at 8.8.4.4", "nothing here, 127.0.0.1")
    made = run(context, "data.mask", {}, source=source)
    rows = samples(context.store, made)
    assert [row.text for row in rows] == ["ask [EMAIL] or [EMAIL] at [IP]", "nothing here, 127.0.0.1"]
    assert [row.id for row in rows] == [row.id for row in samples(context.store, source)]
    assert made.funnel is not None
    assert made.funnel.changed == {"masked_email": 2, "masked_ip": 1}


def test_addresses_that_stand_for_nobody_are_kept_unless_asked_otherwise(context: Context) -> None:
    text = "me@example.com you@mail.example.org 127.0.0.1 192.168.1.1 192.0.2.7 2001:db8::1 255.255.255.0"
    source = documents(context.store, text)
    assert samples(context.store, run(context, "data.mask", {}, source=source))[0].text == text
    strict = samples(context.store, run(context, "data.mask", {"keep": []}, source=source))[0].text
    assert strict == "[EMAIL] [EMAIL] [IP] [IP] [IP] [IP] [IP]"
    one = samples(context.store, run(context, "data.mask", {"keep": [], "kinds": ["email"]}, source=source))[0].text
    assert one.startswith("[EMAIL] [EMAIL] 127.0.0.1")


def test_conversations_are_masked_message_by_message(context: Context) -> None:
    messages = [{"role": "user", "content": "我是 li@qq.com"}, {"role": "assistant", "content": "电话13912345678"}]
    source = put(context.store, [Sample(sample_id("c"), {"messages": messages})], "conversation")
    made = run(context, "data.mask", {}, source=source)
    assert [message["content"] for message in samples(context.store, made)[0].data["messages"]] == [
        "我是 [EMAIL]",
        "电话[PHONE]",
    ]


def test_drop_keeps_the_whole_row_back(context: Context) -> None:
    made = run(context, "data.mask", {"mode": "drop"}, source=documents(context.store, "a@acme.io, b@acme.io", "fine"))
    assert [(reason, detail) for _, reason, detail in rejects(context.store, made)] == [("personal_data", "email 2")]
    assert made.rows == 1


def test_rows_that_are_kept_back_hold_no_personal_data_either(context: Context) -> None:
    source = put(
        context.store, [document("a@acme.io", metadata={"author": "Bob <bob@acme.io>", "n": [1, "c@acme.io"]})]
    )
    made = run(context, "data.mask", {"mode": "drop"}, source=source)
    ((row, _, detail),) = rejects(context.store, made)
    assert (row.text, row.metadata, detail) == ("[EMAIL]", {"author": "Bob <[EMAIL]>", "n": [1, "[EMAIL]"]}, "email 3")
    assert row.id == samples(context.store, source)[0].id


def test_metadata_is_masked_unless_it_is_to_stay(context: Context) -> None:
    source = put(context.store, [document("hello", metadata={"author": "bob@acme.io"}, source="mailto:bob@acme.io")])
    masked = samples(context.store, run(context, "data.mask", {}, source=source))[0]
    assert (masked.metadata["author"], masked.source) == ("[EMAIL]", "mailto:bob@acme.io")
    assert samples(context.store, run(context, "data.mask", {"metadata": False}, source=source))[0].metadata == {
        "author": "bob@acme.io"
    }


@pytest.mark.parametrize(
    ("kind", "spellings"),
    [
        (
            "phone",
            ["13812345678", "138-1234-5678", "+86 138 1234 5678", "0086 13812345678", "１３８１２３４５６７８"],
        ),
        ("phone", ["(650) 253-0000", "650.253.0000", "+1 650 253 0000"]),
        ("email", ["A@X.com", "a@x.com", "a＠x.com"]),
        ("cn_id", ["110105491231002", "11010519491231002x", "110105 19491231 002X"]),
        ("bank_card", ["4111 1111 1111 1111", "4111-1111-1111-1111"]),
        ("ip", ["2001:db8:0:0::1", "2001:DB8::1"]),
    ],
)
def test_a_pseudonym_is_equal_for_every_way_to_write_a_value(kind: str, spellings: list[str]) -> None:
    assert len({pseudonym(KEY.encode(), kind, spelling) for spelling in spellings}) == 1
    assert pseudonym(KEY.encode(), kind, spellings[0]) != pseudonym(b"another key, also long", kind, spellings[0])


def test_another_key_is_another_step_and_the_config_does_not_tell_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CATENA_PSEUDONYM_KEY", raising=False)
    assert MaskConfig(mode="pseudonym").key_fingerprint == ""
    monkeypatch.setenv("CATENA_PSEUDONYM_KEY", KEY)
    first = MaskConfig(mode="pseudonym")
    assert KEY not in str(first.model_dump())
    assert len(first.key_fingerprint) == 8
    assert MaskConfig(mode="pseudonym").digest() == first.digest()
    assert MaskConfig.model_validate(first.model_dump()) == first
    assert MaskConfig().key_fingerprint == ""  # masks need no key and do not change with it
    monkeypatch.setenv("CATENA_PSEUDONYM_KEY", KEY + "!")
    assert MaskConfig(mode="pseudonym").digest() != first.digest()
    with pytest.raises(ConfigError, match="another one than this was made with"):
        parse(MaskConfig, first.model_dump())


def test_the_key_is_nowhere_in_the_workspace(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CATENA_PSEUDONYM_KEY", KEY)
    source = documents(context.store, "a@acme.io and A@ACME.io")
    made = run(context, "data.mask", {"mode": "pseudonym"}, source=source)
    first, _, second = samples(context.store, made)[0].text.split()
    assert first == second
    assert first.startswith("[EMAIL:")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_pseudonyms_without_a_key_are_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    source = documents(context.store, "a@acme.io")
    monkeypatch.delenv("CATENA_PSEUDONYM_KEY", raising=False)
    with pytest.raises(EnvironmentProblem, match="CATENA_PSEUDONYM_KEY is not set"):
        run(context, "data.mask", {"mode": "pseudonym"}, source=source)
    monkeypatch.setenv("CATENA_PSEUDONYM_KEY", "short")
    with pytest.raises(EnvironmentProblem, match="shorter than 16 bytes"):
        run(context, "data.mask", {"mode": "pseudonym"}, source=source)


def test_unknown_kinds_and_wrong_networks_are_refused(context: Context) -> None:
    source = documents(context.store, "text")
    for values in ({"kinds": ["emails"]}, {"keep": ["1.2.3.4/99"]}):
        with pytest.raises(ConfigError):
            run(context, "data.mask", values, source=source)
