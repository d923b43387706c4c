"""Starting a release on the page of deployments, in a real browser before a real gateway: who may, what is checked, two
who start at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import catena
from catena.console.read.production import candidates
from catena.sdk import Catena
from tests.console.conftest import PHONE, Visit, Visitor

pytestmark = pytest.mark.xdist_group("console")


def has(visitor: Visitor, words: str) -> None:
    visitor.page.wait_for_function("words => document.body.innerText.includes(words)", arg=words)


def opened(visitor: Visitor, model: str) -> Any:
    """Open the form for a model; returns the dialog."""
    visitor.go("/deployments")
    visitor.page.get_by_role("button", name="Start a release").click()
    dialog = visitor.page.locator(".c-formdialog")
    dialog.get_by_label("Model").click()
    visitor.page.locator(".q-menu .q-item", has_text=model).first.click()
    return dialog


def start(dialog: Any) -> None:
    dialog.get_by_role("button", name="Start", exact=True).click()


def test_two_who_start_at_once(visit: Visit, admin: Catena) -> None:
    first, second = visit("admin"), visit("developer")
    dialogs = [opened(visitor, "echo") for visitor in (first, second)]
    for dialog in dialogs:
        dialog.get_by_role("button", name="echo-next").click()
        dialog.get_by_label("First share of users").fill("10")
        dialog.get_by_text("10 % of users, then 25 % → 50 % → 100 %").wait_for()
    start(dialogs[0])
    has(first, "The release of echo is started")
    start(dialogs[1])
    alert = second.page.locator(".c-formdialog [role=alert]", has_text="under way")
    alert.or_(second.page.locator(".c-formdialog [role=alert]", has_text="already")).wait_for()
    assert dialogs[1].get_by_label("Candidate").input_value() == "echo-next", "what was filled in is still there"
    for visitor in (first, second):
        visitor.page.locator("[data-release]", has_text="Release of echo").wait_for()
    told = admin.release("echo")
    assert (told.candidate, told.mode, told.percent) == ("echo-next", "canary", 10)
    assert (told.model_extra or {})["steps"] == [10, 25, 50]
    act = admin.release_acts()[-1]
    assert (act.act, act.by) == ("start", "admin-key")
    audited = [one for one in admin.audit(subject="admin-key") if "/admin/releases" in str(one) and "POST" in str(one)]
    assert audited, "as by the command line, it is in the gateway's audit"
    assert not first.errors
    assert not second.errors


def test_what_is_missing_or_refused_is_said_and_nothing_is_lost(visit: Visit, admin: Catena) -> None:
    visitor = visit("developer")
    dialog = opened(visitor, "other")
    before = len(admin.release_acts())
    start(dialog)
    dialog.get_by_text("Name a candidate").wait_for()
    dialog.get_by_label("Candidate").fill("no-such-thing")
    dialog.get_by_label("First share of users").fill("")
    start(dialog)
    dialog.get_by_text("more than 0 and less than 100 percent").wait_for()
    dialog.get_by_role("radio", name="A/B").click()
    dialog.get_by_label("First share of users").fill("60")
    dialog.get_by_text("60 % of users, then 100 %; all of them only if users like it more").wait_for()
    start(dialog)
    dialog.get_by_text("there is no candidate 'no-such-thing'").wait_for()
    assert "`candidates` of the deploy file" in dialog.inner_text()
    dialog.get_by_role("radio", name="shadow").click()
    dialog.get_by_label("First share of users").wait_for(state="hidden")
    dialog.get_by_label("Candidate").fill("echo-next")
    assert len(admin.release_acts()) == before, "nothing was started until now"
    dialog.get_by_label("Candidate").press("Enter")
    has(visitor, "The release of other is started")
    has(visitor, "shadow: answers are compared, nobody gets them")
    assert admin.release("other").mode == "shadow"
    dialog = opened(visitor, "other")
    dialog.get_by_label("Candidate").fill("echo-next")
    start(dialog)
    dialog.get_by_text("is being released for other already").wait_for()
    assert not visitor.errors


def test_only_who_may_release_is_offered_it(visit: Visit, admin: Catena) -> None:
    visitor = visit("watcher")
    visitor.go("/deployments")
    has(visitor, "all models answer")
    assert visitor.page.get_by_role("button", name="Start a release").count() == 0
    assert not visitor.errors


def test_it_fits_a_phone_in_chinese(visit: Visit, admin: Catena) -> None:
    visitor = visit("admin", language="zh", size=PHONE, dark="dark")
    visitor.go("/deployments")
    visitor.page.get_by_role("button", name="发起发布").click()
    dialog = visitor.page.locator(".c-formdialog")
    dialog.get_by_text("金丝雀").wait_for()
    assert visitor.unfit() == []
    box = dialog.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    assert not visitor.too_wide()
    dialog.get_by_role("button", name="开始发布").click()
    dialog.get_by_text("请填写候选版本").wait_for()
    dialog.get_by_role("button", name="取消").click()
    dialog.wait_for(state="detached")
    assert not visitor.errors


def test_stored_candidates_are_versions_of_the_name_first_and_never_what_is_served(tmp_path: Path) -> None:
    with catena.open(tmp_path / ".catena") as workspace:
        for number, name in enumerate(("helper", "helper", "other", "helper")):
            folder = tmp_path / f"model-{number}"
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(b"weights %d" % number)
            model = workspace.store.put_model(folder)
            workspace.store.index.add_artifact(model)
            workspace.store.index.add_name(name, model.digest)
        workspace.tag("helper@2", "production")
        assert candidates(workspace, "helper@production") == ["helper@3", "helper@1", "other@1"]
        for elsewhere in ("", "another@production"):
            assert candidates(workspace, elsewhere) == ["helper@3", "other@1"]
