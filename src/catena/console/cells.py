"""What stands in cells of tables and on figure cards: numbers, sizes, times, links. Text comes in, safe HTML goes out.

Everything here returns `Markup`: what comes from data is escaped on the way in, so that no sample, name or answer can
bring a tag of its own. No NiceGUI here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from markupsafe import Markup, escape

from catena.console.language import say
from catena.core.language import Language

Tone = Literal["plain", "good", "warn", "bad", "busy"]
NOTHING = Markup('<span class="c-nothing">–</span>')
MOST_TEXT = 2000
"""Characters of a text that a cell shows; the rest is behind a page of its own."""
_SIZES = ("B", "KB", "MB", "GB", "TB", "PB")
_TONES: dict[str, Tone] = {
    "running": "busy",
    "done": "good",
    "cached": "plain",
    "failed": "bad",
    "cancelled": "warn",
    "interrupted": "warn",
}


def text(value: object, most: int = MOST_TEXT) -> Markup:
    """Return a text as it is, cut where it is very long."""
    shown = str(value)
    return escape(shown if len(shown) <= most else shown[:most] + " …") if shown else NOTHING


def code(value: object, most: int = 80) -> Markup:
    """Return an id or a name in letters of equal width."""
    return Markup('<code class="c-code">{}</code>').format(text(value, most))


def digest(value: str) -> Markup:
    """Return the beginning of a digest, with the whole of it as a tooltip."""
    return Markup('<code class="c-code" title="{}">{}</code>').format(value, value[:10]) if value else NOTHING


def count(value: float | None) -> Markup:
    """Return a number with separated thousands: 12,345."""
    return NOTHING if value is None else escape(f"{value:,}" if isinstance(value, int) else number(value))


def number(value: float, digits: int = 4) -> str:
    """Return a number with so many digits that matter: 0.01234, 12.3, 1,234,567."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    shown = f"{value:.{digits}g}"
    return shown if "e" not in shown else f"{value:.2e}"


def percent(share: float | None, digits: int = 1) -> Markup:
    """Return a share from 0 to 1 as percent."""
    return NOTHING if share is None else escape(f"{100 * share:.{digits}f} %")


def size(byte_count: float | None) -> Markup:
    """Return bytes in units of 1000: 1.2 MB."""
    if byte_count is None:
        return NOTHING
    value, unit = float(byte_count), 0
    while value >= 999.5 and unit < len(_SIZES) - 1:
        value, unit = value / 1000, unit + 1
    return escape(f"{value:.0f} {_SIZES[unit]}" if unit == 0 or value >= 99.5 else f"{value:.1f} {_SIZES[unit]}")


def duration(language: Language, seconds: float | None) -> Markup:
    """Return a time span: 480 ms, 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(int(seconds), 60)
    hours = minutes // 60
    if seconds < 1:
        return escape(say(language, "parts.took_ms", {"ms": f"{1000 * seconds:.0f}"}))
    if seconds < 60:
        return escape(say(language, "parts.took_s", {"s": f"{seconds:.1f}"}))
    if minutes < 60:
        return escape(say(language, "parts.took_min", {"min": minutes, "s": f"{rest:02d}"}))
    return escape(say(language, "parts.took_h", {"h": hours, "min": f"{minutes % 60:02d}"}))


def when(language: Language, at: datetime | None, now: datetime | None = None) -> Markup:
    """Return how long ago something was, with the time itself as a tooltip (UTC)."""
    if at is None:
        return NOTHING
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    past = ((now or datetime.now(UTC)) - at).total_seconds()
    if past < 0:
        shown = at.strftime("%Y-%m-%d %H:%M")
    elif past < 45:
        shown = say(language, "parts.now", {})
    elif past < 45 * 60:
        shown = say(language, "parts.minutes", {"n": max(1, round(past / 60))})
    elif past < 22 * 3600:
        shown = say(language, "parts.hours", {"n": max(1, round(past / 3600))})
    elif past < 26 * 86400:
        shown = say(language, "parts.days", {"n": max(1, round(past / 86400))})
    else:
        shown = at.strftime("%Y-%m-%d")
    stamp = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        stamp.isoformat(), stamp.strftime("%Y-%m-%d %H:%M:%S UTC"), shown
    )


def link(href: str, shown: object) -> Markup:
    """Return a link; `href` is one of `view.href(...)`, so that it works below a prefix."""
    assert href.startswith("/"), "only links inside the console"
    return Markup('<a class="c-link" href="{}">{}</a>').format(href, shown)


def badge(shown: object, tone: Tone = "plain") -> Markup:
    """Return a small label."""
    return Markup('<span class="c-badge c-{}">{}</span>').format(tone, shown)


def status(language: Language, value: str) -> Markup:
    """Return the status of a run as a badge."""
    return badge(say(language, f"parts.status_{value}", {}), _TONES.get(value, "plain"))


def bar(share: float, shown: object = "") -> Markup:
    """Return a bar of a share from 0 to 1, with a word beside it."""
    width = f"{100 * min(1.0, max(0.0, share)):.1f}%"
    return Markup('<span class="c-bar"><i style="width:{}"></i></span><span class="c-barword">{}</span>').format(
        width, shown
    )


def stack(*lines: object) -> Markup:
    """Return several lines in one cell, the later ones quieter."""
    parts = [Markup('<div class="{}">{}</div>').format("c-sub" if at else "", line) for at, line in enumerate(lines)]
    return Markup("").join(parts)


def join(*parts: Any) -> Markup:
    """Return parts one after another with a space between."""
    return Markup(" ").join(escape(part) for part in parts if part)
