"""Recipes in the console: checks with lines, saving that loses nothing, runs that outlive it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import catena
from catena.console import jobs
from catena.console.pages.recipe_job import Watch
from catena.console.read import recipes as read
from catena.console.read.audit import search
from catena.core.errors import DataError, NotFound, UsageError
from catena.govern.audit.reading import Query
from catena.hub.store import Store
from catena.workspace import Workspace
from tests.console.conftest import Small, Visit, wait

pytestmark = pytest.mark.xdist_group("console")
GOOD = "name: mine\nsteps:\n  docs:\n    stage: data.ingest\n    with: {paths: [docs]}\n"


def test_problems_have_their_lines(store: Store) -> None:
    ws = Workspace(store)
    assert [step.status for step in read.checked(ws, "mine", GOOD).steps] == ["run"]
    (wrong,) = read.checked(ws, "mine", GOOD.replace("paths", "pahts")).problems[:1]
    assert wrong.line == 5
    assert "paths" in wrong.message
    (syntax,) = read.checked(ws, "mine", "name: [mine\nsteps: {}").problems
    assert syntax.line == 2
    assert read.checked(ws, "mine", "just words").problems[0].line is None


def test_a_hundred_thousand_lines_are_refused_before_they_are_parsed(store: Store, tmp_path: Path) -> None:
    huge = "name: x\nsteps:\n" + "".join(f"  s{number}: {{stage: data.ingest}}\n" for number in range(100_000))
    (problem,) = read.checked(Workspace(store), "huge", huge).problems
    assert "100,003 lines" in problem.message
    (tmp_path / "huge.yaml").write_text(huge)
    with pytest.raises(UsageError, match="bytes; the console takes"):
        read.loaded(tmp_path, "huge")
    with pytest.raises(UsageError, match="100,003 lines"):
        read.save(store, tmp_path, read.Text("huge", huge, read.stamp_of(huge)))
    assert (tmp_path / "huge.yaml").read_text() == huge


def test_saving_over_somebody_elses_text_is_refused_and_shows_it(store: Store, tmp_path: Path) -> None:
    stamp = read.save(store, tmp_path, read.Text("mine", GOOD, read.NEW))
    mine = read.loaded(tmp_path, "mine")
    assert mine == read.Text("mine", GOOD, stamp)
    read.save(store, tmp_path, read.Text("mine", GOOD + "# theirs\n", stamp))
    with pytest.raises(read.Changed) as told:
        read.save(store, tmp_path, read.Text("mine", GOOD + "# mine\n", stamp))
    assert told.value.theirs == GOOD + "# theirs\n"
    assert read.loaded(tmp_path, "mine").text == GOOD + "# theirs\n"
    read.save(store, tmp_path, read.Text("mine", GOOD + "# mine\n", told.value.stamp))
    with pytest.raises(read.Changed):
        read.save(store, tmp_path, read.Text("mine", GOOD, read.NEW))
    assert [file.name for file in read.listed(tmp_path)] == ["mine"]


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "x" * 90])
def test_a_name_that_leads_elsewhere_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a recipe"):
        read.save(store, tmp_path, read.Text(name, GOOD, read.NEW))


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read.loaded(tmp_path, "absent")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff")
    with pytest.raises(DataError, match="not UTF-8"):
        read.loaded(tmp_path, "bytes")


def test_a_run_goes_to_its_end_beside_the_console(store: Store, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one.txt").write_text("one text of some words")
    job = jobs.start(store, "mine", GOOD, "ana")  # paths are seen from where the workspace lies
    wait(lambda: jobs.state(store, job) != "running")
    assert jobs.errors(store, job) == ""
    told = jobs.follow(store, job, jobs.Progress())
    assert (jobs.state(store, job), told.steps["docs"].status) == ("done", "done")
    assert told.steps["docs"].ref == "mine/docs@1"
    assert jobs.jobs(store) == [job]
    jobs._CHILDREN.pop(job.id).wait(10)  # from here on as another console sees it
    assert jobs.state(store, job) == "done"
    with pytest.raises(UsageError, match="ended already"):
        jobs.stop(store, job)
    with pytest.raises(NotFound):
        jobs.job(store, "no-such")


def test_a_run_that_was_killed_is_known_for_it(store: Store, tmp_path: Path) -> None:
    job = jobs.start(store, "mine", GOOD, "ana")
    os.kill(job.pid, signal.SIGKILL)
    wait(lambda: jobs.state(store, job) == "interrupted")
    assert not jobs._lives(jobs.Job(**{**job.__dict__, "pid": os.getpid()}))  # an id that another process has now


def test_how_a_job_ended_is_told_by_its_last_line(store: Store) -> None:
    folder = store.root / "console" / "jobs" / "j"
    folder.mkdir(parents=True)
    job = jobs.Job("j", "r", "ana", "2026-01-01T00:00:00+00:00", 1, 0.0)
    with (folder / "events.jsonl").open("w") as stream:
        stream.write('{"event": "start", "group": "g", "steps": ["a"]}\n')
        stream.write('{"event": "metric", "step": "a", "name": "loss", "value": 1.5, "at_step": 1}\n' * 200_000)
        stream.write('{"event": "end", "status": "failed"}\n')
    process = psutil.Process()
    before = process.io_counters().read_chars
    assert jobs.state(store, job) == "failed"
    assert process.io_counters().read_chars - before < 2 << 20, "of 15 MB"
    with (folder / "events.jsonl").open("a") as stream:
        stream.write('{"event": "end", "sta')  # a kill cut it short
    assert jobs.state(store, job) == "interrupted"


def test_what_a_job_says_while_it_is_looked_at_is_shown(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.root / "console" / "jobs" / "j"
    folder.mkdir(parents=True)
    end = {"event": "end", "status": "failed", "error": {"message": "the disk is full", "hint": "Make room."}}
    words = [sys.executable, "-c", f"input(); print({json.dumps(end)!r})"]
    with (folder / "events.jsonl").open("wb") as said:
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=said)
    born = psutil.Process(child.pid).create_time()
    job, lives = jobs.Job("j", "r", "ana", "2026-01-01T00:00:00+00:00", child.pid, born), jobs._lives
    assert jobs.state(store, job) == "running"
    # It says its last and ends just before its process is looked for.
    monkeypatch.setattr(jobs, "_lives", lambda one: [child.communicate(b"\n"), lives(one)][1])
    view: Any = SimpleNamespace(workspace=Workspace(store), language="en", say=lambda key, **_: key, may=lambda _: True)
    watch = Watch(view, job)
    for name in ("badge", "link", "stop", "steps", "log", "trouble", "errors"):
        setattr(watch, name, SimpleNamespace(content="", set_visibility=lambda _: None))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, watch.refresh()).result()
    assert watch.state == "failed"
    assert "the disk is full\nMake room." in watch.errors.content


def test_a_line_that_is_not_through_waits(store: Store) -> None:
    folder = store.root / "console" / "jobs" / "j"
    folder.mkdir(parents=True)
    job = jobs.Job("j", "r", "ana", "2026-01-01T00:00:00+00:00", 1, 0.0)
    (folder / "events.jsonl").write_text('{"event": "start", "group": "g", "steps": ["a"]}\n{"event": "log", "mess')
    told = jobs.follow(store, job, jobs.Progress())
    assert (told.group, list(told.steps), told.log) == ("g", ["a"], [])
    with (folder / "events.jsonl").open("a") as stream:
        stream.write('age": "hello", "step": "a"}\nnot json\n')
    assert jobs.follow(store, job, told).log == ["a: hello"]


def test_a_recipe_is_edited_checked_and_started_in_the_browser(visit: Visit, small: Small) -> None:
    folder = small.root.parent / "recipes"
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(GOOD.replace("[docs]", "[texts]"))
    visitor = visit("developer")
    visitor.go("/recipes")
    visitor.page.click("text=mine")
    visitor.page.wait_for_selector(".cm-content")
    visitor.page.wait_for_selector("text=data.ingest >> nth=0")
    editor = visitor.page.locator(".cm-content")
    editor.click()
    visitor.page.keyboard.press("Control+End")
    visitor.page.keyboard.type("  second: {stage: data.fliter}")
    visitor.page.wait_for_selector(".c-problem")
    visitor.page.wait_for_function("document.querySelector('.c-problem').innerText.includes('data.filter')")
    assert "Line 6" in visitor.page.inner_text(".c-problem")
    # Somebody else saves; then this one does: nothing is written over, and both texts are there.
    (folder / "mine.yaml").write_text(GOOD + "# theirs\n")
    visitor.page.click("button:has-text('Save')")
    visitor.page.wait_for_selector(".c-conflict")
    assert "+# theirs" in visitor.page.inner_text(".c-conflict")
    assert (folder / "mine.yaml").read_text() == GOOD + "# theirs\n"
    # What was typed outlives the page.
    visitor.page.wait_for_function("Object.values(localStorage).some(text => text.includes('data.fliter'))")
    visitor.page.on("dialog", lambda dialog: dialog.accept())
    visitor.go("/recipes/mine")
    visitor.page.click("text=Restore them")
    visitor.page.wait_for_function("document.querySelector('.cm-content').innerText.includes('data.fliter')")
    (folder / "mine.yaml").write_text(GOOD.replace("[docs]", "[texts]"))
    visitor.page.evaluate("localStorage.clear(); window.catenaDraft.saved = null")
    visitor.page.evaluate("localStorage.clear()")
    fresh = visit("developer")
    fresh.go("/recipes/mine")
    fresh.page.click("text=Start run")
    fresh.page.click(".c-dialog .c-mainbutton")
    fresh.page.wait_for_url("**/recipes/jobs/*")
    fresh.page.wait_for_selector("main .c-badge.c-good >> nth=0", timeout=90_000)
    assert "mine/docs@1" in fresh.text
    assert not fresh.errors
    with catena.open(small.root) as workspace:
        acts = [json.loads(one.body) for one in search(workspace, Query(kind="act", text="recipe."), "test").entries]
    acts = [act for act in acts if act.get("recipe") == "mine"]
    assert [act["act"] for act in acts] == ["recipe.start"], "what was not saved is no act"
    assert (acts[0]["by"], acts[0]["recipe"]) == ("developer-key", "mine")


def test_who_may_only_look_has_no_buttons(visit: Visit) -> None:
    visitor = visit("user")
    assert visitor.go("/recipes").status == 403
