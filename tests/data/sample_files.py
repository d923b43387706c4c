"""Small documents of every format, written from scratch: what the readers of formats are tested and timed on."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
SLIDE = "http://schemas.openxmlformats.org/presentationml/2006/main"
DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
EPOCH = (1980, 1, 1, 0, 0, 0)


def zipped(members: Mapping[str, str | bytes], *, stored: Sequence[str] = ()) -> bytes:
    """Return a ZIP archive with the same bytes each time."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            how = zipfile.ZIP_STORED if name in stored else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content, how)
    return out.getvalue()


def _types(overrides: Mapping[str, str]) -> str:
    parts = "".join(f'<Override PartName="{name}" ContentType="{kind}"/>' for name, kind in overrides.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Default Extension="xml" ContentType="application/xml"/>{parts}</Types>'
    )


def _relations(targets: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f'<Relationship Id="rId{number}" Type="{RELATIONS}/{kind}" Target="{target}"/>'
        for number, (kind, target) in enumerate(targets, 1)
    )
    return f'<?xml version="1.0" encoding="UTF-8"?><Relationships xmlns="{PACKAGE}">{rows}</Relationships>'


def docx(paragraphs: Sequence[str], heading: str = "", table: Sequence[Sequence[str]] = ()) -> bytes:
    """Return a Word document."""
    office = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"

    def paragraph(text: str, style: str = "") -> str:
        look = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
        return f'<w:p>{look}<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'

    body = paragraph(heading, "Heading1") if heading else ""
    body += "".join(map(paragraph, paragraphs))
    if table:
        rows = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in table)
        body += "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in rows) + "</w:tbl>"
    return zipped(
        {
            "[Content_Types].xml": _types({"/word/document.xml": office}),
            "_rels/.rels": _relations([("officeDocument", "word/document.xml")]),
            "word/document.xml": '<?xml version="1.0"?>'
            f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
        }
    )


def xlsx(sheets: Mapping[str, Sequence[Sequence[str | float]]]) -> bytes:
    """Return a workbook with inline strings."""
    base = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    names = "".join(
        f'<sheet name="{escape(name)}" sheetId="{number}" r:id="rId{number}"/>' for number, name in enumerate(sheets, 1)
    )
    members = {
        "[Content_Types].xml": _types(
            {"/xl/workbook.xml": f"{base}.sheet.main+xml"}
            | {f"/xl/worksheets/sheet{n}.xml": f"{base}.worksheet+xml" for n in range(1, len(sheets) + 1)}
        ),
        "_rels/.rels": _relations([("officeDocument", "xl/workbook.xml")]),
        "xl/workbook.xml": f'<?xml version="1.0"?><workbook xmlns="{SHEET}" xmlns:r="{RELATIONS}">'
        f"<sheets>{names}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": _relations(
            [("worksheet", f"worksheets/sheet{n}.xml") for n in range(1, len(sheets) + 1)]
        ),
    }
    for number, rows in enumerate(sheets.values(), 1):
        lines = []
        for place, row in enumerate(rows, 1):
            cells = "".join(_cell(f"{chr(65 + column)}{place}", value) for column, value in enumerate(row))
            lines.append(f'<row r="{place}">{cells}</row>')
        members[f"xl/worksheets/sheet{number}.xml"] = (
            f'<?xml version="1.0"?><worksheet xmlns="{SHEET}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
        )
    return zipped(members)


def _cell(place: str, value: str | float) -> str:
    if isinstance(value, str):
        return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    return f'<c r="{place}"><v>{value}</v></c>'


