"""Sitemaps (sitemaps.org): which pages a site names itself. Values only, no network."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass

MAX_BYTES = 50 << 20
"""Largest sitemap, unpacked, as the protocol has it."""
MAX_ADDRESSES = 50_000
"""Most addresses of one sitemap, as the protocol has it."""


@dataclass(frozen=True, slots=True)
class Sitemap:
    """What one sitemap names: pages, or further sitemaps."""

    pages: tuple[str, ...] = ()
    sitemaps: tuple[str, ...] = ()


def read_sitemap(body: bytes) -> Sitemap:
    """Read a sitemap or an index of sitemaps: XML, or plain text with an address on each line; either may be gzipped.

    Raises `ValueError` that says what is wrong with it.
    """
    if body[:2] == b"\x1f\x8b":
        body = _unpacked(body)
    if len(body) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    if body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"<":
        lines = body.decode("utf-8-sig", "replace").splitlines()[:MAX_ADDRESSES]
        return Sitemap(tuple(line.strip() for line in lines if line.strip().startswith(("http://", "https://"))))
    return _from_xml(body)


def _unpacked(body: bytes) -> bytes:
    try:
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
        return unpack.decompress(body, MAX_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"it is no sound gzip: {error}") from error


def _from_xml(body: bytes) -> Sitemap:
    import defusedxml.ElementTree as safe
    from defusedxml.common import DefusedXmlException

    found: dict[str, list[str]] = {"url": [], "sitemap": []}
    try:
        for _, element in safe.iterparse(io.BytesIO(body), events=("end",)):
            name = element.tag.rpartition("}")[2]
            if name in found:
                # Images and alternates have a `loc` too, in elements of their own.
                address = next((child.text for child in element if child.tag.rpartition("}")[2] == "loc"), "")
                if address and address.strip() and len(found[name]) < MAX_ADDRESSES:
                    found[name].append(address.strip())
                element.clear()
    except (SyntaxError, DefusedXmlException) as error:
        raise ValueError(f"it is no sound XML: {error}") from error
    return Sitemap(tuple(found["url"]), tuple(found["sitemap"]))
