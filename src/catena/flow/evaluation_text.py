"""An evaluation as a few lines of Markdown: for a comment under a change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from catena.core.types import Report, Score
from catena.hub.files import write_atomically


def write_summary(
    path: Path, names: tuple[str, str], report: Report, other: Report | None, compared: Report | None
) -> None:
    """Write the scores of a model, and beside them those of another one with the paired difference."""
    write_atomically(path, ("\n".join(_lines(names, report, other, compared)) + "\n").encode())


def _lines(names: tuple[str, str], report: Report, other: Report | None, compared: Report | None) -> Iterator[str]:
    model, beside = (_cell(name) for name in names)
    if other is None or compared is None:
        yield from (f"### {model}", "", "| score | value | 95 % | n |", "|---|---|---|---|")
        for name, score in report.scores.items():
            yield f"| {_cell(name)} | {score.value:.4g} | {_ends(score)} | {score.n} |"
        return
    gains = {name: compared.scores[f"gain/{name}"] for name in report.scores if f"gain/{name}" in compared.scores}
    better = [name for name, gain in gains.items() if gain.low is not None and gain.low > 0]
    worse = [name for name, gain in gains.items() if gain.high is not None and gain.high < 0]
    yield from (f"### {model} beside {beside}", "")
    yield f"Surely better in {len(better)}, surely worse in {len(worse)} of {len(gains)} scores (95 %, same questions)."
    yield from ("", f"| score | {model} | {beside} | gain | 95 % | p | |", "|---|---|---|---|---|---|---|")
    p_values = compared.details["p_values"]
    for name, gain in gains.items():
        verdict = "better" if name in better else "**worse**" if name in worse else ""
        both = f"{report.scores[name].value:.4g} | {other.scores[name].value:.4g}"
        yield f"| {_cell(name)} | {both} | {gain.value:+.4g} | {_ends(gain)} | {p_values[name]:.3g} | {verdict} |"


def _ends(score: Score) -> str:
    return "" if score.low is None or score.high is None else f"{score.low:.4g} to {score.high:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
