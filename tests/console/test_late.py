"""What comes late: the answer to an older question, a key that is pressed before the next sample is shown, a list that
has become shorter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from catena.console import parts
from catena.console.pages import entries, labels
from catena.console.pages.entries import Search
from catena.console.pages.labels import Desk
from catena.console.parts import Paged, Slice, Turns
from catena.console.read.audit import Found
from catena.govern.audit.reading import Query

VIEW: Any = SimpleNamespace(
    need=lambda action: None, say=lambda *key, **words: "", workspace=None, person=SimpleNamespace(subject="ana")
)


def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread of its own: where a browser was opened before, this one has a loop that runs."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


class Shown:
    """An element that keeps what it shows."""

    def __init__(self) -> None:
        self.content = ""
        self.on = True

    def set_enabled(self, on: bool) -> None:
        self.on = on

    def set_text(self, text: str) -> None: ...

    def set_visibility(self, seen: bool) -> None: ...


class Slow:
    """In place of `parts.read`: answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []

    async def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked.append((arguments, answer))
        return await answer

    async def answer(self, at: int, value: Any) -> None:
        while len(self.asked) <= at:
            await asyncio.sleep(0)
        self.asked[at][1].set_result(value)
        await asyncio.sleep(0)


def test_a_list_that_has_become_shorter_shows_its_last_page() -> None:
    asked: list[int] = []

    def load(offset: int, limit: int, words: str) -> Slice:
        asked.append(offset)
        return Slice(list(range(120))[offset : offset + limit], 120)

    paged = Paged.__new__(Paged)
    paged._view, paged._load, paged._size, paged._offset, paged._words = VIEW, load, 50, 200, ""
    paged._draw = lambda rows: str(list(rows))  # type: ignore[assignment,return-value]
    paged._turns = Turns()
    paged._place, paged._back, paged._on, paged._body = Shown(), Shown(), Shown(), Shown()  # type: ignore[assignment]
    finish(paged.refresh())
    assert asked == [200, 100]
    assert paged._body.content == str(list(range(100, 120)))
    assert (paged._back.on, paged._on.on) == (True, False)  # type: ignore[attr-defined]


def test_an_older_search_does_not_take_the_place_of_a_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr(parts, "read", slow)
    monkeypatch.setattr(entries, "_table", lambda view, found: found.entries[0])
    search = Search.__new__(Search)
    search._view, search._turns, search._query = VIEW, Turns(), Query()
    search._newest, search._older, search._place, search._list = Shown(), Shown(), Shown(), Shown()  # type: ignore[assignment]
    search._where = lambda found: ""  # type: ignore[assignment,method-assign,return-value]
    wanted = iter((Query(text="first"), Query(text="second")))
    search._asked = lambda: next(wanted)  # type: ignore[method-assign]

    async def work() -> None:
        first = asyncio.create_task(search._begin())
        await asyncio.sleep(0)
        second = asyncio.create_task(search._begin())
        await slow.answer(1, Found(("of the second",), "more of the second", 0, None))  # type: ignore[arg-type]
        await slow.answer(0, Found(("of the first",), "more of the first", 0, None))  # type: ignore[arg-type]
        await asyncio.gather(first, second)
        assert search._list.content == "of the second"
        further = asyncio.create_task(search._further())
        await slow.answer(2, Found(("the end",), "", 0, None))  # type: ignore[arg-type]
        await further

    finish(work())
    assert slow.asked[2][0][1:] == (Query(text="second"), "ana", "more of the second")


def test_a_label_is_for_the_sample_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    async def read(work: Callable[..., Any], *arguments: Any) -> Any:
        await asyncio.sleep(0.01)
        return work(*arguments)

    monkeypatch.setattr(parts, "read", read)
    monkeypatch.setattr(labels.read, "keep", lambda store, name, person, label, id: said.append((id, label.value)))
    rows = [{"_id": id, "output": None, "metadata": "{}"} for id in "ABCD"]
    monkeypatch.setattr(labels.datasets, "rows", lambda *asked: SimpleNamespace(rows=[rows[asked[3][0]]]))
    desk = Desk.__new__(Desk)
    desk.view, desk.found, desk.store, desk.name, desk.person = VIEW, SimpleNamespace(ref="d"), None, "d", "ana"  # type: ignore[assignment]
    desk.choices, desk.mine, desk.at, desk.total, desk.row = ["1", "2"], {}, 0, 4, rows[0]
    desk.turns, desk.busy, desk.other = Turns(), False, SimpleNamespace(value="")  # type: ignore[assignment]
    desk._show = lambda: None  # type: ignore[method-assign]

    async def work() -> None:
        await asyncio.gather(desk.put("1"), desk.put("2"))
        assert (said, desk.row["_id"]) == ([("A", "1")], "B")
        await asyncio.gather(desk.go(3), desk.put("2"))
        assert said[1:] == [("B", "2")], "what was on the screen, and not what is on its way"
        await desk.put("1")

    finish(work())
    assert said[2][0] == desk.mine[said[2][0]].id
