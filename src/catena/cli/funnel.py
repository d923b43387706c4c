"""A funnel as a drawing: for each dataset on the way a bar of the rows that came in, went on, and were kept back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, BAR, LEFT, ROW = 860, 420, 250, 62
KEPT, REJECTED, INK = "#2a7f9e", "#d9822b", "#777777"  # apart for colour-blind eyes, readable on black and on white


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a self-contained SVG of the rows that `show.funnel_of` gives."""
    largest = max([row["rows_in"] for row in rows] + [row["rows_out"] for row in rows] + [1])
    height = ROW * len(rows) + 20
    parts = [_row(row, 10 + ROW * number, BAR / largest) for number, row in enumerate(rows)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="13" fill="{INK}" role="img">\n<title>Funnel</title>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _row(row: Mapping[str, Any], top: int, scale: float) -> str:
    kept_back = sum(row["rejected"].values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(row["rejected"].items(), key=lambda i: -i[1]))
    kept_width, lost_width = row["rows_out"] * scale, kept_back * scale
    return "\n".join(
        [
            f'<text x="{LEFT - 12}" y="{top + 16}" text-anchor="end" font-weight="bold">{escape(row["ref"])}</text>',
            f'<text x="{LEFT - 12}" y="{top + 33}" text-anchor="end">{escape(row["stage"])}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{kept_width:.1f}" height="22" fill="{KEPT}"/>',
            f'<rect x="{LEFT + kept_width:.1f}" y="{top}" width="{lost_width:.1f}" height="22" fill="{REJECTED}"/>',
            f'<text x="{LEFT + kept_width + lost_width + 8:.1f}" y="{top + 16}">'
            f"{row['rows_in']:,} in, {row['rows_out']:,} out</text>",
            f'<text x="{LEFT}" y="{top + 39}" font-size="12">{escape(reasons)}</text>',
        ]
    )
