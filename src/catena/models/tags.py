"""Tags: labels of words or of stretches of a text, and how they fall on the pieces that a tokenizer cuts it into.

An example's output is written in one of two forms:

    words   "B-PER I-PER O"                              one tag for each word of the input, between spaces
    spans   [{"start": 0, "end": 2, "label": "LOC"}]     characters of the input: for scripts without spaces too

    text        Ada Lovelace wrote          我在北京住
    words       B-PER I-PER   O
    pieces      Ad a Love lace wrote        我 在 北京 住
    numbers     B  . I    .    O            O  O  B    O       . is not learnt: a word is told by its first piece
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from catena.core.errors import DataError, did_you_mean

OUTSIDE = "O"
IGNORED = -100
"""Number of a piece that is not learnt."""
BEGINS, GOES_ON = "B-", "I-"

Place = tuple[int, int]
"""First character, and the one after the last."""


class Span(NamedTuple):
    """A labelled stretch of a text, in characters."""

    start: int
    end: int
    label: str


class Tagged(NamedTuple):
    """A text with its labels, in one of the two forms."""

    text: str
    words: tuple[Place, ...] = ()
    tags: tuple[str, ...] = ()
    """One for each word."""
    spans: tuple[Span, ...] | None = None
    """Of the second form; None in the first."""

    @property
    def labels(self) -> set[str]:
        """Return the labels that a classifier has to know for it."""
        if self.spans is None:
            return set(self.tags)
        return {OUTSIDE, *(mark + span.label for span in self.spans for mark in (BEGINS, GOES_ON))}

    def marked(self) -> set[Span]:
        """Return the labelled stretches, whichever the form is."""
        return set(bio_spans(self.tags, self.words)) if self.spans is None else set(self.spans)


def parse_tagged(text: str, output: str, name: str) -> Tagged:
    """Read the output of an example; raises `DataError`, with the sample's `name`, where it does not fit the text."""
    if output.lstrip().startswith("["):
        return Tagged(text, spans=_spans(text, output, name))
    words = tuple(match.span() for match in re.finditer(r"\S+", text))
    tags = tuple(output.split())
    if len(words) != len(tags):
        raise DataError(
            f"the sample {name} has {len(words)} words and {len(tags)} tags",
            hint='Give one tag for each word, or a list of spans: [{"start": 0, "end": 3, "label": "PER"}].',
        )
    return Tagged(text, words, tags)


def _spans(text: str, output: str, name: str) -> tuple[Span, ...]:
    try:
        found = sorted(_span(entry) for entry in json.loads(output))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"the spans of the sample {name} cannot be read: {error}",
            hint='Each is {"start": characters, "end": characters, "label": text}.',
        ) from error
    end = 0
    for span in found:
        if not end <= span.start < span.end <= len(text):
            raise DataError(f"the span {span.start}-{span.end} of the sample {name} is outside its text, or in another")
        end = span.end
    return tuple(found)


def _span(entry: Mapping[str, Any]) -> Span:
    unknown = sorted(set(entry) - {"start", "end", "label"})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}. {did_you_mean(unknown[0], ('start', 'end', 'label'))}")
    span = Span(entry["start"], entry["end"], entry["label"])
    if not isinstance(span.label, str) or type(span.start) is not int or type(span.end) is not int:
        raise TypeError("start and end are whole numbers, label is a text")
    return span


def numbers_of(tagged: Tagged, offsets: Sequence[Place], number: Mapping[str, int]) -> list[int]:
    """Return the label number of each piece, `IGNORED` where none is learnt; `offsets` are the pieces' characters."""
    numbers, previous = [], None
    for place in offsets:
        start, end = _without_space(tagged.text, place)
        unit = None if start == end else _unit_at(tagged, start, end)
        first = unit is not None and unit != previous
        if start == end or (tagged.spans is None and not first):
            numbers.append(IGNORED)
        elif unit is None:
            numbers.append(number[OUTSIDE])
        elif tagged.spans is None:
            numbers.append(number[tagged.tags[unit]])
        else:
            numbers.append(number[(BEGINS if first else GOES_ON) + tagged.spans[unit].label])
        previous = unit if start < end else previous
    return numbers


def _without_space(text: str, place: Place) -> Place:
    """Take the spaces off the beginning of a piece: byte-level tokens carry the space before their word."""
    start, end = place
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _unit_at(tagged: Tagged, start: int, end: int) -> int | None:
    """Return the number of the word, or of the span, that a stretch begins in or reaches into."""
    units = tagged.words if tagged.spans is None else tagged.spans
    before = bisect_right(units, start, key=lambda unit: unit[0]) - 1
    if before >= 0 and start < units[before][1]:
        return before
    after = before + 1
    return after if after < len(units) and units[after][0] < end else None


def marked_by(tagged: Tagged, offsets: Sequence[Place], predicted: Sequence[str]) -> tuple[list[str], set[Span]]:
    """Return what a classifier's labels of the pieces say: (tag of each word, stretches that it marks).

    A word that no piece stands for (the text was cut) is outside. In the form of spans there are no words.
    """
    if tagged.spans is not None:
        places = [_without_space(tagged.text, place) for place in offsets]
        real = [(place, label) for place, label in zip(places, predicted, strict=True) if place[0] < place[1]]
        return [], set(bio_spans([label for _, label in real], [place for place, _ in real]))
    tags = [OUTSIDE] * len(tagged.words)
    previous = None
    for place, label in zip(offsets, predicted, strict=True):
        start, end = _without_space(tagged.text, place)
        unit = None if start == end else _unit_at(tagged, start, end)
        if unit is not None and unit != previous:
            tags[unit] = label
            previous = unit
    return tags, set(bio_spans(tags, tagged.words))


def bio_spans(tags: Sequence[str], places: Sequence[Place]) -> Iterable[Span]:
    """Yield the stretches that BIO tags mark, as the evaluation of CoNLL-2000 reads them (and seqeval after it).

    An I- that nothing of its label stands before begins a stretch too. Tags without B- or I- mark nothing.
    """
    start, end, label = 0, 0, ""
    for tag, place in zip(tags, places, strict=True):
        mark, kind = (tag[:2], tag[2:]) if tag.startswith((BEGINS, GOES_ON)) else ("", "")
        if label and (mark != GOES_ON or kind != label):
            yield Span(start, end, label)
            label = ""
        if mark and not label:
            start, label = place[0], kind
        end = place[1]
    if label:
        yield Span(start, end, label)
