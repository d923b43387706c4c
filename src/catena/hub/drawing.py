"""Drawing a lineage graph: one self-contained SVG, layered from the sources at the top to the results at the bottom.

    graph -> boxes (an artifact with the stages that made it) -> layers -> order in each layer -> places -> SVG

Chains are long and narrow, so layers are rows: the drawing fits a page and a phone. The method is Sugiyama's (1981):
layers by longest path, long links through placeholders, crossings reduced by the mean place of the neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from math import ceil

from catena.hub.lineage import RUN, Graph, facts_line

WIDTH, HEIGHT = 216, 62
GAP_X, GAP_Y = 24, 60
MARGIN = 12
PLACEHOLDER_WIDTH = 14
SWEEPS = 12
CHARACTERS, WIDE_FROM = 32, 29
"""Of the bold type, that fit into a box; from so many on they are set closer."""
LABEL_WIDTH = 84
"""Of an input's name; names that come closer than this stand one above the other."""

# Stroke colours by kind (Okabe and Ito's set, told apart by people with any colour vision); fills are the same, faint.
COLOURS: Mapping[str, str] = {
    "dataset": "#0072b2",
    "model": "#d55e00",
    "report": "#009e73",
    "run": "#8c8c8c",
    "gone": "#8c8c8c",
}
STYLE = """
.lineage text{font:11px system-ui,sans-serif;fill:#24292f}
.lineage .stage{font-size:10px;fill:#6e7781}
.lineage .name{font-weight:600}
.lineage .input{font-size:9px;fill:#6e7781}
.lineage .link{fill:none;stroke:#8c959f;stroke-width:1.2}
@media (prefers-color-scheme:dark){.lineage text{fill:#e6edf3}.lineage .stage,.lineage .input{fill:#9aa4af}}
"""


@dataclass
class _Box:
    """A box (or, without lines, a placeholder of a link that passes through a layer)."""

    id: str
    kind: str
    lines: tuple[str, ...] = ()
    title: str = ""
    layer: int = 0
    x: float = 0.0

    @property
    def width(self) -> float:
        return WIDTH if self.lines else PLACEHOLDER_WIDTH


@dataclass
class _Link:
    """A link between two boxes; `path` holds every box it runs through, ends included."""

    source: str
    target: str
    label: str
    path: list[str] = field(default_factory=list)
    port: float = 0.0
    """Where it ends, to the right of the middle of its target's upper side."""
    level: int = 0
    """How many names stand between its own and the target."""


def as_svg(graph: Graph) -> str:
    """Return the drawing as SVG text; it refers to nothing outside itself, and every text in it is escaped."""
    boxes, links = _collapse(graph)
    if not boxes:
        return '<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"></svg>'
    _assign_layers(boxes, links)
    _add_placeholders(boxes, links)
    rows = _ordered(boxes, links)
    _place(rows, boxes, links)
    _spread_ports(boxes, links)
    return _svg(rows, boxes, links)


def _collapse(graph: Graph) -> tuple[dict[str, _Box], list[_Link]]:
    """Draw each artifact and the runs that made it as one box; a run that only passed something on has its own."""
    owner: dict[str, str] = {}
    stages: dict[str, list[str]] = {}
    for edge in graph.edges:
        if edge.source.startswith(RUN):
            owner[edge.source] = edge.target
            stages.setdefault(edge.target, []).append(graph.node(edge.source).label)
    boxes: dict[str, _Box] = {}
    for node in graph.nodes:
        if node.id in owner:
            continue
        made_by = ", ".join(dict.fromkeys(stages.get(node.id, ())))
        above = made_by or ("passes on" if node.kind == "run" else node.kind)
        passed = str(node.facts.get("passes_on") or "")
        below = _name_of(graph, passed) if node.kind == "run" else facts_line(node)
        title = f"{node.label}\n{', '.join(node.names)}\n{facts_line(node)}\n{node.facts.get('digest', '')}"
        boxes[node.id] = _Box(node.id, node.kind, (above, node.label, below), title)
    links: dict[tuple[str, str], _Link] = {}
    for edge in graph.edges:
        if edge.source.startswith(RUN):
            continue
        target = owner.get(edge.target, edge.target)
        link = links.setdefault((edge.source, target), _Link(edge.source, target, edge.label))
        if edge.label not in link.label.split(", "):
            link.label += f", {edge.label}"
    return boxes, [link for link in links.values() if link.source != link.target]


