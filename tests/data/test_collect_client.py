"""The HTTP client: patient, bounded, and silent about secrets."""

from __future__ import annotations

import gzip
import io
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from catena.core.config import parse
from catena.core.errors import ConfigError
from catena.data.collect.api import next_link
from catena.data.collect.client import (
    AuthConfig,
    Client,
    HttpConfig,
    HttpError,
    TooLarge,
    plain_url,
    retry_after,
    with_params,
)

from .loopback import FAST, Asked, Reply, loopback


def client(auth: dict[str, Any] | None = None, home: str = "", waits: list[float] | None = None, **http: Any) -> Client:
    sleep = (waits if waits is not None else []).append
    return Client(parse(HttpConfig, {**FAST, **http}), parse(AuthConfig, auth or {}), home=home, sleep=sleep)


def test_a_busy_server_is_asked_again_after_the_time_it_names() -> None:
    replies = [Reply(status=503, headers={"Retry-After": "7"}), Reply(status=429), Reply("well")]
    waits: list[float] = []
    with loopback(lambda asked: replies.pop(0)) as server:
        assert client(waits=waits, retries=3, backoff_s=2).get(server.url).body == b"well"
    assert waits == [7.0, 4.0]


def test_a_wait_that_is_too_long_ends_the_run() -> None:
    with (
        loopback(lambda asked: Reply(status=429, headers={"Retry-After": "9999"})) as server,
        pytest.raises(HttpError, match="9999 s"),
    ):
        client().get(server.url)


def test_a_refusal_is_not_asked_again_and_its_hint_says_what_to_do() -> None:
    with loopback(lambda asked: Reply(status=401)) as server:
        with pytest.raises(HttpError) as caught:
            client(retries=5).get(server.url)
        assert (caught.value.status, len(server.asked)) == (401, 1)
        assert "auth" in caught.value.hint


def test_a_body_that_ends_early_is_asked_again() -> None:
    replies = [Reply("x" * 1000, cut=10), Reply("whole")]
    with loopback(lambda asked: replies.pop(0)) as server:
        assert client().get(server.url).body == b"whole"


def test_a_server_that_is_away_is_named_with_a_hint() -> None:
    with loopback(lambda asked: Reply()) as server:
        url = server.url
    with pytest.raises(HttpError, match="connection was refused") as caught:
        client().get(url + "/x", {"secret": "s"})
    assert caught.value.reason == "unreachable"
    assert "secret" not in str(caught.value)


def test_a_body_is_cut_off_at_its_limit_also_when_it_is_packed() -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    with (
        loopback(lambda asked: Reply(bomb, headers={"Content-Encoding": "gzip"})) as server,
        pytest.raises(TooLarge, match="more than 100000 bytes"),
    ):
        client(max_bytes=100_000).get(server.url)


def test_a_silent_server_is_left_after_the_timeout() -> None:
    def slow(asked: Asked) -> Reply:
        time.sleep(0.6)
        return Reply()

    with loopback(slow) as server, pytest.raises(HttpError) as caught:
        client(timeout_s=0.1, retries=0).get(server.url)
    assert caught.value.reason == "timeout"


def test_a_download_begins_anew_at_every_attempt() -> None:
    replies = [Reply("abc" * 100, cut=5), Reply("right")]
    target = io.BytesIO()
    with loopback(lambda asked: replies.pop(0)) as server:
        client().download(server.url, target)
    assert target.getvalue() == b"right"


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        ({"kind": "bearer"}, "authorization", "Bearer s3cret"),
        ({"kind": "basic", "user": "me"}, "authorization", "Basic bWU6czNjcmV0"),
        ({"kind": "header", "name": "X-Key"}, "x-key", "s3cret"),
    ],
)
def test_the_secret_goes_to_its_own_server_and_to_no_other(
    monkeypatch: pytest.MonkeyPatch, auth: dict[str, Any], header: str, value: str
) -> None:
    monkeypatch.setenv("A_TOKEN", "s3cret")
    with loopback(lambda asked: Reply("there")) as other:
        away = {"Location": other.url.replace("127.0.0.1", "localhost") + "/x"}
        with loopback(lambda asked: Reply(status=302, headers=away)) as server:
            asker = client({**auth, "secret_env": "A_TOKEN"}, server.url)
            assert asker.get(server.url).body == b"there"
            assert server.asked[0].headers[header] == value
        assert header not in other.asked[0].headers


def test_a_secret_in_the_query_is_sent_and_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "s3cret")
    with loopback(lambda asked: Reply()) as server:
        asker = client({"kind": "query", "name": "key", "secret_env": "A_TOKEN"}, server.url)
        answer = asker.get(server.url + "/a?b=1")
        assert server.asked[0].query == {"b": "1", "key": "s3cret"}
    assert "s3cret" not in answer.url
    assert asker.without_secret("http://h/a?key=s3cret&b=1") == "http://h/a?b=1"


def test_a_variable_that_is_not_set_is_told_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="A_TOKEN"):
        client({"kind": "bearer", "secret_env": "A_TOKEN"})


def test_redirects_in_a_circle_end() -> None:
    with (
        loopback(lambda asked: Reply(status=302, headers={"Location": asked.path})) as server,
        pytest.raises(HttpError, match="circle"),
    ):
        client().get(server.url)


def test_requests_keep_their_distance() -> None:
    waits: list[float] = []
    with loopback(lambda asked: Reply()) as server:
        asker = client(waits=waits, requests_per_s=0.1)
        for _ in range(3):
            asker.get(server.url)
    assert [round(wait) for wait in waits] == [10, 20]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("120", 120.0), ("Fri, 02 Jan 2026 00:01:00 GMT", 60.0), ("Thu, 01 Jan 2026 00:00:00 GMT", 0.0), ("soon", None)],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after(value, datetime(2026, 1, 2, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("url", ["ftp://h/x", "http://me:pw@h/", "http://", "file:///etc/passwd"])
def test_addresses_with_passwords_or_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        plain_url(url)


def test_parameters_replace_those_of_the_same_name() -> None:
    assert with_params("http://h/a?x=1&y=2", {"x": "甲"}) == "http://h/a?y=2&x=%E7%94%B2"


def test_the_next_address_of_a_link_header() -> None:
    header = '<https://h/a?page=1>; rel="prev", <https://h/a?x=1,2&page=3>; title="a, b"; rel="last next"'
    assert next_link(header) == "https://h/a?x=1,2&page=3"
    assert next_link('<u>; rel="prev"') == next_link("") == ""
    assert next_link("<u>; rel=next") == "u"
