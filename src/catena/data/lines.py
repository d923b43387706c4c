"""`data.lines`: C4's rules for lines (Raffel et al. 2020, JMLR 21, section 2.2). Lines leave, documents stay.

What is left of a document goes on with the same identity; a document of which no line is left is kept back. Poems,
programs, headings and lists do not survive this: it is for web pages that are read as prose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from pydantic import Field

from catena.core.config import Config
from catena.core.sample import Sample
from catena.core.stage import Context, stage
from catena.core.types import DatasetVersion
from catena.data.scripts import ends_sentence
from catena.data.shards import Outcome, map_rows, write_rows
from catena.data.words import CJK, words_of
from catena.hub.fields import need_shape

POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(
    r"\[(?:\d{1,3}|edit|citation needed|编辑|編輯|来源请求|來源請求|要出典|출처 필요)\]", re.IGNORECASE
)
CUT_OFF = ("...", "…")
UNBROKEN = re.compile(rf"[^\s{CJK}]+")


class LinesConfig(Config):
    """Which lines of a document leave."""

    terminal_punctuation: bool = True
    """Drop lines that do not end with a full stop, an exclamation or question mark, or a closing quotation mark."""
    min_words: int = Field(default=3, ge=0)
    """Drop lines with fewer words (characters, in Chinese, Japanese and Korean)."""
    max_word_length: int = Field(default=1000, ge=1)
    """Drop lines with a word of more characters."""
    javascript: bool = True
    """Drop lines that speak of JavaScript: they ask the reader to switch it on."""
    policies: list[str] = Field(default_factory=lambda: list(POLICY))
    """Drop lines with one of these phrases."""
    citations: bool = True
    """Take marks such as [1], [edit] and [citation needed] out of the lines that stay."""


def clean(text: str, cfg: LinesConfig) -> tuple[str, Counter[str]]:
    """Return the lines that stay, and how many left for which rule (`citation_marks`: marks taken out)."""
    counts: Counter[str] = Counter()
    phrases = [phrase.casefold() for phrase in cfg.policies]
    kept = []
    for raw in text.splitlines():
        line = raw.strip()
        if cfg.citations and "[" in line:
            line, marks = CITATION.subn("", line)
            counts["citation_marks"] += marks
        if not line:
            continue
        rule = broken_rule(line, cfg, phrases)
        if rule is None:
            kept.append(line)
        else:
            counts[rule] += 1
    return "\n".join(kept), +counts


def broken_rule(line: str, cfg: LinesConfig, phrases: Sequence[str]) -> str | None:
    """Return the name of the first rule that the line breaks, or None."""
    if cfg.terminal_punctuation and (not ends_sentence(line) or line.endswith(CUT_OFF)):
        return "lines_without_end"
    if cfg.min_words and len(words_of(line)) < cfg.min_words:
        return "lines_too_short"
    if len(line) > cfg.max_word_length and max(map(len, UNBROKEN.findall(line)), default=0) > cfg.max_word_length:
        return "lines_with_long_word"
    folded = line.casefold()
    if cfg.javascript and "javascript" in folded:
        return "lines_on_javascript"
    if any(phrase in folded for phrase in phrases):
        return "lines_on_policies"
    return None


def lines_row(cfg: LinesConfig) -> Callable[[Sample], Outcome]:
    """Return the function that cleans the lines of one row."""

    def cleaned(sample: Sample) -> Outcome:
        text, counts = clean(sample.text, cfg)
        if not text:
            detail = ", ".join(f"{rule} {count}" for rule, count in sorted(counts.items()))
            return Outcome(sample, "no_line_left", detail or "the document is empty")
        return Outcome(sample.with_text(text), counts={**counts, "documents": 1} if counts else {})

    return cleaned


@stage("data.lines")
def clean_lines(ctx: Context, cfg: LinesConfig, *, source: DatasetVersion) -> DatasetVersion:
    """Drop lines that are no prose: without an end, too short, on JavaScript or cookies.

    A document without a line left is kept back as `no_line_left`.
    """
    need_shape(source, "document")
    with ctx.store.new_dataset(source.shape, license=source.license) as out:
        maker = "catena.data.lines:lines_row"
        changed = write_rows(out, map_rows(ctx, source, maker, cfg, label="Lines", unit="documents"))
        return out.commit(changed=dict(sorted(changed.items())))