def _name_of(graph: Graph, digest: str) -> str:
    return next((node.label for node in graph.nodes if node.id == digest), digest[:12])


def _assign_layers(boxes: dict[str, _Box], links: list[_Link]) -> None:
    """Put each box below all that it was made from. A link that closes a circle is dropped first.

    Circles exist: content is addressed by what it is, so two steps that undo each other lead back to the same artifact.
    """
    after: dict[str, list[_Link]] = {name: [] for name in boxes}
    for link in links:
        after[link.source].append(link)
    state: dict[str, int] = {}
    order: list[str] = []
    for start in boxes:
        stack = [(start, iter(after[start]))] if start not in state else []
        while stack:
            name, rest = stack[-1]
            state[name] = 1
            following = next(rest, None)
            if following is None:
                state[name] = 2
                order.append(name)
                stack.pop()
            elif state.get(following.target) == 1:
                links.remove(following)
            elif following.target not in state:
                stack.append((following.target, iter(after[following.target])))
    for name in reversed(order):
        for link in after[name]:
            if link in links:
                boxes[link.target].layer = max(boxes[link.target].layer, boxes[name].layer + 1)
    # What has nothing above it stands right above what needs it, not at the top.
    for name in order:
        below = [boxes[link.target].layer for link in after[name] if link in links]
        if below and not any(link.target == name for link in links):
            boxes[name].layer = min(below) - 1


def _add_placeholders(boxes: dict[str, _Box], links: Sequence[_Link]) -> None:
    """Give a link that jumps over layers a narrow box in each, so that it is led around the others."""
    for number, link in enumerate(links):
        first, last = boxes[link.source].layer, boxes[link.target].layer
        link.path = [link.source]
        for layer in range(first + 1, last):
            name = f"placeholder {number} {layer}"
            boxes[name] = _Box(name, "run", layer=layer)
            link.path.append(name)
        link.path.append(link.target)


def _ordered(boxes: dict[str, _Box], links: Sequence[_Link]) -> list[list[str]]:
    """Return the boxes by layer, in an order from left to right that has few crossings."""
    rows: list[list[str]] = [[] for _ in range(max(box.layer for box in boxes.values()) + 1)]
    for name, box in boxes.items():
        rows[box.layer].append(name)
    above, below = _neighbours(boxes, links)
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        towards = above if downwards else below
        for row in rows if downwards else reversed(rows):
            place = {name: number for other in rows for number, name in enumerate(other)}
            row.sort(key=lambda name: _mean([place[other] for other in towards[name]], place[name]))
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def _neighbours(boxes: dict[str, _Box], links: Sequence[_Link]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above: dict[str, list[str]] = {name: [] for name in boxes}
    below: dict[str, list[str]] = {name: [] for name in boxes}
    for link in links:
        for upper, lower in pairwise(link.path):
            below[upper].append(lower)
            above[lower].append(upper)
    return above, below


def _mean(places: Sequence[float], otherwise: float) -> float:
    return sum(places) / len(places) if places else otherwise


def _crossings(rows: Sequence[Sequence[str]], below: Mapping[str, Sequence[str]]) -> int:
    count = 0
    for upper, lower in pairwise(rows):
        place = {name: number for number, name in enumerate(lower)}
        ends = [(number, place[target]) for number, name in enumerate(upper) for target in below[name]]
        count += sum(a < c and b > d for a, b in ends for c, d in ends)
    return count


def _place(rows: Sequence[Sequence[str]], boxes: dict[str, _Box], links: Sequence[_Link]) -> None:
    """Give each box its horizontal middle: near its neighbours', and clear of the boxes beside it."""
    above, below = _neighbours(boxes, links)
    for row in rows:
        at = 0.0
        for name in row:
            boxes[name].x = at + boxes[name].width / 2
            at += boxes[name].width + GAP_X
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        towards = above if downwards else below
        for row in rows if downwards else reversed(rows):
            wanted = [_mean([boxes[other].x for other in towards[name]], boxes[name].x) for name in row]
            _settle([boxes[name] for name in row], wanted)
    left = min(box.x - box.width / 2 for box in boxes.values())
    for box in boxes.values():
        box.x += MARGIN - left


def _settle(row: Sequence[_Box], wanted: Sequence[float]) -> None:
    """Move the boxes of a row to where they are wanted; groups that would overlap share the way between them."""
    groups: list[tuple[list[int], float]] = []  # members, and where the first member's middle is wanted on average
    offset = [0.0] * len(row)
    for number in range(1, len(row)):
        offset[number] = offset[number - 1] + (row[number - 1].width + row[number].width) / 2 + GAP_X
    for number in range(len(row)):
        members, start = [number], wanted[number] - offset[number]
        while groups and groups[-1][1] >= start:
            before, its_start = groups.pop()
            start = (its_start * len(before) + start * len(members)) / (len(before) + len(members))
            members = before + members
        groups.append((members, start))
    for members, start in groups:
        for number in members:
            row[number].x = start + offset[number]


def _spread_ports(boxes: Mapping[str, _Box], links: Sequence[_Link]) -> None:
    """Let the links of a box end side by side, in the order in which they come."""
    incoming: dict[str, list[_Link]] = {}
    for link in links:
        incoming.setdefault(link.target, []).append(link)
    for arriving in incoming.values():
        arriving.sort(key=lambda link: boxes[link.path[-2]].x)
        step = (WIDTH - 24) / len(arriving)
        levels = min(ceil(LABEL_WIDTH / step), 3)
        for number, link in enumerate(arriving):
            link.port = (number - (len(arriving) - 1) / 2) * step
            link.level = number % levels


def _svg(rows: Sequence[Sequence[str]], boxes: Mapping[str, _Box], links: Sequence[_Link]) -> str:
    width = max(box.x + box.width / 2 for box in boxes.values()) + MARGIN
    height = len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lineage" role="img" aria-label="Lineage" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">',
        f"<style>{STYLE}</style>",
        *(_link_svg(link, boxes) for link in links),
        *(_box_svg(boxes[name]) for row in rows for name in row if boxes[name].lines),
        "</svg>",
    ]
    return "\n".join(parts)


