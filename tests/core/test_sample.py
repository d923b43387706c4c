"""Samples: identity, provenance, text."""

from __future__ import annotations

from catena.core.sample import Sample, sample_id


def test_an_id_depends_on_content_and_not_on_order_of_keys() -> None:
    assert sample_id({"a": 1, "b": b"x"}) == sample_id({"b": b"x", "a": 1})
    assert sample_id("中文") != sample_id("中 文")
    assert len(sample_id("x")) == 24


def test_a_derived_sample_knows_its_parent_source_and_licence() -> None:
    page = Sample("p1", {"content": b"<p>x</p>"}, {"url": "u"}, source="u", license="MIT", split="train")
    document = page.derive({"text": "x"})
    assert document.parents == ("p1",)
    assert (document.source, document.license, document.split) == ("u", "MIT", "train")
    assert document.id != page.derive({"text": "x"}, key="second").id


def test_an_edit_keeps_the_identity() -> None:
    document = Sample("d1", {"text": "a"}, parents=("p1",))
    assert document.with_text("b").id == "d1"
    assert document.with_text("b").text == "b"


def test_the_text_of_a_conversation_is_all_its_messages() -> None:
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hello"}]
    assert Sample("c", {"messages": messages}).text == "你好\nhello"


def test_a_path_leads_to_a_field_of_the_data_or_into_the_metadata() -> None:
    facts = {"url": "u", "fields": {"label": "spam", "tags": ["a", "b"]}, "with.dot": 1}
    sample = Sample("s", {"text": "x"}, facts)
    assert sample.value("text") == "x"
    assert sample.value("url") == sample.value("metadata.url") == "u"
    assert sample.value("fields.label") == sample.value("metadata.fields.label") == "spam"
    assert (sample.value("fields.tags.1"), sample.value("with.dot")) == ("b", 1)
    assert sample.value("fields.label.more") is None
    assert sample.value("nowhere") is None
