"""A real gateway as the console sees it: replicas, releases, one question for all who look, two who act at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from catena.console.read import gateway as read
from catena.console.read.gateway import Watch, end_release, watch_of
from catena.core.errors import RemoteError
from catena.hub.store import Store
from catena.sdk import AsyncCatena, Release, Unreachable
from catena.serve.app import build_app
from catena.serve.running import FOLDER, Running as Note, announced, running
from catena.serve.server import background
from catena.workspace import Workspace
from tests.serve.gateway.conftest import Start, eventually, impatient as impatient, mock, start as start

Result = TypeVar("Result")


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it in a thread of its own: where a browser was opened before, this one has a loop that runs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@pytest.fixture
def client() -> Callable[[str], Callable[[], AsyncCatena]]:
    return lambda url: lambda: AsyncCatena(url, retries=0)


def test_replicas_rates_and_releases(start: Start, client: Callable[[str], Callable[[], AsyncCatena]]) -> None:
    gateway = start({"m": mock("--digest", "old")}, candidates={"new": mock("--model", "new")})
    ask = client(gateway.url)

    async def look() -> None:
        watch = Watch()
        first = await watch.fresh(ask)
        assert first.ready
        assert [one.phase for one in first.replicas["m"]] == ["ready"]
        assert (first.releases, first.acts) == ((), ())
        for _ in range(5):
            await asyncio.to_thread(gateway.chat, "hello there")
        async with ask() as catena:
            await catena.start_release("m", "new", steps=[30, 60])
        watch.stale()
        second = await watch.fresh(ask)
        assert second.now.counts["m"].requests - first.now.counts["m"].requests == 5
        assert second.now.rates["m"].requests > 0
        assert [(one.model, one.candidate) for one in second.releases] == [("m", "new")]
        assert [one.act for one in second.acts] == ["start"]
        without = await watch.fresh(ask, releases=False)
        assert (without.releases, without.acts) == ((), ())

    finish(look())


def test_all_who_look_make_one_question(
    start: Start, client: Callable[[str], Callable[[], AsyncCatena]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start({"m": mock()})
    asked = []
    true = AsyncCatena.metrics

    async def counted(self: AsyncCatena) -> str:
        asked.append(self)
        return await true(self)

    monkeypatch.setattr(AsyncCatena, "metrics", counted)

    async def look() -> None:
        watch = Watch()
        found = await asyncio.gather(*(watch.fresh(client(gateway.url), least=60) for _ in range(20)))
        assert len({id(one) for one in found}) == 1

    finish(look())
    assert len(asked) == 1


@pytest.mark.parametrize("moment", ["send", "close"])
def test_what_is_done_during_a_look_is_seen_by_the_next(
    start: Start,
    client: Callable[[str], Callable[[], AsyncCatena]],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    gateway = start({"m": mock()}, candidates={"new": mock("--model", "new")})
    ask, watch = client(gateway.url), Watch()
    true = getattr(AsyncCatena, moment)

    async def look() -> None:
        async def another(self: AsyncCatena, *call: Any) -> Any:
            told = await true(self, *call)
            if call and call[0].path != "/admin/releases":
                return told
            monkeypatch.setattr(AsyncCatena, moment, true)
            async with ask() as catena:
                await catena.start_release("m", "new")
            watch.stale()
            return told

        monkeypatch.setattr(AsyncCatena, moment, another)
        assert (await watch.fresh(ask, least=60)).releases == ()
        assert [one.candidate for one in (await watch.fresh(ask, least=60)).releases] == ["new"]

    finish(look())


def test_that_nobody_answers_is_told_to_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Mute:
        async def __aenter__(self) -> Mute:
            asked.append(self)
            return self

        async def __aexit__(self, *error: object) -> None: ...

        async def metrics(self) -> str:
            await asyncio.sleep(60)
            return ""

        async def ready(self) -> None:
            await asyncio.sleep(60)

    monkeypatch.setattr(read, "ANSWER_S", 0.1)

    async def look() -> None:
        watch = Watch()
        told = await asyncio.gather(*(watch.fresh(Mute, least=60) for _ in range(20)), return_exceptions=True)  # type: ignore[arg-type]
        assert {type(one) for one in told} == {Unreachable}
        assert len(asked) == 1
        with pytest.raises(Unreachable, match="has not answered"):
            await watch.fresh(Mute, least=0)  # type: ignore[arg-type]
        assert len(asked) == 2

    finish(look())


def test_a_look_is_as_old_as_its_beginning(
    start: Start, client: Callable[[str], Callable[[], AsyncCatena]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start({"m": mock()})
    true = AsyncCatena.metrics

    async def slow(self: AsyncCatena) -> str:
        await asyncio.sleep(0.3)
        return await true(self)

    monkeypatch.setattr(AsyncCatena, "metrics", slow)

    async def look() -> None:
        watch = Watch()
        first = await watch.fresh(client(gateway.url))
        assert await watch.fresh(client(gateway.url), least=0.25) is not first

    finish(look())


def test_a_gateway_that_comes_where_a_plain_server_was(
    start: Start, client: Callable[[str], Callable[[], AsyncCatena]]
) -> None:
    watch = Watch()
    with background(build_app({})) as url:
        assert not finish(watch.fresh(client(url))).may_release
    gateway = start({"m": mock()}, candidates={"new": mock("--model", "new")})
    watch._turn = asyncio.Lock()  # of the loop that the first look had
    watch.visited()
    assert finish(watch.fresh(client(gateway.url), least=0)).offer.candidates == ("new",)


def test_two_who_act_at_once(start: Start, client: Callable[[str], Callable[[], AsyncCatena]]) -> None:
    gateway = start({"m": mock()}, candidates={"new": mock("--model", "new")})
    ask = client(gateway.url)

    async def act() -> None:
        async with ask() as catena:
            await catena.start_release("m", "new")
        eventually(lambda: gateway.gateway.releases.status("m")["phase"] == "under way")
        [shown] = (await Watch().fresh(ask)).releases
        both = await asyncio.gather(*(end_release(ask, shown, "promote", f"says {who}") for who in ("ada", "bob")))
        [done, told] = sorted(both)
        assert done == ""
        assert "already" in told
        assert "promoted by local" in told
        assert await end_release(ask, shown, "rollback", "complaints") == ""
        assert "rolled back by local" in await end_release(ask, shown, "rollback", "complaints")
        with pytest.raises(RemoteError):
            await end_release(client("http://127.0.0.1:9"), shown, "rollback", "x")

    finish(act())
    entries = [(one["act"], one.get("reason")) for one in gateway.gateway.releases.log.entries()]
    assert [act for act, _ in entries] == ["start", "promote", "rollback"]


def test_a_server_without_replicas_has_no_releases(client: Callable[[str], Callable[[], AsyncCatena]]) -> None:
    with background(build_app({})) as url:
        found = finish(Watch().fresh(client(url)))
    assert not found.may_release
    assert found.replicas == {}


def test_a_server_is_found_as_long_as_it_lives(store: Store) -> None:
    workspace = Workspace(store)
    with announced(store.root) as say:
        assert running(store.root) == [], "it is not ready yet"
        say(Note("http://one:1", ("m",), 1.0, replicas=False))
        with announced(store.root) as other:
            other(Note("http://two:2", ("m", "n"), 0.5, replicas=True))
            assert [one.url for one in running(store.root)] == ["http://two:2", "http://one:1"], "gateways first"
        assert [one.url for one in running(store.root)] == ["http://one:1"]
    (store.root / FOLDER / "7-killed.json").write_text('{"url": "http://gone:1", "models": [], "since": 1}')
    assert running(store.root) == []
    assert not list((store.root / FOLDER).glob("*.json")), "what a killed one left is taken away"
    assert watch_of(workspace, "a") is watch_of(workspace, "a") is not watch_of(workspace, "b")


def test_a_release_is_told_by_its_id() -> None:
    release = Release.model_validate({"model": "m", "release": "abc"})
    assert (release.model_extra or {})["release"] == "abc"
    assert read.trouble_of(RemoteError("cut")) == "cut"