def pptx(slides: Sequence[Sequence[str]]) -> bytes:
    """Return a presentation; each slide is a list of text boxes."""
    base = "application/vnd.openxmlformats-officedocument.presentationml"
    ids = "".join(f'<p:sldId id="{255 + n}" r:id="rId{n}"/>' for n in range(1, len(slides) + 1))
    members = {
        "[Content_Types].xml": _types(
            {"/ppt/presentation.xml": f"{base}.presentation.main+xml"}
            | {f"/ppt/slides/slide{n}.xml": f"{base}.slide+xml" for n in range(1, len(slides) + 1)}
        ),
        "_rels/.rels": _relations([("officeDocument", "ppt/presentation.xml")]),
        "ppt/presentation.xml": f'<?xml version="1.0"?><p:presentation xmlns:p="{SLIDE}" xmlns:r="{RELATIONS}">'
        f"<p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": _relations(
            [("slide", f"slides/slide{n}.xml") for n in range(1, len(slides) + 1)]
        ),
    }
    for number, boxes in enumerate(slides, 1):
        shapes = "".join(
            f'<p:sp><p:nvSpPr><p:cNvPr id="{n}" name="box"/><p:cNvSpPr/><p:nvPr/></p:nvSpPr><p:spPr/><p:txBody>'
            f"<a:bodyPr/><a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p></p:txBody></p:sp>"
            for n, text in enumerate(boxes, 2)
        )
        members[f"ppt/slides/slide{number}.xml"] = (
            f'<?xml version="1.0"?><p:sld xmlns:p="{SLIDE}" xmlns:a="{DRAWING}"><p:cSld><p:spTree>'
            f'<p:nvGrpSpPr><p:cNvPr id="1" name=""/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr><p:grpSpPr/>'
            f"{shapes}</p:spTree></p:cSld></p:sld>"
        )
    return zipped(members)


def epub(chapters: Mapping[str, str], title: str = "A book") -> bytes:
    """Return an EPUB with a chapter for each title and text."""
    numbered = list(enumerate(chapters.items(), 1))
    manifest = "".join(f'<item id="c{n}" href="c{n}.xhtml" media-type="application/xhtml+xml"/>' for n, _ in numbered)
    spine = "".join(f'<itemref idref="c{n}"/>' for n, _ in numbered)
    members: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<?xml version="1.0"?><container version="1.0" '
        'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="OEBPS/content.opf" '
        'media-type="application/oebps-package+xml"/></rootfiles></container>',
        "OEBPS/content.opf": '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0" '
        'unique-identifier="id"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f'<dc:identifier id="id">urn:x</dc:identifier><dc:title>{escape(title)}</dc:title>'
        f"<dc:language>en</dc:language></metadata><manifest>{manifest}</manifest><spine>{spine}</spine></package>",
    }
    for number, (name, text) in numbered:
        members[f"OEBPS/c{number}.xhtml"] = (
            '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml">'
            f"<head><title>{escape(name)}</title></head><body><h1>{escape(name)}</h1><p>{escape(text)}</p></body></html>"
        )
    return zipped(members, stored=("mimetype",))


def pdf(pages: Sequence[str], *, encrypt: bool = False) -> bytes:
    """Return a PDF with a page for each text (ASCII); `encrypt` names an encryption that no reader has the key of."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        lines = (line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in text.split("\n"))
        shown = " T* ".join(f"({line}) Tj" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET".encode("latin-1")
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            + f"/Contents {5 + 2 * number} 0 R >>".encode()
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n".encode() + stream + b"\nendstream")
    extra = b""
    if encrypt:
        key = "<" + "41" * 32 + ">"
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /O {key} /U {key} /P -4 >>".encode())
        extra = f"/Encrypt {len(objects)} 0 R /ID [<00> <00>] ".encode()
    out, places = io.BytesIO(b"%PDF-1.4\n"), []
    out.seek(0, 2)
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(f"{number} 0 obj\n".encode() + body + b"\nendobj\n")
    start = out.tell()
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode())
    out.write("".join(f"{place:010d} 00000 n \n" for place in places).encode())
    out.write(f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R ".encode() + extra + b">>\nstartxref\n")
    out.write(f"{start}\n%%EOF\n".encode())
    return out.getvalue()


def wav(seconds: float = 0.5, rate: int = 8000) -> bytes:
    """Return silence as 16-bit PCM, one channel."""
    data = bytes(2 * int(seconds * rate))
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16,
                       b"data", len(data))  # fmt: skip
    return head + data
