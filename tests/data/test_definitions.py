from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from random import Random
from string import ascii_lowercase

import pytest

from catena.core.errors import DataError
from catena.core.sample import Sample, sample_id
from catena.core.stage import Context
from catena.core.types import DatasetVersion
from catena.data.definitions import held_in
from catena.data.pydoc_pages import Definition, module_of, parse_page
from tests.data.stores import put, rejects, run, samples

MODULES = ("json", "textwrap", "collections", "string", "os.path", "posixpath")
# In a child: to draw a page, pydoc imports its module anew, and with it parts of the interpreter that draws.
DRAW = "import json, pydoc, sys; print(json.dumps({name: pydoc._url_handler(name + '.html') for name in sys.argv[1:]}))"


@cache
def drawn() -> dict[str, str]:
    command = [sys.executable, "-I", "-S", "-c", DRAW, *MODULES, "builtins"]
    pages: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return pages


def page_of(module: str) -> str:
    """What pydoc's server answers."""
    return drawn()[module]


def defined(module: str) -> dict[str, Definition]:
    return {entry.name: entry for entry in parse_page(page_of(module), f"pydoc:/{module}.html") if not entry.inherited}


def sources(context: Context, *modules: str, held_out: tuple[str, ...] = ()) -> tuple[DatasetVersion, DatasetVersion]:
    pages = []
    for module in modules:
        url, body = f"pydoc:/{module}.html", page_of(module).encode()
        pages.append(Sample(sample_id(url, body), {"content": body, "media_type": "text/html"}, {"url": url}, url))
    documents = [
        replace(page.derive({"text": page.source}), split="test" if page.source[7:-5] in held_out else "train")
        for page in pages
    ]
    return put(context.store, pages, "media"), put(context.store, documents)


def test_functions_and_methods_have_their_qualified_names() -> None:
    found = defined("json")
    assert found["json.dumps"].kind == "function"
    assert found["json.dumps"].signature.startswith("(obj, *, skipkeys=False")
    assert found["json.JSONDecoder.decode"].kind == "method"
    assert found["json.JSONDecoder.decode"].doc.startswith("Return the Python representation of ``s``")
    assert "textwrap.TextWrapper.fill" in defined("textwrap")


def test_builtin_types_have_no_module_before_their_name() -> None:
    page = page_of("builtins")
    assert "str.join" in {entry.name for entry in parse_page(page, "pydoc:/builtins.html")}


def test_a_module_is_known_by_its_address() -> None:
    assert module_of(page_of("os.path"), "pydoc:/os.path.html") == ("os.path", "posixpath")
    assert module_of(page_of("json"), "http://host:80/3/json.html?x=1") == ("json", "json")
    assert module_of(page_of("json"), "") == ("json", "json")
    assert module_of("<title>Pydoc: Topics</title>", "pydoc:/topics.html") == ("", "")


def test_other_pages_define_nothing() -> None:
    assert not list(parse_page("<html><dl><dt>Term</dt><dd>Text</dd></dl></html>", "http://host/page.html"))


def test_inherited_methods_are_marked() -> None:
    inherited = {entry.name for entry in parse_page(page_of("collections"), "collections.html") if entry.inherited}
    assert "collections.Counter.pop" in inherited
    assert "collections.Counter.most_common" not in inherited


def test_each_name_is_taught_its_first_sentence_with_the_page_as_parent(context: Context) -> None:
    pages, documents = sources(context, *MODULES)
    made = run(context, "data.definitions", {}, source=pages, within=documents)
    rows = {row.data["input"]: row for row in samples(context.store, made)}
    example = rows["collections.Counter.elements"]
    ids = {page.source: page.id for page in samples(context.store, pages)}
    shorten = rows["textwrap.shorten"].data["output"]
    assert shorten == "Collapse and truncate the given text to fit in the given width."
    assert example.parents == (ids["pydoc:/collections.html"],)
    assert example.metadata["page"] == "pydoc:/collections.html"
    assert example.metadata["kind"] == "method"
    assert all(20 <= len(row.data["output"]) <= 120 and row.data["output"].isascii() for row in rows.values())
    assert len({row.data["output"].casefold() for row in rows.values()}) == len(rows)


def test_everything_else_is_kept_back_with_its_reason(context: Context) -> None:
    pages, documents = sources(context, *MODULES)
    made = run(context, "data.definitions", {}, source=pages, within=documents)
    assert made.funnel is not None
    assert made.funnel.rows_in == made.rows + made.rejects
    why = {(row.data["input"], reason) for row, reason, _ in rejects(context.store, made)}
    assert ("collections.Counter.__add__", "private") in why
    assert ("string.Formatter.format", "undocumented") in why
    assert ("collections.Counter.pop", "inherited") in why
    assert {"not_a_sentence", "too_short", "alias"} <= made.funnel.rejected.keys()


