"""Facts about the pages: both languages show the same examples, recipes are recipes, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from catena.flow.recipe import Source, check_recipe

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CHINESE = [page for page in PAGES if page.name.endswith(".zh.md")]
BLOCK = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return (language, file name, body without comments) of each block of a page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(kind, file, re.sub(r" *# .*", "", body)) for kind, file, body in found]


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)
def test_both_languages_show_the_same_examples_and_lead_to_each_other(page: Path) -> None:
    english = page.with_name(page.name.replace(".zh.md", ".md"))
    assert blocks(page) == blocks(english)
    assert f"]({page.name})" in english.read_text(encoding="utf-8")
    assert f"]({english.name})" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_on_a_page_are_recipes_and_its_links_lead_somewhere(page: Path) -> None:
    for kind, file, body in blocks(page):
        if kind == "yaml" and "steps:" in body:
            values = yaml.safe_load(body)
            check_recipe(Source(file or page.name, body, {"name": "example", **values}))
    for target in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} leads to {target}"
