"""Parquet: rows batch by batch; a file that says it unpacks to more than the limit is not opened further."""

from __future__ import annotations

from collections.abc import Iterator

from catena.data.formats.pieces import Piece, Reject, Source, Unreadable
from catena.data.formats.records import record_row

BATCH_ROWS = 256


def read_parquet(source: Source) -> Iterator[Piece]:
    """Yield each record as a row."""
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(source.path) as table:
            described = table.metadata
            unpacked = sum(described.row_group(n).total_byte_size for n in range(described.num_row_groups))
            if unpacked > source.limits.unpacked_bytes:
                raise Unreadable("archive_bomb", f"it unpacks to {unpacked} bytes")
            if len(set(table.schema_arrow.names)) != len(table.schema_arrow.names):
                raise Unreadable("duplicate_key", "two columns have one name")
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield _row(values, number, source.reading.text_field)
    except pa.ArrowMemoryError as error:
        raise MemoryError from error
    except (pa.ArrowException, OSError) as error:
        raise Unreadable("damaged", f"after row {number}: {error}"[:300]) from error


def _row(values: dict[str, object], number: int, text_field: str) -> Piece:
    place = {"row": number}
    if not any(value not in (None, "", b"") for value in values.values()):
        return Reject("empty", f"row {number}: all fields are empty", place)
    return record_row(values, place, text_field)
