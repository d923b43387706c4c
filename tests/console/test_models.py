"""Models in the browser: the list, one model in all its tabs, and two people who move the same tag."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import catena
from catena.console.pages.models import below_the_title
from catena.console.read.models import Conflict
from catena.core.types import ModelVersion, Score
from catena.govern import keys
from catena.hub.store import Store
from tests.console.conftest import EVIL, PHONE, Small, Visit, wait
from tests.console.read.conftest import put_model, put_report

pytestmark = pytest.mark.xdist_group("console")


@pytest.fixture(scope="module")
def store(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The workspace's store, with a second version that was made smaller, and a hostile licence."""
    folder = tmp_path_factory.mktemp("models")
    with catena.open(small.root) as workspace:
        opened = workspace.store
        whole = opened.resolve("small/model@1", ModelVersion)
        tiny = put_model(opened, folder / "tiny", "small/tiny", form="quantized", quantization="int8", license=EVIL)
        details = {
            "baseline": whole.digest,
            "before": {"size": 4e6, "perplexity": 3.0},
            "after": {"size": 1e6, "perplexity": 3.2},
            "config": {},
        }
        report = opened.put_report(tiny, "compression", {"size": Score(value=1e6)}, details=details)
        put_report(opened, report, "small/tiny-report")
        yield opened


def test_the_list_is_searched_and_filtered(visit: Visit, store: Store) -> None:
    visitor = visit("user")
    visitor.go("/models")
    assert "small/model" in visitor.text
    assert "production" in visitor.text
    visitor.page.fill(".c-search input", "tiny int8")
    visitor.page.wait_for_function("document.querySelectorAll('.c-table tbody tr').length === 1")
    assert visitor.page.title().startswith("Models"), "the licence is text"
    assert not visitor.errors


@pytest.mark.parametrize(
    ("tab", "said"),
    [
        ("card", "How it was made"),
        ("scores", "perplexity"),
        ("changes", "train.pretrain"),
        ("tags", "production"),
        ("compression", "small/tiny@1"),
        ("files", "config.json"),
    ],
)
def test_every_tab_of_a_model(visit: Visit, store: Store, tab: str, said: str) -> None:
    visitor = visit("developer", size=PHONE)
    visitor.go(f"/models/small/model@production?tab={tab}")
    visitor.page.wait_for_selector(f"main >> text={said} >> nth=0")
    assert not visitor.too_wide()
    assert not visitor.errors


def test_a_card_is_in_the_language_of_the_page(visit: Visit, store: Store) -> None:
    visitor = visit("developer", language="zh")
    visitor.go("/models/small/model@production")
    visitor.page.wait_for_selector("main >> text=制作过程 >> nth=0")
    assert "How it was made" not in visitor.text


def test_lineage_is_drawn_in_the_colours_of_the_page(visit: Visit, store: Store) -> None:
    visitor = visit("developer", language="zh", dark="dark")
    visitor.go("/models/small/model@1?tab=lineage")
    visitor.page.wait_for_selector(".c-lineage svg")
    assert "small/corpus@1" in visitor.page.inner_html(".c-lineage")
    colour = visitor.page.evaluate("getComputedStyle(document.querySelector('.c-lineage text.name')).fill")
    assert colour == "rgb(230, 235, 239)"


def test_a_card_stands_below_the_title_of_its_page_and_its_code_stays() -> None:
    card = "# helper\n\ntext # no heading\n\n```python\n# a comment\nload()\n```\n\n## Data\n```sh\n# another\n```\n"
    assert below_the_title(card) == card.replace("# helper", "## helper").replace("## Data", "### Data")
    assert below_the_title("") == ""


def test_a_hostile_licence_is_shown_and_does_nothing(visit: Visit, store: Store) -> None:
    visitor = visit("developer")
    visitor.go("/models/small/tiny@1")
    visitor.page.wait_for_selector(".c-markdown h2")
    assert "<script>" in visitor.text
    assert visitor.page.title().startswith("Models")


def test_a_tag_is_put_and_moved_and_its_history_stays(visit: Visit, store: Store, tmp_path: Path) -> None:
    second = put_model(store, tmp_path / "next", "small/tagged")
    first = put_model(store, tmp_path / "after", "small/tagged", license="MIT")
    store.tag("small/tagged@1", "staging", by="test")
    visitor = visit("developer")
    visitor.go("/models/small/tagged@2?tab=tags")
    visitor.page.fill(".c-card input", "staging")
    visitor.page.click("button:has-text('Put the tag here')")
    visitor.page.wait_for_selector(".c-dialog")
    visitor.page.click(".c-dialog .c-mainbutton")
    visitor.page.wait_for_selector("button:has-text('Take staging away')")
    assert store.resolve("small/tagged@staging").digest == first.digest != second.digest
    assert [move.by for move in store.index.tag_history("small/tagged")] == ["test", "developer-key"]


def test_who_is_too_late_to_move_a_tag_is_told(visit: Visit, store: Store, tmp_path: Path) -> None:
    put_model(store, tmp_path / "a", "small/raced")
    other = put_model(store, tmp_path / "b", "small/raced", license="MIT")
    visitor = visit("developer")
    visitor.go("/models/small/raced@1?tab=tags")
    store.tag("small/raced@2", "staging", by="somebody else")
    visitor.page.fill(".c-card input", "staging")
    visitor.page.click("button:has-text('Put the tag here')")
    visitor.page.wait_for_selector(".q-notification:has-text('somebody else')")
    assert store.resolve("small/raced@staging").digest == other.digest
    assert issubclass(Conflict, catena.CatenaError)


def test_who_lost_the_right_while_asked_moves_no_tag(visit: Visit, store: Store, small: Small, tmp_path: Path) -> None:
    first = put_model(store, tmp_path / "a", "small/asked")
    put_model(store, tmp_path / "b", "small/asked", license="MIT")
    store.tag("small/asked@1", "staging", by="test")
    small.keys["leaver"], record = keys.Keys(store.index).create("leaver-key", "developer")
    visitor = visit("leaver")
    visitor.go("/models/small/asked@2?tab=tags")
    visitor.page.fill(".c-card input", "staging")
    visitor.page.click("button:has-text('Put the tag here')")
    visitor.page.wait_for_selector(".c-dialog")
    again = "fetch(location).then(answer => answer.text())"
    assert "Put the tag here" in visitor.page.evaluate(again)
    with store.index.engine.begin() as connection:
        keys._put(connection, record.model_copy(update={"actions": ("metrics", "models")}))
    wait(lambda: "Put the tag here" not in visitor.page.evaluate(again))
    visitor.page.click(".c-dialog .c-mainbutton")
    visitor.page.wait_for_selector(".q-notification")
    assert store.resolve("small/asked@staging").digest == first.digest


def test_a_user_may_not_move_tags(visit: Visit, store: Store) -> None:
    visitor = visit("user")
    visitor.go("/models/small/model@1?tab=tags")
    assert "production" in visitor.text
    assert visitor.page.locator("button:has-text('Put the tag here')").count() == 0
    assert visitor.go("/models/nothing").status == 404
