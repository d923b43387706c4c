"""The compliance report ticks nothing without evidence; the change log tells every version and every move."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from catena.core.types import Run, Score
from catena.govern import keys as keys_module
from catena.govern.audit.log import Log
from catena.govern.changes import change_log
from catena.govern.compliance import CHECKLIST, ComplianceReport, Line, collect, holds, signed
from catena.govern.compliance_page import page
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig, ModerationConfig
from catena.govern.keys import Keys
from catena.hub.index import now
from catena.hub.store import Store

ON = GovernConfig(
    auth=AuthConfig(on=True), audit=AuditConfig(on=True), moderation=ModerationConfig(on=True, classifier="filter")
)


def results(report: ComplianceReport) -> dict[str, str]:
    return {line.id: line.status for line in report.lines}


def made(store: Store, folder: Path, name: str, **config: Any) -> Any:
    """A model under a name, as a run leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    model = store.index.add_artifact(store.put_model(folder, "filter", license="Apache-2.0"))
    run = Run(
        id=f"run-{name}-{model.digest[:6]}", group="g", step=name, stage="govern.train_filter", recipe="demo",
        status="done", config=config, output=model.digest, started=now(), key=model.digest,
    )  # fmt: skip
    store.index.put_run(run)
    store.index.add_name(name, model.digest)
    return model


def test_an_empty_workspace_holds_nothing(store: Store) -> None:
    report = collect(store, GovernConfig())
    assert len(report.lines) == len(CHECKLIST)
    assert "held" not in results(report).values()
    assert results(report)["auth"] == "failed"
    assert results(report)["audit-sound"] == "no evidence"


def test_switches_alone_are_evidence_of_switches_only(store: Store) -> None:
    found = results(collect(store, ON))
    assert found["auth"] == found["moderation-on"] == "held"
    assert found["audit-on"] == found["audit-sound"] == found["audit-sealed"] == found["audit-kept"] == "no evidence"
    assert found["moderation-figures"] == "no evidence"


def test_a_line_without_evidence_cannot_hold() -> None:
    with pytest.raises(ValueError, match="without evidence"):
        Line("x", "Is it?", "held", {})


def test_a_governed_workspace_holds_what_can_be_seen(store: Store, tmp_path: Path) -> None:
    Keys(store.index).create("ada", "user", lifetime=timedelta(days=30))
    with Log(store.root, ON.audit) as log:
        log.act({"kind": "request", "body": "a secret that nobody reads"}, "ada")
        log.act({"act": "compliance.report"})
    model = made(store, tmp_path / "m", "filter", seed=1)
    scores = {"false_positives_ordinary": Score(value=0.0, low=0.0, high=0.004, n=1000, better="lower")}
    store.index.add_artifact(store.put_report(model, "moderation", scores))
    found = collect(store, ON)
    held = {id for id, status in results(found).items() if status == "held"}
    assert held >= {
        "auth", "keys-hashed", "keys-young", "keys-end", "secrets", "audit-on", "audit-sound", "audit-sealed",
        "audit-kept", "moderation-on", "moderation-figures", "change-log", "quarterly",
    }  # fmt: skip
    assert results(found)["audit-elsewhere"] == "failed"  # one disk


def test_what_is_wrong_fails(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(keys_module, "now", lambda: datetime.now(UTC) - timedelta(days=100))
        Keys(store.index).create("old", "user")
    with Log(store.root, ON.audit) as log:
        log.act({"act": "x"})
    [path] = (store.root / "audit" / "segments").iterdir()
    raw = bytearray(path.read_bytes())
    raw[70] ^= 1
    path.write_bytes(raw)
    (store.root / "keys" / "govern.key").chmod(0o644)
    model = made(store, tmp_path / "m", "helper", seed=1)
    store.tag("helper", "production")
    scores = {"false_positives_ordinary": Score(value=0.004, low=0.001, high=0.006, n=1000, better="lower")}
    store.index.add_name("filter", model.digest)
    store.index.add_artifact(store.put_report(model, "moderation", scores))
    failed = {id for id, status in results(collect(store, ON)).items() if status == "failed"}
    assert failed >= {"keys-young", "keys-end", "audit-sound", "secrets", "gates", "moderation-figures"}


def test_the_signed_form_is_this_workspaces_own(store: Store) -> None:
    told = signed(collect(store, ON), store.root)
    assert holds(told, store.root)
    assert not holds(told.replace(b"no evidence", b"held"), store.root)
    assert not holds(b"{}", store.root)


def test_the_page_escapes_what_stands_in_it(store: Store, tmp_path: Path) -> None:
    with Log(store.root, ON.audit) as log:
        log.act({"act": "x"})
    Keys(store.index).create("<script>alert(1)</script>", "user", lifetime=None)
    html = page(collect(store, ON, now=datetime.now(UTC) + timedelta(days=200)), store)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "no evidence" in html


def test_the_change_log_tells_versions_and_moves(store: Store, tmp_path: Path) -> None:
    first = made(store, tmp_path / "1", "helper", rate=0.1)
    second = made(store, tmp_path / "2", "helper", rate=0.2)
    made(store, tmp_path / "3", "other", rate=0.3)
    store.tag("helper@2", "production", by="ada")
    store.untag("helper", "production", by="bob")
    log = change_log(store, "helper")
    assert [change.detail for change in log] == [
        "version 1", "version 2", f"production: {second.digest[:12]}", "production taken away",
    ]  # fmt: skip
    assert [change.by for change in log[2:]] == ["ada", "bob"]
    assert log[0].digest == first.digest
    assert log[0].run == "govern.train_filter of demo"
    assert log[1].changed == {"rate": "0.1 -> 0.2"}
    assert {change.name for change in change_log(store)} == {"helper", "other"}