def test_the_public_name_wins_where_two_modules_say_the_same(context: Context) -> None:
    pages, documents = sources(context, "posixpath", "os.path")
    made = run(context, "data.definitions", {}, source=pages, within=documents)
    names = {row.data["input"] for row in samples(context.store, made)}
    assert "os.path.isdir" in names
    assert "posixpath.isdir" not in names
    assert ("posixpath.isdir", "ambiguous") in {
        (row.data["input"], why) for row, why, _ in rejects(context.store, made)
    }


def test_nothing_is_learnt_from_held_out_or_dropped_pages(context: Context) -> None:
    pages, documents = sources(context, *MODULES, held_out=("collections",))
    kept = put(context.store, [row for row in samples(context.store, documents) if "json" not in row.source])
    made = run(context, "data.definitions", {}, source=pages, within=kept)
    learnt = {row.metadata["module"] for row in samples(context.store, made)}
    assert {"textwrap", "os.path"} <= learnt
    assert not learnt & {"collections", "json"}
    reasons = {(row.metadata["module"], reason) for row, reason, _ in rejects(context.store, made)}
    assert ("collections", "other_split") in reasons
    assert ("json", "page_dropped") in reasons
    every = run(context, "data.definitions", {"split": ""}, source=pages, within=kept)
    assert "collections" in {row.metadata["module"] for row in samples(context.store, every)}


def test_no_sentence_is_learnt_that_a_held_out_document_holds(context: Context) -> None:
    pages, documents = sources(context, "textwrap", "json")
    leak = "Elsewhere: (Collapse and truncate\n   the given text to fit in the given\twidth.) Nothing more."
    other = [Sample(sample_id(leak), {"text": leak}, split="test")]
    within = put(context.store, [*samples(context.store, documents), *other])
    made = run(context, "data.definitions", {}, source=pages, within=within)
    why = {(row.data["input"], reason) for row, reason, _ in rejects(context.store, made)}
    assert ("textwrap.shorten", "in_held_out_page") in why
    names = {row.data["input"] for row in samples(context.store, made)}
    assert "textwrap.shorten" not in names
    assert {"json.dumps", "textwrap.indent"} <= names
    assert made.funnel is not None
    assert made.funnel.rejected["in_held_out_page"] == 1
    every = run(context, "data.definitions", {"split": ""}, source=pages, within=within)
    assert "textwrap.shorten" in {row.data["input"] for row in samples(context.store, every)}


def test_leaked_sentences_are_found_in_well_under_a_second() -> None:
    chance = Random(3)
    words = ["".join(chance.choices(ascii_lowercase, k=chance.randint(2, 9))) for _ in range(4000)]
    sentences = {f"Return {' '.join(chance.choices(words, k=chance.randint(4, 15)))}." for _ in range(2500)}
    leaked = set(chance.sample(sorted(sentences), 40))
    texts = [" ".join(chance.choices(words, k=3200)) for _ in range(70)]
    for place, sentence in enumerate(leaked):
        texts[place] = f"{texts[place]} ({sentence.replace(' ', chr(10) + '  ')})"
    documents = [Sample(str(place), {"text": text}) for place, text in enumerate(texts)]
    assert sum(map(len, texts)) > 70 * 20_000
    began = time.process_time()
    assert held_in(sentences, documents) == leaked
    assert time.process_time() - began < 1
    assert held_in([], documents) == set()


def test_limits_choose_the_same_ones_every_time(context: Context) -> None:
    pages, documents = sources(context, *MODULES)
    config = {"limit": 12, "per_module": 4}
    made = run(context, "data.definitions", config, source=pages, within=documents)
    assert made.rows == 12
    assert max(Counter(row.metadata["module"].split(".")[0] for row in samples(context.store, made)).values()) == 4
    assert run(context, "data.definitions", config, source=pages, within=documents).digest == made.digest
    other = run(replace(context, seed=8), "data.definitions", config, source=pages, within=documents)
    assert other.digest != made.digest


def test_documents_of_other_pages_are_refused(context: Context) -> None:
    pages, _ = sources(context, "json")
    _, documents = sources(context, "textwrap")
    with pytest.raises(DataError, match="no document"):
        run(context, "data.definitions", {}, source=pages, within=documents)
