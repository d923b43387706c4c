"""`/v1/feedback`: who got an answer says what it was worth, once; what was written is sealed and can be erased."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from catena.core.errors import EnvironmentProblem
from catena.core.trace import Trace
from catena.govern.audit.forget import erase
from catena.govern.audit.log import Log
from catena.govern.audit.reading import Query, entries
from catena.govern.config import AuditConfig, AuthConfig, FeedbackConfig, GovernConfig, ModerationConfig
from catena.govern.feedback.book import Book, Said, book_path
from catena.govern.feedback.traces import AuditTraces
from catena.govern.keys import Keys
from catena.hub.store import Store
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.governed import governed
from catena.serve.server import background

from .gateway.conftest import fill
from .scripted import Scripted

ANSWER = "It is on its way, and 你好."
AUDIT = AuditConfig()


@dataclass
class Served:
    """A server, and keys of several people."""

    url: str
    keys: dict[str, str]

    def call(self, method: str, path: str, who: str, body: Any = None) -> httpx.Response:
        head = {"authorization": f"Bearer {self.keys[who]}"}
        return httpx.request(method, f"{self.url}{path}", headers=head, json=body, timeout=30)

    def ask(self, who: str, text: str = "Where is my parcel?", **more: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}
        return self.call("POST", "/v1/chat/completions", who, body)

    def rate(self, who: str, name: str, rating: str = "up", **more: Any) -> httpx.Response:
        body = {"request_id": name, "rating": rating, "consent": True, **more}
        return self.call("POST", "/v1/feedback", who, body)


@pytest.fixture
def served(store: Store, tokenizer: Any) -> Iterator[Served]:
    people = {"adalovelace": "user", "bob": "user", "dev": "developer", "root": "admin"}
    keys = {name: Keys(store.index).create(name, role)[0] for name, role in people.items()}  # type: ignore[arg-type]
    config = GovernConfig(
        auth=AuthConfig(on=True), audit=AuditConfig(on=True), moderation=ModerationConfig(on=True, personal=False)
    )
    with governed(store, config, ServeConfig()) as middleware:
        app = build_app(
            {"tiny": Scripted(tokenizer, ANSWER)}, fingerprints={"tiny": "abcdef0123456789"}, middleware=middleware
        )
        with background(app) as url:
            yield Served(url, keys)


def traces(store: Store, since: int = 0) -> list[Trace]:
    return AuditTraces(store.root).rated(since)[0]


def test_who_got_an_answer_rates_it_by_either_of_its_names(served: Served, store: Store) -> None:
    asked = served.ask("adalovelace")
    first = served.rate("adalovelace", asked.headers["x-request-id"], "down", correction="Tomorrow.", comment="late")
    assert first.status_code == 201
    assert (first.json()["rating"], first.json()["corrected"], first.json()["revision"]) == ("down", True, 1)
    body = {"response_id": asked.json()["id"], "rating": "down", "consent": True}
    again = served.call("POST", "/v1/feedback", "adalovelace", {**body, "correction": "Tomorrow.", "comment": "late"})
    assert (again.status_code, again.json()["id"], again.json()["revision"]) == (200, first.json()["id"], 1)
    changed = served.rate("adalovelace", asked.headers["x-request-id"], "up")
    assert (changed.status_code, changed.json()["revision"], changed.json()["corrected"]) == (200, 2, False)
    told = [one for one in entries(store.root, AUDIT, Query(kind="answer")) if one["path"] == "/v1/feedback"]
    assert [one["decisions"][0]["decision"] for one in told] == ["kept", "unchanged", "kept"]
    assert {one["subject"] for one in told} == {"adalovelace"}


def test_nobody_rates_an_answer_that_another_one_got(served: Served) -> None:
    name = served.ask("adalovelace").headers["x-request-id"]
    unknown, others = served.rate("bob", "no-such-answer"), served.rate("bob", name)
    assert (unknown.status_code, others.status_code) == (404, 404)
    assert unknown.json()["error"]["message"].replace("no-such-answer", name) == others.json()["error"]["message"]
    assert served.rate("adalovelace", name).status_code == 201


def test_the_list_is_for_developers_and_admins(served: Served) -> None:
    for number in range(3):
        name = served.ask("adalovelace").headers["x-request-id"]
        served.rate("adalovelace", name, "down" if number == 1 else "up", comment=f"no. {number}")
    assert served.call("GET", "/v1/feedback", "adalovelace").status_code == 403
    first = served.call("GET", "/v1/feedback?limit=2", "dev").json()
    assert [one["comment"] for one in first["data"]] == ["no. 0", "no. 1"]
    assert first["has_more"] is True
    rest = served.call("GET", f"/v1/feedback?after={first['last']}", "root").json()
    assert [(one["comment"], one["subject"]) for one in rest["data"]] == [("no. 2", "adalovelace")]
    assert len(served.call("GET", "/v1/feedback?rating=down", "dev").json()["data"]) == 1
    one = served.call("GET", f"/v1/feedback/{rest['data'][0]['id']}", "dev")
    assert one.json()["comment"] == "no. 2"
    assert served.call("GET", f"/v1/feedback/{rest['data'][0]['id']}", "bob").status_code == 403
    assert served.call("GET", "/v1/feedback/fb-none-0", "dev").status_code == 404


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"rating": "up", "consent": True}, "request_id"),
    ({"request_id": "a", "response_id": "b", "rating": "up", "consent": True}, "request_id"),
    ({"request_id": "a", "rating": "sideways", "consent": True}, "rating"),
    ({"request_id": "a", "rating": "up"}, "consent"),
    ({"request_id": "a", "rating": "up", "consent": "yes"}, "consent"),
    ({"request_id": "a" * 200, "rating": "up", "consent": True}, "request_id"),
    ({"request_id": "a", "rating": "up", "consent": True, "score": 3}, "score"),
]


def test_what_makes_no_sense_is_refused_by_name(served: Served) -> None:
    for body, param in NONSENSE:
        answer = served.call("POST", "/v1/feedback", "adalovelace", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), body


def test_other_methods_and_broken_queries_are_refused(served: Served) -> None:
    assert served.call("DELETE", "/v1/feedback", "root").status_code == 405
    assert served.call("GET", "/v1/feedback/a/b", "root").status_code == 404
    for query in ("limit=-1", "limit=1001", "after=x", "who=ada"):
        assert served.call("GET", f"/v1/feedback?{query}", "dev").status_code == 400
    head = {"authorization": f"Bearer {served.keys['adalovelace']}", "content-type": "text/plain"}
    assert httpx.post(f"{served.url}/v1/feedback", headers=head, content=b"{}").status_code == 415
    assert httpx.post(f"{served.url}/v1/feedback", json={}).status_code == 401


def test_a_correction_that_moderation_blocks_is_not_kept(served: Served, store: Store) -> None:
    name = served.ask("adalovelace").headers["x-request-id"]
    refused = served.rate("adalovelace", name, "down", correction="you f u c k i n g fool")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
    assert traces(store) == []


def test_traces_join_question_answer_and_what_was_said(served: Served, store: Store) -> None:
    names = [
        served.ask("adalovelace").headers["x-request-id"],
        served.ask("adalovelace", "And now?", stream=True).headers["x-request-id"],
    ]
    served.rate("adalovelace", names[0], "down", correction="Tomorrow.")
    served.rate("adalovelace", names[1], "up", consent=False)
    first, second = traces(store)
    assert (first.messages, first.answer) == ((("user", "Where is my parcel?"),), ANSWER)
    assert (first.rating, first.correction, first.consent) == ("down", "Tomorrow.", True)
    assert (second.answer, second.finish, second.consent) == (ANSWER, "stop", False)
    assert {one.digest for one in (first, second)} == {"abcdef012345"}
    assert {one.subject for one in (first, second)} == {AuditTraces(store.root)._vault.tag("adalovelace")}
    assert [one.id for one in AuditTraces(store.root).window(None, None)] == [first.id, second.id]
    cursor = AuditTraces(store.root).rated(0)[1]
    served.rate("adalovelace", names[1], "up", consent=True)
    assert [(one.id, one.consent) for one in traces(store, cursor)] == [(second.id, True)]


def test_no_word_lies_there_in_clear_and_erasure_takes_it_along(served: Served, store: Store) -> None:
    name = served.ask("adalovelace").headers["x-request-id"]
    served.rate("adalovelace", name, "down", correction="A very secret correction.")
    raw = b"".join(path.read_bytes() for path in book_path(store.root).parent.iterdir())
    assert b"secret" not in raw
    assert b"adalovelace" not in raw
    [before] = traces(store)
    with Log(store.root, AUDIT) as log:
        erase(log, "adalovelace", reason="asked", by="test")
    [trace] = traces(store)
    assert (trace.problem, trace.correction, trace.messages) == ("erased", "", ())
    assert AuditTraces(store.root).destroyed([before.key]) == {before.key}
    assert served.call("GET", "/v1/feedback", "dev").json()["data"][0]["erased"] is True


def test_answers_that_are_old_or_too_many_cannot_be_rated(store: Store) -> None:
    with Book(store.root, AUDIT, FeedbackConfig(most_answers=4)) as book:
        for number in range(6):
            book.note("adalovelace", f"t{number}", (), "m")
            book.flush()
        assert book.prune() == 2
        with pytest.raises(Exception, match="no answer 't0'"):
            book.rate("adalovelace", "t0", Said("up", True))
        assert book.rate("adalovelace", "t5", Said("up", True))[1]
    with Book(store.root, AUDIT, FeedbackConfig(keep_days=1e-9)) as book:
        assert book.prune() == 4
        assert len(book.entries()) == 1


def test_answers_wait_while_the_book_cannot_be_written(small_disk: Path) -> None:
    (small_disk / "w" / "locks").mkdir(parents=True)
    with Book(small_disk / "w", AUDIT, FeedbackConfig()) as book:
        book._ended.set()  # only this test writes
        book.note("adalovelace", "t0", (), "m")
        assert book.flush() == 1
        ballast = fill(small_disk)
        for number in range(2000):
            book.note("adalovelace", f"t{number}", (f"req-{number}",), "m")
        with pytest.raises(EnvironmentProblem, match="cannot be written"):
            book.flush()
        with pytest.raises(EnvironmentProblem, match="cannot be written"):
            book.rate("adalovelace", "req-7", Said("up", True))
        ballast.unlink()
        assert book.flush() == 2000
        assert book.rate("adalovelace", "req-7", Said("up", True))[1]


def test_without_the_audit_there_is_no_such_route(store: Store, tokenizer: Any) -> None:
    with governed(store, GovernConfig(), ServeConfig()) as middleware:
        assert middleware == []
    assert not book_path(store.root).exists()


def test_the_book_survives_a_kill_of_who_wrote_it(store: Store, tmp_path: Path) -> None:
    book = Book(store.root, AUDIT, FeedbackConfig())
    book.note("adalovelace", "t", ("req-1",), "m")
    book.rate("adalovelace", "req-1", Said("down", True, "better"))
    book._db.close()  # nothing is tidied up
    book._ended.set()
    with Book(store.root, AUDIT, FeedbackConfig()) as again:
        [entry] = again.entries()
        assert (entry.correction, entry.subject) == ("better", "adalovelace")
