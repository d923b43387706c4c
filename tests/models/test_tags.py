"""Facts about tags: both forms are read, words are told by their first piece, stretches are CoNLL's."""

from __future__ import annotations

from typing import Any

import pytest

from catena.core.errors import DataError
from catena.models.classify import encode
from catena.models.tags import IGNORED, OUTSIDE, Span, bio_spans, marked_by, numbers_of, parse_tagged

NAME = '[{"start": 0, "end": 12, "label": "PER"}]'
PLACE = '[{"start": 2, "end": 4, "label": "LOC"}]'


def test_a_word_is_told_by_its_first_piece() -> None:
    tagged = parse_tagged("Ada Lovelace wrote", "B-PER I-PER O", "x")
    offsets = [(0, 0), (0, 2), (2, 3), (3, 8), (8, 12), (12, 18), (0, 0)]  # pieces begin with the space before
    number = {"B-PER": 0, "I-PER": 1, "O": 2}
    assert numbers_of(tagged, offsets, number) == [IGNORED, 0, IGNORED, 1, IGNORED, 2, IGNORED]


def test_of_a_stretch_each_piece_is_told() -> None:
    tagged = parse_tagged("我在北京住", PLACE, "x")
    number = {"B-LOC": 0, "I-LOC": 1, "O": 2}
    assert numbers_of(tagged, [(0, 1), (1, 2), (2, 3), (2, 3), (3, 4), (4, 5)], number) == [2, 2, 0, 1, 1, 2]
    assert tagged.labels == {"B-LOC", "I-LOC", "O"}


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("Ada Lovelace wrote to Charles Babbage .", "B-PER I-PER O O B-PER I-PER O"),
        ("Ada Lovelace wrote", NAME),
        ("我在北京住", PLACE),
        ("nothing is marked here", "[]"),
        ("a  tab\tand   spaces", "O B-X I-X O"),
        ("北京上海", '[{"start": 0, "end": 2, "label": "L"}, {"start": 2, "end": 4, "label": "L"}]'),
    ],
)
def test_what_is_put_on_the_pieces_comes_back_from_them(text: str, output: str, tokenizer: Any) -> None:
    tagged = parse_tagged(text, output, "x")
    labels = sorted(tagged.labels | {OUTSIDE})
    (row,) = encode(tokenizer, [text])
    numbers = numbers_of(tagged, row.offsets, {label: place for place, label in enumerate(labels)})
    foretold = [labels[number] if number != IGNORED else "B-WRONG" for number in numbers]
    tags, spans = marked_by(tagged, row.offsets, foretold)
    assert tags == list(tagged.tags)
    assert spans == tagged.marked()


def spans_of(tags: str) -> list[Span]:
    words = tags.split()
    return list(bio_spans(words, [(place, place + 1) for place in range(len(words))]))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-A I-A O", [Span(1, 3, "A")]),
        ("B-A B-A", [Span(0, 1, "A"), Span(1, 2, "A")]),
        ("I-A I-A O I-B", [Span(0, 2, "A"), Span(3, 4, "B")]),
        ("B-A I-B", [Span(0, 1, "A"), Span(1, 2, "B")]),
        ("NOUN VERB", []),
        ("O O", []),
    ],
)
def test_stretches_are_those_of_conlls_script(tags: str, expected: list[Span]) -> None:
    assert spans_of(tags) == expected


def test_f1_of_seqevals_own_example() -> None:
    given = [set(spans_of("O O O B-MISC I-MISC I-MISC O")), set(spans_of("B-PER I-PER O"))]
    foretold = [set(spans_of("O O B-MISC I-MISC I-MISC I-MISC O")), set(spans_of("B-PER I-PER O"))]
    right = sum(len(one & two) for one, two in zip(given, foretold, strict=True))
    assert 2 * right / (sum(map(len, given)) + sum(map(len, foretold))) == 0.5  # as its README says


def test_words_that_were_cut_off_are_outside() -> None:
    tagged = parse_tagged("Ada Lovelace wrote", "B-PER I-PER O", "x")
    tags, spans = marked_by(tagged, [(0, 0), (0, 3)], ["O", "B-PER"])
    assert tags == ["B-PER", "O", "O"]
    assert spans == {Span(0, 3, "PER")}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("O O", "3 words and 2 tags"),
        ('[{"start": 0, "end": 3}]', "cannot be read"),
        ('[{"start": 0, "end": 3, "lable": "A"}]', r"unknown field 'lable'. Did you mean 'label'"),
        ('[{"start": 0, "end": 99, "label": "A"}]', "outside its text"),
        ('[{"start": 0, "end": 3, "label": "A"}, {"start": 2, "end": 5, "label": "B"}]', "or in another"),
        ('[{"start": "0", "end": 3, "label": "A"}]', "whole numbers"),
        ("[3", "cannot be read"),
        ("[3]", "cannot be read"),
    ],
)
def test_tags_that_do_not_fit_are_refused_with_the_samples_name(output: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_tagged("Ada Lovelace wrote", output, "sample-7")
    assert "sample-7" in str(caught.value)
