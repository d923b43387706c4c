"""The chain as a drawing: boxes in columns from left to right, and curves between them. SVG text; no NiceGUI."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from catena.console.read.overview import Box, Chain

WIDTH, HEIGHT, GAP_X, GAP_Y, TOP, MARGIN = 226, 50, 36, 14, 30, 2
NAME, BELOW = 25, 34
"""Characters that fit into a box: of its name, and of the line below."""


def draw(chain: Chain, title: Callable[[str], str], href: Callable[[Box], str]) -> Markup:
    """Return the drawing; `title` says what stands above a column, `href` where a box leads."""
    height = TOP + max(len(column) for _, column in chain.columns) * (HEIGHT + GAP_Y)
    width = len(chain.columns) * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    places: dict[str, tuple[float, float]] = {}
    boxes = []
    for number, (name, column) in enumerate(chain.columns):
        x = MARGIN + number * (WIDTH + GAP_X)
        boxes.append(Markup('<text class="c-column" x="{}" y="14">{}</text>').format(x, title(name)))
        offset = (height - TOP - len(column) * (HEIGHT + GAP_Y)) / 2
        for row, box in enumerate(column):
            places[box.id] = (x, TOP + offset + row * (HEIGHT + GAP_Y))
            boxes.append(_box(box, *places[box.id], href(box)))
    lines = [_link(places[one], places[other]) for one, other in chain.links if one in places and other in places]
    return Markup(
        '<div class="c-scroll" tabindex="0"><svg class="c-chain" viewBox="0 0 {w} {h}" style="max-width:{w}px">'
        "{links}{boxes}</svg></div>"
    ).format(w=width, h=round(height), links=Markup("").join(lines), boxes=Markup("").join(boxes))


def _box(box: Box, x: float, y: float, href: str) -> Markup:
    return Markup(
        '<a href="{}"><title>{}</title><rect class="c-box c-{}" x="{}" y="{:.1f}" width="{}" height="{}" rx="8"/>'
        '<rect class="c-edge c-{}" x="{}" y="{:.1f}" width="4" height="{}" rx="2"/>'
        '<text class="c-name" x="{}" y="{:.1f}">{}</text><text class="c-facts1" x="{}" y="{:.1f}">{}</text></a>'
    ).format(
        href,
        f"{box.ref}\n{box.below}",
        *(box.kind, x, y, WIDTH, HEIGHT),
        *(box.kind, x + 7, y + 9, HEIGHT - 18),
        *(x + 19, y + (21 if box.below else 30), _cut(_name(box), NAME)),
        *(x + 19, y + 37, _facts(box)),
    )


def _name(box: Box) -> str:
    return box.below.partition(":")[0] if box.kind == "report" else box.ref


def _facts(box: Box) -> str:
    """Return the facts without what the column says already."""
    told = box.below.removeprefix(f"{box.kind}, ")
    told = told.partition(": ")[2] if box.kind == "report" else told
    return told if len(told) <= BELOW else told[: BELOW - 1] + "…"


def _cut(text: str, most: int) -> str:
    """Cut the beginning: the end of `recipe/step@3` tells more."""
    return text if len(text) <= most else "…" + text[-most + 1 :]


def _link(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    x, y = start[0] + WIDTH, start[1] + HEIGHT / 2
    to, down = end[0], end[1] + HEIGHT / 2
    if to <= start[0]:  # in one column: around the right side
        path = f"M{x} {y:.1f} C{x + 30} {y:.1f} {x + 30} {down:.1f} {end[0] + WIDTH} {down:.1f}"
    else:
        bend = min(GAP_X * 0.7, (to - x) / 2)
        path = f"M{x} {y:.1f} C{x + bend:.1f} {y:.1f} {to - bend:.1f} {down:.1f} {to} {down:.1f}"
    return Markup('<path class="c-thread" d="{}"/>').format(path)
