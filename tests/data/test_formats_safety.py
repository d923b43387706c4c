"""Hostile and broken files: each becomes a reject with its reason, within bounds, and what stands beside it is read."""

from __future__ import annotations

import gzip
import io
import os
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from catena.core.errors import Cancelled
from catena.data.formats.pieces import Reading
from catena.data.formats.pool import Child
from catena.data.formats.unpack import unsafe
from catena.data.formats.wire import Found, unpack
from tests.data import sample_files

LAUGHS = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><a>&b;</a>'
ENDLESS = 30_000
"""Pages that no machine reads in the second that a test gives it."""


class Reader:
    """One child for many files."""

    def __init__(self, folder: Path, **reading: Any) -> None:
        self.folder, self.child = folder, Child(Reading.model_validate(reading), folder / "child")

    def __call__(self, name: str, content: bytes) -> list[Found]:
        path = self.folder / name
        path.write_bytes(content)
        with (self.folder / "spool").open("w+b") as spool:
            self.child.read(path, name, spool)
            length = spool.tell()
            spool.seek(0)
            return list(unpack(spool, length))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("documents"), limits={"pages": 20, "members": 50})
    with reader.child:
        yield reader


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("media"), shape="media", limits={"pixels": 1_000_000})
    with reader.child:
        yield reader


def outcome(found: list[Found]) -> list[tuple[str, str]]:
    return [(each.member, each.reason or each.body.decode()) for each in found]


def nested(times: int) -> bytes:
    made = sample_files.zipped({"a.txt": "deep"})
    for _ in range(times):
        made = sample_files.zipped({"in.zip": made})
    return made


