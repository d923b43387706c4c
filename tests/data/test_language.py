from __future__ import annotations

from catena.core.stage import Context
from catena.data.language import EXCERPT, excerpt
from tests.data.stores import documents, rejects, run, samples

ENGLISH = "Return the number of items in the container, or raise an error if it has no length.\nThe rest is details."
CHINESE = "返回容器里元素的个数。\n如果容器没有长度，就会引发错误。其余的只是细节。"
GERMAN = "Gibt die Anzahl der Elemente zurück oder löst einen Fehler aus, wenn es keine Länge hat."


def test_an_excerpt_is_one_line_from_beginning_middle_and_end() -> None:
    text = "a" * EXCERPT + "b\n" * 5000 + "c" * EXCERPT
    assert "\n" not in excerpt(text)
    assert {"a", "b", "c"} <= set(excerpt(text))
    assert len(excerpt(text)) <= 3 * EXCERPT + 2


def test_every_document_gets_its_language(context: Context) -> None:
    made = run(context, "data.language", {}, source=documents(context.store, ENGLISH, CHINESE, GERMAN, "", "1 2 3"))
    found = [sample.metadata["language"] for sample in samples(context.store, made)]
    assert found == ["en", "zh", "de", "und", "und"]
    assert made.profile["languages"] == {"de": 1, "en": 1, "und": 2, "zh": 1}
    assert all(0 <= sample.metadata["language_score"] <= 1 for sample in samples(context.store, made))


def test_other_languages_are_kept_back_with_their_code(context: Context) -> None:
    source = documents(context.store, ENGLISH, CHINESE, GERMAN)
    made = run(context, "data.language", {"keep": ["en", "zh"]}, source=source)
    assert [(reason, detail) for _, reason, detail in rejects(context.store, made)] == [("language", "de")]


def test_what_is_not_certain_enough_is_kept_back(context: Context) -> None:
    made = run(context, "data.language", {"min_score": 1.0}, source=documents(context.store, "ok die la os"))
    assert [reason for _, reason, _ in rejects(context.store, made)] == ["language_uncertain"]
