"""Records: strict JSON and tables whose damage stays where it is; readers called in this process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from catena.data.formats.pieces import Piece, Reading, Reject, Row, Source, Unreadable
from catena.data.formats.records import strict_json
from catena.data.formats.table import READERS, by_extension


def read(tmp_path: Path, name: str, content: bytes, **reading: Any) -> list[Piece]:
    path = tmp_path / name
    path.write_bytes(content)
    format = by_extension(name)
    assert format is not None
    return list(READERS.load(format.reader)(Source(path, name, format, Reading.model_validate(reading))))


def texts(pieces: list[Piece]) -> list[str | bytes]:
    return [piece.body for piece in pieces if isinstance(piece, Row)]


def reasons(pieces: list[Piece]) -> list[tuple[str, Any]]:
    return [(piece.reason, piece.metadata.get("line")) for piece in pieces if isinstance(piece, Reject)]


def test_one_bad_line_of_json_lines_costs_only_itself(tmp_path: Path) -> None:
    lines = [
        b'{"text": "one", "page": 3}',
        b'{"text": "two"',
        b'{"text": "a", "text": "b"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"text": "a\0b"}',
        b'{"text": NaN}',
        b"",
        b"[1]",
        b'{"text": 5}',
        b'{"text": "\\ud83d\\ude00"}',
    ]
    found = read(tmp_path, "a.jsonl", b"\n".join(lines) + b"\n")
    assert texts(found) == ["one", "\N{GRINNING FACE}"]
    assert isinstance(found[0], Row)
    assert found[0].metadata == {"line": 1, "fields": {"page": 3}}
    assert reasons(found) == [
        ("bad_json", 2),
        ("duplicate_key", 3),
        ("lone_surrogate", 4),
        ("undecodable", 5),
        ("bad_json", 6),
        ("bad_json", 7),
        ("empty", 8),
        ("no_text", 9),
        ("no_text", 10),
    ]
    assert isinstance(found[1], Reject)
    assert found[1].excerpt == '{"text": "two"'


def test_a_line_that_is_too_long_is_passed_over_without_being_held(tmp_path: Path) -> None:
    body = b'{"text": "' + b"x" * 5_000_000 + b'"}\n{"text": "next"}\n'
    found = read(tmp_path, "a.jsonl", body, limits={"row_bytes": 1000})
    assert reasons(found) == [("too_large", 1)]
    assert texts(found) == ["next"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": {"b": 1, "b": 2}}', "duplicate_key"),
        ("[" * 100_000, "too_deep"),
        ("9" * 5000, "bad_json"),
        ("Infinity", "bad_json"),
        ('{"a": 1} x', "bad_json"),
        ('{"\\udc00": 1}', "lone_surrogate"),
    ],
)
def test_json_is_read_strictly(text: str, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        strict_json(text)
    assert caught.value.reason == reason


def test_a_record_without_text_becomes_lines_and_a_field_may_be_named(tmp_path: Path) -> None:
    body = b'{"name": "Ada", "born": 1815, "note": null}'
    assert texts(read(tmp_path, "a.json", body)) == ["name: Ada\nborn: 1815"]
    assert texts(read(tmp_path, "a.json", body, text_field="name")) == ["Ada"]
    assert [
        piece.reason for piece in read(tmp_path, "a.json", body, text_field="body") if isinstance(piece, Reject)
    ] == ["no_text"]
    assert texts(read(tmp_path, "b.json", b'[{"text": "x"}, "y"]')) == ["x", "y"]


def test_large_numbers_of_a_record_become_text(tmp_path: Path) -> None:
    found = read(tmp_path, "a.json", b'{"text": "x", "n": 123456789012345678901234567890}')
    assert isinstance(found[0], Row)
    assert found[0].metadata["fields"] == {"n": "123456789012345678901234567890"}


def test_a_broken_quote_costs_its_line_and_not_the_rest_of_the_table(tmp_path: Path) -> None:
    table = (
        'text,n\nplain,1\n"quoted, with ""quotes""",2\n"spans\ntwo lines",3\n"never closed,4\nafter,5\n'
        '5" nail,6\none,two,three\n,\n\nlast,7\n'
    )
    found = read(tmp_path, "a.csv", table.encode())
    assert texts(found) == ["plain", 'quoted, with "quotes"', "spans\ntwo lines", "after", '5" nail', "last"]
    assert reasons(found) == [("bad_csv", 6), ("bad_csv", 9), ("empty", 10), ("empty", 11)]


def test_a_quote_that_is_never_closed_in_a_long_table_costs_one_line(tmp_path: Path) -> None:
    rows = [f"row {number},{number}" for number in range(5000)]
    rows[7] = '"broken,7'
    found = read(tmp_path, "a.csv", ("text,n\n" + "\n".join(rows)).encode())
    assert len(texts(found)) == 4999
    assert reasons(found) == [("bad_csv", 9)]


def test_lines_in_another_charset_and_nul_bytes_are_rejects_of_their_own(tmp_path: Path) -> None:
    body = "text;n\n你好;1\n".encode() + "你好世界;2\n".encode("gb18030") + b"a\0b;3\n" + "再见;4\n".encode()
    found = read(tmp_path, "a.csv", body)
    assert texts(found) == ["你好", "再见"]
    assert reasons(found) == [("undecodable", 3), ("nul_bytes", 4)]


@pytest.mark.parametrize("charset", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_a_table_is_read_in_its_charset(tmp_path: Path, charset: str) -> None:
    table = "text,作者\n" + "这是一个关于图书馆的句子。,王\n" * 20
    found = read(tmp_path, "a.csv", table.encode(charset))
    assert texts(found) == ["这是一个关于图书馆的句子。"] * 20
    assert isinstance(found[0], Row)
    assert found[0].metadata["fields"] == {"作者": "王"}


def test_a_table_needs_one_name_for_each_column(tmp_path: Path) -> None:
    for body, reason in ((b"a,a\n1,2\n", "bad_csv"), (b"\n\n", "empty")):
        with pytest.raises(Unreadable) as caught:
            read(tmp_path, "a.csv", body)
        assert caught.value.reason == reason


def test_ten_thousand_empty_lines_are_ten_thousand_rejects(tmp_path: Path) -> None:
    assert len(reasons(read(tmp_path, "a.jsonl", b"\n" * 10_000))) == 10_000
    assert len(reasons(read(tmp_path, "a.csv", b"text,n\n" + b",\n" * 10_000))) == 10_000


def test_tabs_part_the_fields_of_a_tsv(tmp_path: Path) -> None:
    found = read(tmp_path, "a.tsv", b"text\tn\na, b\t1\n")
    assert texts(found) == ["a, b"]


def test_parquet_gives_rows_and_what_json_cannot_hold_as_text(tmp_path: Path) -> None:
    out = io.BytesIO()
    table = pa.table({
        "text": ["one", "", None],
        "raw": pa.array([b"\0\1", b"", None]),
        "day": pa.array([0, None, None], pa.date32()),
    })  # fmt: skip
    parquet.write_table(table, out)
    found = read(tmp_path, "a.parquet", out.getvalue())
    assert texts(found) == ["one"]
    assert isinstance(found[0], Row)
    assert found[0].metadata == {"row": 1, "fields": {"raw": "AAE=", "day": "1970-01-01"}}
    assert [piece.reason for piece in found[1:] if isinstance(piece, Reject)] == ["empty", "empty"]
