from __future__ import annotations

from pathlib import Path

import pytest

from catena.data.formats.table import READERS, by_extension, by_magic, detect, formats
from tests.data import sample_files


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.txt", b"text", "txt"),
        ("a.MD", b"# Title", "md"),
        ("a.bin", b"%PDF-1.7 ...", "pdf"),
        ("a.txt", b"\x89PNG\r\n\x1a\n...", "png"),
        ("a", b"  <!DOCTYPE HTML><p>x", "html"),
        ("a", b"\xef\xbb\xbf<?xml version='1.0'?><a/>", "xml"),
        ("page.html", b"<?xml version='1.0'?><html/>", "html"),
        ("a.dat", bytes(128) + b"DICM", "dicom"),
        ("a.dat", b"RIFF\0\0\0\0WAVEfmt ", "wav"),
        ("a.dat", b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        ("a.dat", b"\0\0\0\x1cftypisom", "mp4"),
        ("a.dat", bytes(257) + b"ustar\x0000", "tar"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "gz"),
        ("a.pdf", b"not one at all", "pdf"),
    ],
)
def test_bytes_decide_before_the_extension(tmp_path: Path, name: str, content: bytes, format: str) -> None:
    found = detect(put(tmp_path, "file", content), name)
    assert found is not None
    assert found.name == format


def test_an_archive_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    for format, content in {
        "docx": sample_files.docx(["x"]),
        "xlsx": sample_files.xlsx({"a": [["x"]]}),
        "pptx": sample_files.pptx([["x"]]),
        "epub": sample_files.epub({"a": "x"}),
        "zip": sample_files.zipped({"a.txt": "x"}),
    }.items():
        found = detect(put(tmp_path, "file", content), "download")
        assert found is not None
        assert found.name == format


def test_what_is_unknown_is_unknown(tmp_path: Path) -> None:
    assert detect(put(tmp_path, "file", b"\0\1\2\3"), "a.xyz") is None
    assert by_extension("folder.txt/file") is None
    assert by_magic(b"") is None


def test_every_format_has_a_reader_that_is_there_and_no_two_want_one_extension() -> None:
    extensions = [extension for each in formats().values() for extension in each.extensions]
    assert len(extensions) == len(set(extensions))
    assert all(callable(READERS.load(each.reader)) for each in formats().values())


def test_the_page_about_formats_names_each_of_them() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
    assert [name for name in formats() if f"| {name} |" not in page and name != "ole"] == []
