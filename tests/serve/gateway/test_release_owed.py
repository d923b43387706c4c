"""A rollback while the index or the disk is away: users go back at once, and what could not be done is done later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from catena.hub.store import Store

from .conftest import Start, eventually
from .postgres import PostgresServer, postgres_running
from .test_release_tags import act, begun, production, released, served, two_versions
from .test_releases import acts


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with postgres_running() as server:
        yield server


@pytest.fixture
def models(shared: Store, tmp_path: Path) -> tuple[str, str]:
    return two_versions(shared, tmp_path)


def test_users_go_back_at_once_and_the_tag_when_the_index_answers(
    start: Start, shared: Store, models: tuple[str, str], postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = models
    running = begun(start, shared, bake_s=1.5)
    released(running)
    assert act(running, "promote") == 200
    assert (production(shared), served(running)) == (new, new[:12])
    postgres.stop()
    try:
        assert act(running, "rollback") == 200
        assert served(running) == old[:12]
        assert not running.gateway.releases.active, "it bakes no more, so nothing closes what serves now"
    finally:
        postgres.start()
    assert "is put back when the index answers" in caplog.text
    eventually(lambda: acts(running) == ["start", "promote", "rollback", "tag"])
    assert production(shared) == old
    assert running.get("/admin/releases").json()["changes"][-1]["tag_put_back"] is True
    assert served(running) == old[:12]


def test_a_restart_puts_the_tag_back_before_anything_starts(
    start: Start, shared: Store, models: tuple[str, str], postgres: PostgresServer
) -> None:
    old, new = models
    first = begun(start, shared)
    released(first)
    assert act(first, "promote") == 200
    postgres.stop()
    try:
        assert act(first, "rollback") == 200
        first.stop()
    finally:
        postgres.start()
    assert production(shared) == new, "nobody has put it back yet"
    again = begun(start, shared)
    assert (production(shared), served(again)) == (old, old[:12])


def test_a_decision_that_the_disk_does_not_let_happen_fails_no_request_and_is_tried_again(
    start: Start,
    shared: Store,
    models: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = begun(start, shared)
    released(running)
    releases = running.gateway.releases
    add, refused = releases.log.add, []

    def full(what: str, *rest: str, **facts: object) -> object:
        if not refused:
            refused.append(what)
            raise OSError(28, "No space left on device")
        return add(what, *rest, **facts)

    monkeypatch.setattr(releases.log, "add", full)
    pool = releases.active["m"].pool
    pool.crashes = 3
    eventually(lambda: refused)
    assert running.chat("hi").status_code == 200
    assert "not on the disk yet" in caplog.text
    assert not releases.active, "it went back all the same"
