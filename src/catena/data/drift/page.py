"""The page about drift: one HTML file with a table and a plot of each feature, without scripts or requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from catena.hub.files import write_atomically

if TYPE_CHECKING:
    from catena.data.drift.stage import Found

COLOURS = ("#0072b2", "#d55e00")
"""Of the reference, and of now; told apart by people with any colour vision."""
LEFT, WIDTH, HEIGHT, FOOT, LONGEST_LABEL = 40, 860, 170, 40, 24


def write_page(details: Mapping[str, Any], found: Sequence[Found], path: Path) -> None:
    """Write the page of a comparison."""
    environment = Environment(
        loader=PackageLoader("catena.data.drift", "."),
        autoescape=True,  # topics are words of users
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    plots = {one.name: Markup(_plot(one)) for one in found if one.labels}
    html = environment.get_template("page.jinja").render(details=details, found=found, plots=plots)
    write_atomically(path, html.encode())


def _plot(one: Found) -> str:
    """Return bars of both sides as SVG: drawn by hand, so that labels of any script stand in it."""
    sides = [[count / max(1, sum(counts)) for count in counts] for counts in (one.reference, one.current)]
    top = max(max(shares) for shares in sides) or 1.0
    slot = WIDTH / len(one.labels)
    size = min(11, max(7, slot / 9))
    parts = [
        f'<svg viewBox="0 0 {LEFT + WIDTH + 10} {HEIGHT + FOOT + 20}" role="img" aria-label="{escape(one.name)}"'
        ' font-family="sans-serif" font-size="11">'
    ]
    for share in (0.0, top / 2, top):
        y = 15 + HEIGHT * (1 - share / top)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{LEFT + WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
    for place, label in enumerate(one.labels):
        for number, shares in enumerate(sides):
            high = HEIGHT * shares[place] / top
            x = LEFT + slot * (place + 0.1 + 0.4 * number)
            parts.append(
                f'<rect x="{x:.1f}" y="{15 + HEIGHT - high:.1f}" width="{0.38 * slot:.1f}" height="{high:.1f}"'
                f' fill="{COLOURS[number]}"><title>{100 * shares[place]:.1f} %</title></rect>'
            )
        short = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
        parts.append(
            f'<text x="{LEFT + slot * (place + 0.5):.1f}" y="{15 + HEIGHT + 14}" text-anchor="middle"'
            f' font-size="{size:.0f}">{escape(short)}</text>'
        )
    for number, name in enumerate(("reference", "now")):
        x, y = LEFT + 120 * number, 15 + HEIGHT + FOOT
        parts.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{COLOURS[number]}"/>')
        parts.append(f'<text x="{x + 15}" y="{y}">{name}</text>')
    return "".join((*parts, "</svg>"))
