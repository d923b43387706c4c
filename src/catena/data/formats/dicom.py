"""DICOM: medical pictures, with whatever names a person taken out.

Of the header only elements on the list of `KEPT` go on (PS3.15 goes the other way and lists what to remove: a list of
what is safe also holds for elements that nobody thought of), in the metadata and in the stored bytes alike. Identifiers
are derived anew from the content. What is burned into the picture itself stays: look at `BurnedInAnnotation`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

from catena.core.digest import sha256
from catena.data.formats.pieces import Piece, Row, Source, Unreadable

SHOWN = (
    "Modality", "BodyPartExamined", "PhotometricInterpretation", "Manufacturer", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "ImageOrientationPatient", "ImagePositionPatient", "WindowCenter", "WindowWidth", "RescaleSlope",
    "RescaleIntercept", "KVP", "MagneticFieldStrength", "RepetitionTime", "EchoTime", "BurnedInAnnotation",
    "Laterality", "ViewPosition",
)  # fmt: skip
"""Elements that the metadata shows where they are there."""
KEPT = frozenset(SHOWN) | {
    "SOPClassUID", "SpecificCharacterSet", "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelData",
    "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "PixelAspectRatio", "RescaleType",
    "LossyImageCompression", "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
}  # fmt: skip
"""Elements that the stored bytes keep."""
UID_ROOT = "2.25."
"""The root of identifiers that are derived from a 128-bit number (PS3.5, B.2)."""


def read_dicom(source: Source) -> Iterator[Piece]:
    """Yield a DICOM file without personal elements as one row, with pixel statistics where pixels are not packed."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    body = source.read_bytes()
    try:
        found = pydicom.dcmread(io.BytesIO(body))
        cleaned, removed = _without_persons(found, sha256(body))
        facts: dict[str, Any] = {_snake(name): _plain(found[name].value) for name in SHOWN if name in found}
        facts |= {"transfer_syntax": found.file_meta.TransferSyntaxUID.name, "elements_removed": removed}
        facts |= _pixels(found, source)
        out = io.BytesIO()
        cleaned.save_as(out, enforce_file_format=True)
    except InvalidDicomError as error:
        raise Unreadable("damaged", str(error)[:300]) from error
    except (ValueError, AttributeError, KeyError, TypeError, OSError, EOFError, NotImplementedError) as error:
        # pydicom has no error of its own for a file that breaks off or contradicts itself.
        raise Unreadable("damaged", f"{type(error).__name__}: {error}"[:300]) from error
    yield Row(out.getvalue(), facts)


def _without_persons(found: Any, digest: str) -> tuple[Any, int]:
    """Return a data set with only `KEPT` elements and how many it lost."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = found.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID = found.get("SOPClassUID", found.file_meta.get("MediaStorageSOPClassUID", "1.2"))
    meta.MediaStorageSOPInstanceUID = UID_ROOT + str(int(digest[:32], 16))
    cleaned = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    removed = 0
    for element in found:
        if element.keyword in KEPT:
            cleaned.add(element)
        else:
            removed += 1
    cleaned.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    return cleaned, removed


def _pixels(found: Any, source: Source) -> dict[str, Any]:
    """Return least, greatest and mean value of the pixels; nothing for a picture in a packed transfer syntax."""
    if "PixelData" not in found or found.file_meta.TransferSyntaxUID.is_compressed:
        return {}
    count = int(found.Rows) * int(found.Columns) * int(found.get("NumberOfFrames", 1) or 1)
    if count > source.limits.pixels:
        raise Unreadable("too_large", f"{count} pixels")
    values = found.pixel_array
    return {
        "pixel_min": int(values.min()),
        "pixel_max": int(values.max()),
        "pixel_mean": round(float(values.mean(dtype="float64")), 4),
    }


def _snake(name: str) -> str:
    return "".join(
        f"_{letter.lower()}" if letter.isupper() and place and not name[place - 1].isupper() else letter.lower()
        for place, letter in enumerate(name)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, str | int) or value is None:
        return int(value) if isinstance(value, int) else value
    if isinstance(value, float):
        return float(value)
    if hasattr(value, "__iter__"):
        return [_plain(item) for item in value]
    return str(value)