def _top(box: _Box) -> float:
    return MARGIN + box.layer * (HEIGHT + GAP_Y)


def _link_svg(link: _Link, boxes: Mapping[str, _Box]) -> str:
    stops = [boxes[name] for name in link.path]
    x, y = stops[0].x, _top(stops[0]) + HEIGHT
    way = [f"M{x:.1f},{y:.1f}"]
    for box in stops[1:]:
        top, bend = _top(box), GAP_Y * 0.6
        end = box.x + (link.port if box.lines else 0)
        way.append(f"C{x:.1f},{y + bend:.1f} {end:.1f},{top - bend:.1f} {end:.1f},{top:.1f}")
        x, y = end, top
        if not box.lines:
            y = top + HEIGHT
            way.append(f"L{x:.1f},{y:.1f}")
    label = (
        f'<text class="input" x="{x + 3:.1f}" y="{y - 5 - 11 * link.level:.1f}">{escape(_short(link.label, 34))}</text>'
    )
    return f'<path class="link" d="{" ".join(way)}"/>{label}'


def _box_svg(box: _Box) -> str:
    colour, left, top = COLOURS[box.kind], box.x - WIDTH / 2, _top(box)
    dash = ' stroke-dasharray="4 3"' if box.kind in ("run", "gone") else ""
    texts = "".join(
        f'<text class="{style}" x="{left + 9:.1f}" y="{top + down}"{_closer(style, line)}>'
        f"{escape(_short(line, size))}</text>"
        for line, style, down, size in zip(
            box.lines,
            ("stage", "name", "stage"),
            (17, 34, 51),
            (CHARACTERS + 3, CHARACTERS, CHARACTERS + 3),
            strict=True,
        )
    )
    return (
        f"<g><title>{escape(box.title)}</title>"
        f'<rect x="{left:.1f}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{colour}" fill-opacity="0.10" '
        f'stroke="{colour}" stroke-width="1.4"{dash}/>{texts}</g>'
    )


def _closer(style: str, text: str) -> str:
    """Return the attributes that keep a long name within its box, whatever font the reader has."""
    wide = style == "name" and len(text) >= WIDE_FROM
    return f' textLength="{WIDTH - 18}" lengthAdjust="spacingAndGlyphs"' if wide else ""


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
