"""JSON APIs: every style of paging, only what is new, and nothing lost or asked twice when a run is cut off."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from catena.core.config import parse
from catena.core.errors import ConfigError, RemoteError
from catena.core.stage import Context
from catena.data.collect.api import ApiConfig
from catena.data.collect.client import HttpError

from .loopback import FAST, Asked, Loopback, Reply, collect, counts, loopback, reasons, start, texts

NOTES = [{"id": number, "body": f"note {number}", "at": f"2026-01-{number:02d}T00:00:00Z"} for number in range(1, 8)]
SIZE = 3


def shelf(notes: list[dict[str, Any]]) -> Any:
    """A server that pages in every style, as the path says."""

    def answer(asked: Asked) -> Reply:
        found = [note for note in notes if note["at"] >= asked.query.get("since", "")]
        style = asked.path.strip("/")
        first = {
            "page": (int(asked.query.get("page", 1)) - 1) * SIZE,
            "offset": int(asked.query.get("start", 0)),
            "cursor": int(asked.query.get("token") or 0),
            "link": int(asked.query.get("from", 0)),
            "next": int(asked.query.get("from", 0)),
        }[style]
        page, more = found[first : first + SIZE], first + SIZE < len(found)
        body: dict[str, Any] = {"data": {"items": page}, "token": str(first + SIZE) if more else None}
        since = f"&since={asked.query['since']}" if "since" in asked.query else ""
        target = f"/{style}?from={first + SIZE}{since}"
        if style == "next":
            body["next"] = target if more else None
        return Reply(body, headers={"Link": f'<{target}>; rel="next"'} if more and style == "link" else {})

    return answer


STYLES: dict[str, dict[str, Any]] = {
    "page": {"paging": "page"},
    "offset": {"paging": "offset", "page_param": "start"},
    "cursor": {"paging": "cursor", "page_param": "token", "next": "token"},
    "link": {"paging": "link"},
    "next": {"paging": "link", "next": "next"},
}


def config(server: Loopback, style: str, **more: Any) -> dict[str, Any]:
    return {
        "url": f"{server.url}/{style}",
        "records": "data.items",
        "text": ["body"],
        "updated": "at",
        "since_param": "since",
        "http": FAST,
        **STYLES[style],
        **more,
    }


@pytest.mark.parametrize("style", STYLES)
def test_a_second_run_asks_only_for_what_is_new(context: Context, style: str) -> None:
    notes = list(NOTES)
    with loopback(shelf(notes)) as server:
        first = collect(context, "data.collect_api", **config(server, style))
        assert texts(context, first) == [f"note {number}" for number in range(1, 8)]
        assert counts(first) == {"new": 7}
        server.asked.clear()
        notes[2] = {"id": 3, "body": "note 3, mended", "at": "2026-02-01T00:00:00Z"}
        notes.append({"id": 8, "body": "note 8", "at": "2026-02-02T00:00:00Z"})
        second = collect(context, "data.collect_api", **config(server, style))
        assert server.asked[0].query["since"] == "2026-01-07T00:00:00Z"
        assert counts(second) == {"changed": 1, "kept": 5, "new": 1, "unchanged": 1}
        assert texts(context, second)[2] == "note 3, mended"
        assert texts(context, first)[2] == "note 3"
        third = collect(context, "data.collect_api", **config(server, style))
    assert third.digest == second.digest


def test_rows_are_the_same_whether_they_came_at_once_or_in_many_runs(context: Context) -> None:
    with loopback(shelf(list(NOTES))) as server:
        whole = collect(context, "data.collect_api", **config(server, "page"))
        context.store.index.add_name("other", whole.digest)
        parts = Context(context.store, context.workdir, 7, context.events, "parts")
        server.asked.clear()
        for _ in range(3):
            version = collect(parts, "data.collect_api", **config(server, "page", max_records=3))
        assert [entry.query["page"] for entry in server.asked] == ["1", "2", "3", "4"]
    assert version.digest == whole.digest


def test_a_run_whose_server_dies_goes_on_at_the_page_where_it_stopped(context: Context) -> None:
    whole = shelf(list(NOTES))
    up = False

    def answer(asked: Asked) -> Reply:
        return whole(asked) if up or asked.query.get("page") != "2" else Reply(status=500)

    with loopback(answer) as server:
        with pytest.raises(RemoteError) as caught:
            collect(context, "data.collect_api", **config(server, "page"))
        assert "goes on where it was" in caught.value.hint
        up = True
        version = collect(context, "data.collect_api", **config(server, "page"))
        assert [entry.query["page"] for entry in server.asked] == ["1", "2", "2", "2", "3", "4"]
    assert version.rows == 7
    assert not list(context.workdir.iterdir())


def test_a_killed_run_loses_nothing_and_asks_for_nothing_twice(context: Context, tmp_path: Path) -> None:
    whole = shelf(list(NOTES))
    reached = []

    def answer(asked: Asked) -> Reply:
        if asked.query.get("page") == "3" and not reached:
            reached.append(True)
            time.sleep(1.0)
        return whole(asked)

    with loopback(answer) as server:
        with start(tmp_path, "data.collect_api", config(server, "page")) as child:
            deadline = time.monotonic() + 30
            while not reached and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(child.pid, signal.SIGKILL)
        version = collect(context, "data.collect_api", **config(server, "page"))
        assert [entry.query["page"] for entry in server.asked] == ["1", "2", "3", "3", "4"]
    assert texts(context, version) == [f"note {number}" for number in range(1, 8)]


def test_a_place_that_the_server_forgot_makes_the_pass_begin_anew(context: Context) -> None:
    whole = shelf(list(NOTES))
    refused = Reply(status=400)
    state = {"dead": True}

    def answer(asked: Asked) -> Reply:
        if asked.query.get("token") == "3":
            if state["dead"]:
                return Reply(status=503)
            if "again" not in state:
                state["again"] = True
                return refused
        return whole(asked)

    with loopback(answer) as server:
        with pytest.raises(RemoteError):
            collect(context, "data.collect_api", **config(server, "cursor"))
        state["dead"] = False
        version = collect(context, "data.collect_api", **config(server, "cursor"))
    assert (version.rows, counts(version)) == (7, {"new": 7})


def test_every_record_that_cannot_be_taken_is_a_reject_with_its_reason(context: Context) -> None:
    records = [
        {"id": 1, "body": "good", "n": 5},
        {"body": "who am I"},
        {"id": 2},
        {"id": 3, "body": {"a": 1}},
        "no record",
        {"id": 4, "body": "x" * 500},
        {"id": 5, "body": "lone \ud800"},
        {"id": 6, "body": "nul \x00 and \u202e right to left"},
        {"id": 7, "body": "big", "n": 1 << 80},
    ]
    values = {"text": ["body"], "max_record_bytes": 300, "http": FAST}
    with loopback(lambda asked: Reply(records)) as server:
        version = collect(context, "data.collect_api", url=server.url, **values)
    found = sorted(reasons(context, version).values())
    assert found == [
        "bad_record",
        "bad_record",
        "lone_surrogate",
        "missing_id",
        "missing_text",
        "not_storable",
        "too_large",
    ]
    assert texts(context, version) == ["good", "nul \x00 and \u202e right to left"]
    assert version.funnel is not None
    assert version.funnel.rows_in == len(records)


def test_without_text_the_record_itself_is_the_row(context: Context) -> None:
    with loopback(lambda asked: Reply([{"id": "b", "x": "乙"}, {"id": "a", "n": 1.5}])) as server:
        version = collect(context, "data.collect_api", url=server.url, http=FAST)
    rows = list(context.store.open_dataset(version).samples())
    assert [json.loads(row.data["content"]) for row in rows] == [{"id": "a", "n": 1.5}, {"id": "b", "x": "乙"}]
    assert rows[0].data["media_type"] == "application/json"


def test_html_becomes_text_and_plain_fields_metadata(context: Context) -> None:
    record = {"id": 1, "title": "T", "body": "<p>one</p><p>two &amp; three</p>", "who": "me", "deep": {"a": 1}}
    with loopback(lambda asked: Reply([record])) as server:
        values = {"text": ["title", "body"], "html": True, "license": "MIT", "http": FAST}
        version = collect(context, "data.collect_api", url=server.url, **values)
    (row,) = context.store.open_dataset(version).samples()
    assert row.text.split() == ["T", "one", "two", "&", "three"]
    assert (row.metadata["who"], row.license) == ("me", "MIT")
    assert "deep" not in row.metadata


def test_newest_first_stops_at_the_first_page_without_news(context: Context) -> None:
    notes = sorted(NOTES, key=lambda note: note["at"], reverse=True)
    with loopback(shelf(notes)) as server:
        values = config(server, "page", since_param="", newest_first=True)
        collect(context, "data.collect_api", **values)
        server.asked.clear()
        notes.insert(0, {"id": 9, "body": "note 9", "at": "2026-03-01T00:00:00Z"})
        version = collect(context, "data.collect_api", **values)
        assert [entry.query["page"] for entry in server.asked] == ["1", "2"]
    assert version.rows == 8


def test_a_server_that_ignores_the_page_number_is_found_out(context: Context) -> None:
    with (
        loopback(lambda asked: Reply([{"id": 1, "body": "x"}])) as server,
        pytest.raises(RemoteError, match="same page again"),
    ):
        collect(context, "data.collect_api", url=server.url, text=["body"], paging="page", http=FAST)


def test_a_next_page_on_another_server_is_not_asked(context: Context) -> None:
    with (
        loopback(lambda asked: Reply({"data": {"items": [{"id": 1}]}, "next": "http://127.0.0.2:1/x"})) as server,
        pytest.raises(RemoteError, match="another server"),
    ):
        collect(context, "data.collect_api", **config(server, "next"))


def test_an_answer_that_is_no_json_names_the_server(context: Context) -> None:
    with loopback(lambda asked: Reply("<html>login</html>")) as server:
        with pytest.raises(HttpError, match="did not answer with JSON"):
            collect(context, "data.collect_api", url=server.url, http=FAST)
        server.answer = lambda asked: Reply({"items": 5})
        with pytest.raises(RemoteError, match="holds no list"):
            collect(context, "data.collect_api", url=server.url, records="items", http=FAST)


def test_the_secret_is_in_no_file_of_the_workspace(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHELF_KEY", "s3cr3t-value")
    auth = {"kind": "query", "name": "key", "secret_env": "SHELF_KEY"}
    inner = shelf(list(NOTES))

    def echo(asked: Asked) -> Reply:
        assert asked.query.pop("key") == "s3cr3t-value"
        reply = inner(asked)
        if reply.body["next"]:  # type: ignore[index, call-overload]
            reply.body["next"] += "&key=s3cr3t-value"  # type: ignore[index, call-overload, operator]
        return reply

    with loopback(echo) as server:
        version = collect(context, "data.collect_api", **config(server, "next", auth=auth, max_records=3))
    assert version.rows == 3
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cr3t-value" in path.read_bytes()]


def test_another_config_collects_from_the_start(context: Context) -> None:
    with loopback(shelf(list(NOTES))) as server:
        collect(context, "data.collect_api", **config(server, "page"))
        version = collect(context, "data.collect_api", **config(server, "page", text=["body", "at"]))
    assert counts(version) == {"new": 7}
    assert texts(context, version)[0] == "note 1\n\n2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "values",
    [
        {"url": "http://me:pw@host/"},
        {"url": "http://host/", "paging": "cursor"},
        {"url": "http://host/", "since_param": "since"},
        {"url": "http://host/", "auth": {"kind": "bearer"}},
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse(ApiConfig, values)
