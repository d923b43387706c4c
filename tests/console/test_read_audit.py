"""The audit as the console shows it: pages, standing, a check beside the pages, production and the change log."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from catena.console.read.audit import Checks, checks_of, compliance, search, standing
from catena.console.read.production import changes, sources, tagged
from catena.core.errors import NotFound
from catena.govern.audit.log import Log
from catena.govern.audit.reading import Query
from catena.govern.audit.verify import verify
from catena.govern.compliance import collect, signed
from catena.govern.config import AuditConfig, GovernConfig
from catena.hub.store import Store
from catena.workspace import Workspace
from tests.hub.conftest import PutModel, put_model as put_model

CHAT = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Where is\n the <b>marmot</b>?"}]}


@pytest.fixture
def workspace(store: Store) -> Workspace:
    return Workspace(store)


def fill(workspace: Workspace, count: int = 5) -> None:
    with Log(workspace.store.root, AuditConfig()) as log:
        for number in range(count):
            request = {"kind": "request", "subject": "ada", "method": "POST", "path": "/v1/chat/completions"}
            log.act({**request, "model": "m", "number": number, "body": CHAT}, "ada")


def test_nothing_is_there_and_nothing_is_made_by_looking(workspace: Workspace) -> None:
    assert search(workspace, Query(), "me").entries == ()
    assert not standing(workspace).exists
    assert compliance(workspace) is None
    assert not (workspace.store.root / "audit").exists()


def test_pages_and_that_somebody_looked(workspace: Workspace) -> None:
    fill(workspace)
    first = search(workspace, Query(subject="ada"), "root", limit=3)
    assert [one.seq for one in first.entries] == [5, 4, 3]
    assert (first.entries[0].who, first.entries[0].kind) == ("ada", "request")
    assert first.entries[0].what == "POST /v1/chat/completions m  Where is the <b>marmot</b>?"
    assert json.loads(first.entries[0].body)["number"] == 4
    second = search(workspace, Query(subject="ada"), "root", first.next, limit=3)
    assert ([one.seq for one in second.entries], second.next) == ([2, 1], "")
    acts = search(workspace, Query(kind="act"), "root").entries
    assert len(acts) == 1, "the second page is of the same search"
    told = json.loads(acts[0].body)
    assert (told["act"], told["by"], told["found"]) == ("audit.search", "root", 3)
    assert "ada" not in acts[0].body, "whom it was about stands there as a keyed hash"


def test_its_standing(workspace: Workspace) -> None:
    fill(workspace)
    found = standing(workspace)
    assert (found.exists, found.records, found.segments, found.forged) == (True, 5, 1, False)
    assert found.bytes > 500
    assert found.written is not None
    assert found.checkpoint is not None
    (workspace.store.root / "checkpoints" / "tip").write_bytes(b"nonsense")
    assert standing(workspace).forged


def test_a_check_runs_once_and_shows_where_the_first_break_is(workspace: Workspace) -> None:
    fill(workspace)
    checks = checks_of(workspace)
    assert checks is checks_of(workspace)
    assert checks.begin(workspace, "root", deep=True)
    checks.wait()
    assert checks.last is not None
    assert checks.last.result is not None
    assert (checks.last.result.sound, checks.last.result.records, checks.last.problem) == (True, 5, "")
    assert search(workspace, Query(text="audit.verify"), "root").entries[0].who == "root"
    [path] = (workspace.store.root / "audit" / "segments").glob("*.log")
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes(bytes(data))
    assert checks.begin(workspace, "root", deep=False)
    checks.wait()
    assert checks.last.result is not None
    assert not checks.last.result.sound
    assert "record 1" in checks.last.result.findings[0].where


def test_a_check_is_for_all_who_look_and_can_be_stopped(workspace: Workspace) -> None:
    fill(workspace)
    go_on, begun = threading.Event(), threading.Event()

    def slow(*arguments: Any, on_progress: Any, **options: Any) -> Any:
        on_progress(1, 4)
        begun.set()
        go_on.wait(30)
        on_progress(2, 4)
        return verify(*arguments, on_progress=on_progress, **options)

    checks = Checks()
    assert checks.begin(workspace, "root", deep=False, verify=slow)
    assert begun.wait(30)
    assert checks.last is not None
    assert (checks.running, checks.last.share) == (True, 0.25)
    assert not checks.begin(workspace, "ada", deep=False), "one at a time"
    checks.stop()
    go_on.set()
    checks.wait()
    assert (checks.running, checks.last.problem, checks.last.by) == (False, "stopped", "root")

    def breaks(*arguments: Any, **options: Any) -> Any:
        raise OSError("the disk is gone")

    assert checks.begin(workspace, "root", deep=False, verify=breaks)
    checks.wait()
    assert "the disk is gone" in checks.last.problem


def test_the_newest_compliance_report(workspace: Workspace) -> None:
    folder = workspace.store.root / "compliance"
    folder.mkdir()
    report = collect(workspace.store, GovernConfig())
    (folder / "compliance-2026-01-01T000000Z.json").write_bytes(b"{}")
    (folder / "compliance-2026-02-01T000000Z.json").write_bytes(signed(report, workspace.store.root))
    found = compliance(workspace)
    assert found is not None
    assert (found.time, dict(found.counts), found.signed) == (report.time, report.counts(), True)
    (folder / "compliance-2026-03-01T000000Z.json").write_bytes(b"{nonsense")
    broken = compliance(workspace)
    assert broken is not None
    assert not broken.signed


def test_production_and_the_change_log(workspace: Workspace, put_model: PutModel) -> None:
    first, second = (put_model(workspace.store, text, "helper") for text in (b"one", b"two"))
    workspace.tag("helper@1", "production")
    workspace.tag("helper@2", "next")
    workspace.tag("helper@2", "production")
    found = tagged(workspace)
    assert [(one.name, one.tag, one.version, one.digest) for one in found] == [
        ("helper", "production", 2, second.digest),
        ("helper", "next", 2, second.digest),
    ]
    assert found[0].by == "python"
    shown, total = changes(workspace, 0, 2)
    assert (len(shown), total) == (2, 5)
    assert shown[0].detail.startswith("production")
    assert changes(workspace, 0, 50, "VERSION 1")[1] == 1
    assert changes(workspace, 4, 50)[0][0].digest == first.digest
    with pytest.raises(NotFound):
        sources(workspace, "0" * 64, "an answer")
