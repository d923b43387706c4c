"""Files of every format go in, rows come out: one folder with a file of each, read once in each shape."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pydicom
import pytest
from PIL import Image
from pyarrow import parquet
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from catena.core.events import Events
from catena.core.sample import Sample
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.hub.store import init_store
from tests.data import sample_files
from tests.data.stores import rejects, run, samples

ARTICLE = "The path module joins and splits the names of files, and hides how each system writes them. " * 3

CHINESE = (
    "# 标题\n\n这个模块用来连接和拆分文件的名字。需要在多种系统上运行的程序会用到它，因为每个系统写名字的方法都不一样。"
)


def picture(format: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (8, 6)).save(out, format)
    return out.getvalue()


def sound(container: str, codec: str, seconds: int = 1) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as made:
        stream = made.add_stream(codec, rate=16_000)
        stream.layout = "mono"
        samples = np.zeros((1, 16_000 * seconds), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode()):
            made.mux(packet)
    return out.getvalue()


def video() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as made:
        stream = made.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for level in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), level * 20, np.uint8))
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return out.getvalue()


def dicom() -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4.5.6"
    scan = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    scan.PatientName, scan.PatientID, scan.PatientBirthDate = "Doe^Jane", "MRN-778", "19700101"
    scan.InstitutionName, scan.StudyDate, scan.SOPInstanceUID = "General Hospital", "20200229", "1.2.3.4.5.6"
    scan.add_new((0x0009, 0x0010), "LO", "PRIVATE Doe")
    scan.Modality, scan.Rows, scan.Columns, scan.PixelSpacing = "CT", 4, 5, [0.5, 0.5]
    scan.SamplesPerPixel, scan.PhotometricInterpretation = 1, "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 12, 11, 0
    scan.PixelData = np.arange(20, dtype=np.uint16).tobytes()
    out = io.BytesIO()
    scan.save_as(out, enforce_file_format=True)
    return out.getvalue()


def table() -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table({"text": ["row one", "row two"], "n": [1, 2]}), out)
    return out.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


def files() -> dict[str, bytes]:
    page = f"<html><head><title>T</title></head><body><nav>Home</nav><main><p>{ARTICLE}</p></main></body></html>"
    return {
        "a.txt": "plain\r\ntext\u200d\u202eabc\ufeff".encode(),
        "b.md": CHINESE.encode("gb18030"),
        "c.html": page.encode(),
        "d.pdf": sample_files.pdf(["First page", "Second page"]),
        "e.docx": sample_files.docx(["A paragraph.", "第二段。"], "Heading", [["x", "y"]]),
        "f.pptx": sample_files.pptx([["Slide one", "text"], ["Slide two"]]),
        "g.xlsx": sample_files.xlsx({"Sales": [["month", "sum"], ["May", 3.5]], "Notes": [["none"]]}),
        "h.epub": sample_files.epub({"One": "It begins.", "Two": "结束。"}),
        "i.csv": b"text,n\nfrom csv,1\n",
        "j.tsv": b"text\tn\nfrom tsv\t1\n",
        "k.json": b'[{"text": "from json"}]',
        "l.jsonl": b'{"text": "from jsonl"}\n',
        "m.parquet": table(),
        "n.xml": '<?xml version="1.0" encoding="GBK"?><a><b>从</b><b>xml  to text</b></a>'.encode("gbk"),
        "o.png": picture("PNG"),
        "p.jpg": picture("JPEG", "L"),
        "q.tiff": picture("TIFF"),
        "r.webp": picture("WEBP"),
        "s.dcm": dicom(),
        "t.wav": sample_files.wav(),
        "u.flac": sound("flac", "flac"),
        "v.mp3": sound("mp3", "libmp3lame"),
        "w.mp4": video(),
        "x.zip": sample_files.zipped({"in/one.txt": "zipped", "../two.txt": "outside", "C:\\x.txt": "drive"}),
        "x.tgz": gzip.compress(tar({"one.txt": b"tarred", "/abs.txt": b"no"}), mtime=0),
        "y.jsonl.gz": gzip.compress(b'{"text": "gzipped"}\n', mtime=0),
        "y.txt.bz2": bz2.compress(b"bzipped"),
        "y.txt.xz": lzma.compress(b"xzipped"),
        "z.unknown": b"\0\1\2",
    }


class Reading:
    """What came of the folder in one shape."""

    def __init__(self, context: Context, folder: Path, **values: Any) -> None:
        self.version: DatasetVersion = run(context, "data.ingest", {"paths": [str(folder)], **values})
        self.rows: dict[str, list[Sample]] = {}
        for row in samples(context.store, self.version):
            self.rows.setdefault(str(row.metadata["path"]), []).append(row)
        self.rejects = {row.source: reason for row, reason, _ in rejects(context.store, self.version)}

    def text(self, name: str) -> list[str]:
        return [row.text for row in self.rows[name]]

    def facts(self, name: str) -> dict[str, Any]:
        common = ("path", "sha256", "format", "member")
        return {key: value for key, value in self.rows[name][0].metadata.items() if key not in common}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Context, Path]]:
    folder = tmp_path_factory.mktemp("formats")
    (folder / "files").mkdir()
    (folder / "work").mkdir()
    for name, content in files().items():
        (folder / "files" / name).write_bytes(content)
    store = init_store(folder / ".catena")
    yield Context(store, folder / "work", 7, Events(), "formats", workers=2), folder / "files"
    store.close()


@pytest.fixture(scope="module")
def documents(opened: tuple[Context, Path]) -> Reading:
    return Reading(*opened)


@pytest.fixture(scope="module")
def media(opened: tuple[Context, Path]) -> Reading:
    return Reading(*opened, shape="media")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", ["plain\ntext\u200d\u202eabc"]),
        ("b.md", [CHINESE]),
        ("c.html", [ARTICLE.strip()]),
        ("d.pdf", ["First page\n\nSecond page"]),
        ("e.docx", ["Heading\n\nA paragraph.\n\n第二段。\n\nx y"]),
        ("f.pptx", ["Slide one\n\ntext\n\nSlide two"]),
        ("g.xlsx", ["Sales\nmonth\tsum\nMay\t3.5\n\nNotes\nnone"]),
        ("h.epub", ["One\n\nIt begins.\n\nTwo\n\n结束。"]),
        ("i.csv", ["from csv"]),
        ("j.tsv", ["from tsv"]),
        ("k.json", ["from json"]),
        ("l.jsonl", ["from jsonl"]),
        ("m.parquet", ["row one", "row two"]),
        ("n.xml", ["从\nxml to text"]),
        ("x.zip", ["zipped"]),
        ("x.tgz", ["tarred"]),
        ("y.jsonl.gz", ["gzipped"]),
        ("y.txt.bz2", ["bzipped"]),
        ("y.txt.xz", ["xzipped"]),
    ],
)
def test_text_comes_out_of(documents: Reading, name: str, expected: list[str]) -> None:
    assert documents.text(name) == expected


def test_what_gives_no_text_is_a_reject_with_its_reason(documents: Reading) -> None:
    pictures = {name for name in files() if name[0] in "opqrstuvw"}
    assert {name for name, reason in documents.rejects.items() if reason == "not_text"} == pictures
    others = {name: reason for name, reason in documents.rejects.items() if reason != "not_text"}
    assert others == {
        "x.zip!/../two.txt": "unsafe_path",
        "x.zip!/C:\\x.txt": "unsafe_path",
        "x.tgz!/x.tar!//abs.txt": "unsafe_path",
        "x.tgz!/x.tar!/link": "unsafe_path",
        "z.unknown": "unsupported_format",
    }


def test_rows_say_where_they_are_from(documents: Reading) -> None:
    (row,) = documents.rows["x.zip"]
    assert (row.source, row.metadata["member"], row.metadata["format"]) == ("x.zip!/in/one.txt", "in/one.txt", "txt")
    assert documents.facts("d.pdf") == {"pages": 2, "title": ""}
    assert documents.facts("h.epub") == {"title": "A book"}
    assert documents.facts("c.html") == {"title": "T", "extractor": "resiliparse", "charset": "utf-8"}
    assert documents.facts("n.xml") == {"charset": "gb18030", "root": "a"}
    assert documents.facts("m.parquet") == {"row": 1, "fields": {"n": 1}}
    assert list(documents.rows) == sorted(documents.rows)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("o.png", {"width": 8, "height": 6, "mode": "RGB", "frames": 1}),
        ("p.jpg", {"width": 8, "height": 6, "mode": "L", "frames": 1}),
        ("q.tiff", {"width": 8, "height": 6, "mode": "RGB", "frames": 1}),
        ("r.webp", {"width": 8, "height": 6, "mode": "RGB", "frames": 1}),
        ("t.wav", {"seconds": 0.5, "audio_codec": "pcm_s16le", "rate": 8000, "channels": 1}),
        ("u.flac", {"seconds": 1.0, "audio_codec": "flac", "rate": 16000, "channels": 1}),
        (
            "w.mp4",
            {"seconds": 1.0, "video_codec": "mpeg4", "width": 32, "height": 16, "frames_per_second": 10.0},
        ),
    ],
)
def test_media_rows_hold_the_bytes_and_what_they_show(media: Reading, name: str, expected: dict[str, Any]) -> None:
    assert media.facts(name) == expected
    assert media.rows[name][0].data["content"] == files()[name]


def test_an_mp3_tells_its_rate_and_about_how_long_it_is(media: Reading) -> None:
    facts = media.facts("v.mp3")
    assert facts["seconds"] == pytest.approx(1, abs=0.15)
    assert (facts["rate"], media.rows["v.mp3"][0].data["media_type"]) == (16000, "audio/mpeg")


def test_any_file_may_be_a_media_row_as_it_is(media: Reading) -> None:
    (row,) = media.rows["c.html"]
    assert (row.data["content"], row.data["media_type"]) == (files()["c.html"], "text/html")


def test_a_dicom_file_loses_everything_that_names_a_person(media: Reading) -> None:
    (row,) = media.rows["s.dcm"]
    facts = media.facts("s.dcm")
    assert (facts["modality"], facts["rows"], facts["columns"], facts["pixel_spacing"]) == ("CT", 4, 5, [0.5, 0.5])
    assert (facts["pixel_min"], facts["pixel_max"], facts["pixel_mean"]) == (0, 19, 9.5)
    for told in (str(dict(row.metadata)).encode(), row.data["content"]):
        for secret in (b"Doe", b"MRN-778", b"19700101", b"Hospital", b"20200229", b"1.2.3.4.5.6"):
            assert secret not in told
    scan = pydicom.dcmread(io.BytesIO(row.data["content"]))
    assert scan.pixel_array.tolist() == np.arange(20).reshape(4, 5).tolist()


def test_pages_slides_and_sheets_can_be_rows_of_their_own(opened: tuple[Context, Path]) -> None:
    found = Reading(*opened, per="page", formats=["pdf", "pptx", "xlsx"])
    assert found.text("d.pdf") == ["First page", "Second page"]
    assert [(row.text, row.metadata["slide"]) for row in found.rows["f.pptx"]] == [
        ("Slide one\n\ntext", 1),
        ("Slide two", 2),
    ]
    assert [(row.metadata["name"], row.text) for row in found.rows["g.xlsx"]] == [
        ("Sales", "month\tsum\nMay\t3.5"),
        ("Notes", "none"),
    ]
    assert found.rejects["a.txt"] == "not_wanted"


def test_the_number_of_workers_changes_nothing(opened: tuple[Context, Path], documents: Reading) -> None:
    context, folder = opened
    assert Reading(replace(context, workers=1), folder).version.digest == documents.version.digest
