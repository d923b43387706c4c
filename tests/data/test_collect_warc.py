"""WARC files: what is kept of them, damaged ones, and only new files in later runs."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from catena.core.stage import Context
from catena.data.collect.warc import content_type, dechunked

from .loopback import collect, counts, reasons


def record(
    url: str, body: bytes, status: str = "200 OK", kind: str = "text/html; charset=utf-8", extra: str = "", **more: str
) -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{extra}\r\n".encode() + body
    head = {
        "WARC-Type": "response",
        "WARC-Record-ID": f"<urn:uuid:{url[-1:] * 36}>",
        "WARC-Target-URI": url,
        "WARC-Date": "2026-01-01T00:00:00Z",
        "Content-Type": "application/http; msgtype=response",
        **{name.replace("_", "-"): value for name, value in more.items()},
        "Content-Length": str(len(http)),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"WARC/1.1\r\n{lines}\r\n".encode() + http + b"\r\n\r\n"


def put(path: Path, *records: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(gzip.compress(entry) if path.suffix == ".gz" else entry for entry in records))
    return path


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_responses_become_rows_like_those_of_a_crawl(context: Context, tmp_path: Path, name: str) -> None:
    put(
        tmp_path / "in" / name,
        record("http://h/b", b"<p>b</p>"),
        record("http://h/a", "甲".encode("gbk"), kind="text/plain; charset=GBK"),
        record("http://h/z", gzip.compress(b"<p>zipped</p>"), extra="Content-Encoding: gzip\r\n"),
        record("http://h/c", b"5\r\nhello\r\n0\r\n\r\n", extra="Transfer-Encoding: chunked\r\n"),
    )
    version = collect(context, "data.collect_warc", url=str(tmp_path / "in"), license="CC0-1.0")
    rows = list(context.store.open_dataset(version).samples())
    assert [row.source for row in rows] == ["http://h/a", "http://h/b", "http://h/c", "http://h/z"]
    assert [row.data["content"] for row in rows] == ["甲".encode("gbk"), b"<p>b</p>", b"hello", b"<p>zipped</p>"]
    assert (rows[0].metadata["charset"], rows[0].data["media_type"]) == ("gbk", "text/plain")
    assert (rows[1].metadata["status"], rows[1].metadata["warc"], rows[1].license) == (200, name, "CC0-1.0")


def test_records_that_are_no_pages_are_rejects_with_their_reason(context: Context, tmp_path: Path) -> None:
    put(
        tmp_path / "in" / "a.warc.gz",
        record("http://h/1", b"moved", status="301 Moved"),
        record("http://h/2", b"\x89PNG", kind="image/png"),
        record("http://h/3", b"x" * 2000),
        record("http://h/4", b""),
        record("http://h/5", b"", WARC_Type="revisit"),
        record("http://h/6", b"\x1fbroken", extra="Content-Encoding: gzip\r\n"),
        record("http://h/7", gzip.compress(b"0" * 10_000_000)[:900], extra="Content-Encoding: gzip\r\n"),
        record("http://h/8", b"<p>good</p>"),
    )
    version = collect(context, "data.collect_warc", url=str(tmp_path / "in"), max_bytes=1000)
    found = {key.split(" ")[0][-1]: why for key, why in reasons(context, version).items()}
    assert found == {
        "1": "http_error",
        "2": "unsupported_type",
        "3": "too_large",
        "4": "empty",
        "5": "revisit",
        "6": "bad_record",
        "7": "too_large",
    }
    assert version.rows == 1


def test_a_damaged_file_is_a_reject_and_what_stood_before_the_damage_stays(context: Context, tmp_path: Path) -> None:
    whole = put(tmp_path / "in" / "a.warc.gz", *(record(f"http://h/{n}", b"<p>x</p>") for n in range(3))).read_bytes()
    (tmp_path / "in" / "a.warc.gz").write_bytes(whole[: len(whole) // 2] + b"\x00" * 50)
    (tmp_path / "in" / "b.warc").write_bytes(b"this is not a WARC file\r\n" * 50)
    one = record("http://h/9", b"y" * 100)
    put(tmp_path / "in" / "c.warc", one[:-40])
    version = collect(context, "data.collect_warc", url=str(tmp_path / "in"))
    found = reasons(context, version)
    assert found == {"a.warc.gz ": "truncated", "b.warc ": "damaged", "c.warc ": "truncated"}
    assert version.rows == 1


def test_only_new_files_are_read_and_a_mended_one_takes_its_reject_away(context: Context, tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.warc.gz", record("http://h/1", b"<p>1</p>"))
    (tmp_path / "in" / "b.warc").write_bytes(b"this is not a WARC file\r\n" * 50)
    first = collect(context, "data.collect_warc", url=str(tmp_path / "in"))
    assert counts(first) == {"new": 1}
    put(tmp_path / "in" / "b.warc", record("http://h/2", b"<p>2</p>"))
    second = collect(context, "data.collect_warc", url=str(tmp_path / "in"))
    assert counts(second) == {"kept": 1, "new": 1}
    assert not reasons(context, second)
    assert collect(context, "data.collect_warc", url=str(tmp_path / "in")).digest == second.digest


def test_a_run_goes_on_inside_a_file(context: Context, tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.warc.gz", *(record(f"http://h/{n:04d}", b"<p>%d</p>" % n) for n in range(600)))
    whole = collect(context, "data.collect_warc", url=str(tmp_path / "in"))
    parts = Context(context.store, context.workdir, 7, context.events, "parts")
    rows = [collect(parts, "data.collect_warc", url=str(tmp_path / "in"), max_records=200).rows for _ in range(3)]
    assert rows == [256, 511, 600]
    assert parts.store.resolve("parts").digest == whole.digest


def test_headers_and_chunks_of_every_kind() -> None:
    assert content_type("Text/HTML; Charset=UTF-8") == ("text/html", "utf-8")
    assert content_type("") == ("", "")
    assert dechunked(b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") == b"abcde"
    assert dechunked(b"not chunked at all") == b"not chunked at all"
    assert dechunked(b"3\r\nabc\r\nff") == b"abc"