def lying(content: bytes) -> bytes:
    """Return a ZIP archive whose directory says that its member is ten bytes long."""
    made = bytearray(sample_files.zipped({"a.txt": content}))
    entry = made.rindex(b"PK\x01\x02")
    made[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    return bytes(made)


def locked() -> bytes:
    """Return a ZIP archive whose one member says that it is encrypted."""
    made = bytearray(sample_files.zipped({"a.txt": "secret"}))
    made[6] |= 1
    made[made.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(made)


DOCX = sample_files.docx(["A paragraph of text."])
PDF = sample_files.pdf(["A page of text."])
BLANKS = b" " * 60_000_000

BROKEN: dict[str, tuple[str, bytes, str]] = {
    "an empty file": ("a.txt", b"", "empty"),
    "blanks only": ("a.txt", b" \n\t ", "empty"),
    "NUL bytes": ("a.txt", b"text\0with", "binary"),
    "bytes of no charset": ("a.txt", bytes(range(128, 256)) * 3, "undecodable"),
    "an encrypted PDF": ("a.pdf", sample_files.pdf(["x"], encrypt=True), "encrypted"),
    "a PDF cut short": ("a.pdf", PDF[:300], "damaged"),
    "a PDF that is none": ("a.pdf", b"hello", "damaged"),
    "a PDF without text": ("a.pdf", sample_files.pdf([""]), "empty"),
    "a PDF with too many pages": ("a.pdf", sample_files.pdf(["x"] * 21), "too_many_pages"),
    "a Word file cut short": ("a.docx", DOCX[:400], "damaged"),
    "a Word file that is none": ("a.docx", b"hello", "damaged"),
    "a Word file with entities": (
        "a.docx",
        sample_files.zipped({"word/document.xml": LAUGHS, "[Content_Types].xml": ""}),
        "xml_entities",
    ),
    "a Word file that unpacks without end": (
        "a.docx",
        sample_files.zipped({"word/document.xml": BLANKS, "[Content_Types].xml": ""}),
        "archive_bomb",
    ),
    "an Office file behind a password": (
        "a.docx",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
        "encrypted",
    ),
    "an old Office file": ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "unsupported_format"),
    "XML with entities": ("a.xml", LAUGHS.encode(), "xml_entities"),
    "XML cut short": ("a.xml", b"<a><b>text</b>", "damaged"),
    "XML nested without end": ("a.xml", b"<a>" * 5000, "too_deep"),
    "HTML nested without end": ("a.html", b"<div>" * 5000 + b"x", "too_deep"),
    "JSON that is none": ("a.json", b'{"a": ', "bad_json"),
    "an empty JSON array": ("a.json", b"[]", "empty"),
    "a Parquet file cut short": ("a.parquet", b"PAR1\0\0\0\0", "damaged"),
    "a table with names alone": ("a.csv", b"a,b\n", "empty"),
    "an archive that is none": ("a.zip", b"PK\x03\x04 and more", "damaged"),
    "an archive of nothing": ("a.zip", sample_files.zipped({}), "empty"),
    "gzip cut short": ("a.txt.gz", gzip.compress(os.urandom(1000))[:500], "damaged"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_read_is_one_reject(documents: Reader, what: str) -> None:
    name, content, reason = BROKEN[what]
    found = documents(name, content)
    assert [each.reason for each in found] == [reason]
    detail = found[0].detail
    assert detail
    assert len(set(detail.split(": "))) == len(detail.split(": ")), "the parser's message says the same twice"


def test_a_bomb_in_an_archive_is_a_reject_and_its_neighbours_are_read(documents: Reader) -> None:
    found = documents("a.zip", sample_files.zipped({"a.txt": "one", "b.txt": BLANKS, "c.txt": "two"}))
    assert outcome(found) == [("a.txt", "one"), ("b.txt", "archive_bomb"), ("c.txt", "two")]
    assert outcome(documents("a.txt.gz", gzip.compress(BLANKS))) == [("a.txt", "archive_bomb")]


def test_sizes_in_a_directory_are_not_believed(documents: Reader) -> None:
    assert outcome(documents("a.zip", lying(BLANKS)))[0][1] in ("damaged", "archive_bomb")


def test_archives_in_archives_have_an_end(documents: Reader) -> None:
    assert outcome(documents("a.zip", nested(1))) == [("in.zip!/a.txt", "deep")]
    assert outcome(documents("a.zip", nested(9))) == [("in.zip!/in.zip!/in.zip", "archive_bomb")]


def test_an_archive_of_too_many_members_is_read_up_to_the_limit(documents: Reader) -> None:
    found = outcome(documents("a.zip", sample_files.zipped({f"{n:03d}.txt": "x" for n in range(60)})))
    assert len(found) == 51
    assert found[-1] == ("", "archive_bomb")


def test_a_member_behind_a_password_is_a_reject(documents: Reader) -> None:
    assert outcome(documents("a.zip", locked())) == [("a.txt", "encrypted")]


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "C:\\a", "..\\a", "\\\\host\\a", "a\0b"])
def test_names_that_lead_out_are_known(name: str) -> None:
    assert unsafe(name)
    assert not unsafe("folder/a..b.txt")


def test_a_row_of_a_hundred_megabytes_is_too_large(documents: Reader) -> None:
    body = b'{"text": "' + b"x" * 100_000_000 + b'"}\n{"text": "small"}\n'
    assert outcome(documents("a.jsonl", body)) == [("", "too_large"), ("", "small")]


def test_lone_surrogates_and_direction_marks_in_text(documents: Reader) -> None:
    arabic = "مرحبا\u200f بالعالم\u200c"
    lines = ['{"text": "\\udfff"}', f'{{"text": "{arabic}"}}', '{"text": "a\\u0000b\\ufeff"}', '{"text": "\\u200b"}']
    found = documents("a.jsonl", "\n".join(lines).encode())
    assert [each.reason for each in found] == ["lone_surrogate", "", "", ""]
    assert [each.body.decode() for each in found[1:3]] == [arabic, "ab"]
    assert found[2].changed == ("controls_removed",)


def test_pictures_and_sounds_that_are_broken_or_vast(media: Reader) -> None:
    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(out, "PNG")
    whole = out.getvalue()
    vast = io.BytesIO()
    Image.new("1", (2000, 2000)).save(vast, "PNG")
    sound = sample_files.wav(2.0)
    cases = {
        "cut.png": (whole[: len(whole) // 2], "damaged"),
        "vast.png": (vast.getvalue(), "too_large"),
        "no.jpg": (b"hello", "damaged"),
        "cut.wav": (sound[:4000], "damaged"),
        "no.mp4": (b"\0\0\0\x1cftypisom" + bytes(50), "damaged"),
        "no.dcm": (bytes(128) + b"DICM" + b"\xff" * 50, "damaged"),
        "whole.png": (whole, ""),
    }
    assert {name: media(name, content)[0].reason for name, (content, _) in cases.items()} == {
        name: reason for name, (_, reason) in cases.items()
    }


def test_ten_thousand_pages_are_too_many_by_default(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    with reader.child:
        [item] = reader("a.pdf", sample_files.pdf([f"page {number}" for number in range(10_000)]))
        assert item.reason == "too_many_pages"
        assert outcome(reader("b.txt", b"still here")) == [("", "still here")]


def test_a_document_that_takes_too_long_is_stopped_and_the_next_one_read(tmp_path: Path) -> None:
    slow = sample_files.pdf([f"page {number}" for number in range(ENDLESS)])
    reader = Reader(tmp_path, limits={"seconds": 0.7})
    with reader.child:
        archive = sample_files.zipped({"a.txt": "one", "b.pdf": slow, "c.txt": "two"})
        assert outcome(reader("a.zip", archive)) == [("a.txt", "one"), ("b.pdf", "timeout"), ("c.txt", "two")]
        assert outcome(reader("b.txt", b"still here")) == [("", "still here")]


def test_a_file_that_wants_too_much_memory_is_a_reject(tmp_path: Path) -> None:
    # 600 bytes on disk, two gigabytes in memory: one value of four megabytes, five hundred times.
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500), pa.array(["z" * 4_000_000]))
    out = io.BytesIO()
    parquet.write_table(pa.table({"text": column}), out, compression="zstd")
    reader = Reader(tmp_path, limits={"memory_bytes": 600 << 20})
    with reader.child:
        assert outcome(reader("a.parquet", out.getvalue())) == [("", "out_of_memory")]
        assert outcome(reader("b.txt", b"still here")) == [("", "still here")]


def test_a_child_that_dies_costs_one_document(tmp_path: Path) -> None:
    slow = sample_files.pdf([f"page {number}" for number in range(ENDLESS)])
    reader = Reader(tmp_path)
    with reader.child:
        assert outcome(reader("a.txt", b"up")) == [("", "up")]
        process = reader.child._process
        assert process is not None
        timer = threading.Timer(0.4, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        found = outcome(reader("a.zip", sample_files.zipped({"b.pdf": slow, "c.txt": "two"})))
        timer.join()
        assert found == [("b.pdf", "reader_died"), ("c.txt", "two")]


def test_reading_can_be_stopped_from_another_thread(tmp_path: Path) -> None:
    slow = sample_files.pdf([f"page {number}" for number in range(ENDLESS)])
    reader = Reader(tmp_path)
    threading.Timer(0.8, reader.child.stop).start()
    started = time.monotonic()
    with reader.child, pytest.raises(Cancelled):
        reader("a.zip", sample_files.zipped({f"{n}.pdf": slow for n in range(20)}))
    assert time.monotonic() - started < 15


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    with reader.child:
        assert outcome(reader("a.txt", b"up")) == [("", "up")]
        process = reader.child._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def test_the_child_is_told_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    reader = Reader(tmp_path)
    with reader.child:
        reader("a.txt", b"up")
        process = reader.child._process
        assert process is not None
        told = Path(f"/proc/{process.pid}/environ")
        if told.exists():
            assert b"hunter2" not in told.read_bytes()


def test_our_archives_are_what_zipfile_reads() -> None:
    with zipfile.ZipFile(io.BytesIO(nested(0))) as archive:
        assert archive.read("a.txt") == b"deep"
