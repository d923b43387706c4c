"""The overview: the chain from lineage, what is in production, what happened, and who sees what."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

import catena
from catena.console.chain import draw
from catena.console.read import overview as read
from catena.core.types import Run
from catena.hub.store import Store
from catena.workspace import Workspace
from tests.console.conftest import Small, Visit

pytestmark = pytest.mark.xdist_group("console")


def test_the_chain_leads_from_the_sources_to_production(small: Small) -> None:
    with catena.open(small.root) as ws:
        found = read.overview(ws)
    columns = {name: [box.ref for box in column] for name, column in found.chain.columns}
    assert columns["sources"] == ["small/documents@1"]
    assert columns["learnt"] == ["small/corpus@1"]
    assert columns["models"] == ["small/model@1"]
    assert columns["production"] == ["small/model@production"]
    ids = {box.ref: box.id for _, column in found.chain.columns for box in column}
    assert (ids["small/documents@1"], ids["small/corpus@1"]) in found.chain.links
    assert (ids["small/corpus@1"], ids["small/model@1"]) in found.chain.links
    assert (ids["small/model@1"], "production:small/model") in found.chain.links
    assert found.production[0].name == "small/model"
    assert found.events[0].kind in ("tag", "done")
    drawn = draw(found.chain, str.upper, lambda box: f"/x/{box.ref}")
    assert 'href="/x/small/corpus@1"' in drawn
    assert "SOURCES" in drawn


def test_an_empty_workspace_has_an_empty_chain(store: Store) -> None:
    found = read.overview(Workspace(store))
    assert (found.totals.runs, found.chain.columns, found.running, found.events) == (0, [], [], [])


def test_a_run_whose_process_is_gone_does_not_run() -> None:
    now = datetime.now(UTC)
    assert read.alive(Run(id="a", group="g", step="s", stage="t", started=now, machine={"pid": os.getpid()}))
    assert not read.alive(Run(id="a", group="g", step="s", stage="t", started=now, machine={"pid": 2**22 + 1}))
    early = datetime(2000, 1, 1, tzinfo=UTC)  # its id was given to a later process
    assert not read.alive(Run(id="a", group="g", step="s", stage="t", started=early, machine={"pid": os.getpid()}))


def test_a_user_sees_the_chain_and_not_the_runs(visit: Visit) -> None:
    visitor = visit("user")
    visitor.go("/")
    assert visitor.page.query_selector(".c-chain")
    assert "Running now" not in visitor.text
    assert "small/model" in visitor.text
