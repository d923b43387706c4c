"""Releases on a real gateway: a candidate with a fault goes back, a good one goes through, and users notice nothing."""

from __future__ import annotations

import concurrent.futures
import os
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.middleware import Middleware

from catena.core.errors import IntegrityError
from catena.govern.config import ModerationConfig
from catena.govern.moderation.moderator import Moderator
from catena.serve.config import ServeConfig
from catena.serve.middleware.moderation import Moderation
from catena.serve.releases import changes
from catena.serve.releases.changes import ChangeLog
from catena.serve.releases.shadow import similarity
from tests.cli.conftest import Catena, catena as catena, here as here

from .conftest import Running, Start, eventually, fill, mock

QUICK = {"steps": [30, 60], "requests": 40, "step_s": 0, "watch": {"era_s": 0}}


def begun(start: Start, *fault: str, release: Any = None, candidate: Any = None, **config: Any) -> Running:
    """A gateway with a release under way."""
    usual = ("--delay", "0.2") if "--delay" in fault else ()
    stable = mock("--natural", "--digest", "old", *usual)
    new = candidate or mock("--natural", "--digest", "new", "--model", "new", *fault)
    running = start({"m": stable}, candidates={"new": new}, **config)
    body = {"model": "m", "candidate": "new", "release": {**QUICK, **(release or {})}}
    answer = running.client.post(f"{running.url}/admin/releases", json=body)
    assert answer.status_code == 201, answer.text
    eventually(lambda: status(running).get("phase") != "starting")
    return running


def status(running: Running) -> dict[str, Any]:
    return dict(running.get("/admin/releases/m").json())


def acts(running: Running) -> list[str]:
    return [entry["act"] for entry in running.get("/admin/releases").json()["changes"]]


def load(running: Running, count: int, prefix: str = "u") -> list[int]:
    """Ask as many users."""
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(running.chat, f"question {at}", user=f"{prefix}{at}") for at in range(count)]
        return [one.result().status_code for one in asked]


@pytest.mark.parametrize(
    ("fault", "signal"),
    [
        (["--error-rate", "0.6"], "errors"),
        (["--empty"], "empty"),
        (["--gibberish"], "odd"),
        (["--delay", "0.6"], "first_token"),
    ],
)
def test_a_candidate_with_a_fault_goes_back_by_itself(start: Start, fault: list[str], signal: str) -> None:
    running = begun(start, *fault)
    statuses = load(running, 300)
    assert set(statuses) == {200}, "where the candidate fails, the stable model answers"
    assert acts(running) == ["start", "rollback"]
    change = running.get("/admin/releases").json()["changes"][-1]
    assert change["reason"].startswith(signal)
    assert change["by"] == "catena"
    assert 0 < change["users"] < 150
    assert running.get("/admin/releases/m").status_code == 404
    eventually(lambda: load(running, 3) == [200] * 3)
    assert running.chat("hi").json()["model"] == "mock"


def test_a_candidate_that_says_what_moderation_blocks_goes_back(start: Start, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("poisonous\n")
    moderator = Moderator(ModerationConfig(on=True, words=(str(words),), personal=False), None)
    said = ("--say", "a few plain words with a poisonous one among them")
    with moderator:
        middleware = [Middleware(Moderation, moderator=moderator, config=ServeConfig())]
        running = begun(start, *said, middleware=middleware)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(running.chat, "hi", user=f"u{at}", stream=at % 2 == 0) for at in range(150)]
            answers = [one.result() for one in asked]
        assert {answer.status_code for answer in answers} == {200}
        assert not any("poisonous" in answer.text for answer in answers)
        assert acts(running) == ["start", "rollback"]
        assert running.get("/admin/releases").json()["changes"][-1]["reason"].startswith("flagged")


@pytest.mark.parametrize("mode", ["streams", "shadow"])
def test_one_toxic_word_among_usual_ones_is_moderations_find(start: Start, tmp_path: Path, mode: str) -> None:
    words = tmp_path / "words.txt"
    words.write_text("poisonous\n")
    moderator = Moderator(ModerationConfig(on=True, words=(str(words),), personal=False), None)
    with moderator:
        middleware = [Middleware(Moderation, moderator=moderator, config=ServeConfig())]
        release = {"mode": "shadow"} if mode == "shadow" else {}
        running = begun(start, "--mixed", "poisonous", middleware=middleware, release=release)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(running.chat, "hi", user=f"u{at}", stream=mode == "streams") for at in range(120)]
            assert not any("poisonous" in one.result().text for one in asked)
        eventually(lambda: acts(running) == ["start", "rollback"])
        reason = running.get("/admin/releases").json()["changes"][-1]["reason"]
        assert reason.startswith("flagged")


def test_a_good_candidate_goes_through_step_by_step_and_stays_after_a_restart(start: Start) -> None:
    running = begun(start, bake_s=0.5)
    assert set(load(running, 400)) == {200}
    eventually(lambda: acts(running) == ["start", "step", "promote", "done"])
    assert running.chat("hi").json()["model"] == "new"
    # The same state folder: what was promoted is what is served.
    again = start({"m": mock("--natural", "--digest", "old")}, candidates={"new": mock("--natural", "--model", "new")})
    assert again.chat("hi").json()["model"] == "new"
    other = start({"m": mock("--natural", "--model", "third")})
    assert other.chat("hi").json()["model"] == "third", "another deploy file is another decision"


def test_what_goes_wrong_after_it_went_through_goes_back_too(start: Start) -> None:
    running = begun(start)
    running.client.post(f"{running.url}/admin/releases/m", json={"act": "promote", "reason": "because"})
    assert running.chat("hi").json()["model"] == "new"
    pool = running.gateway.pools["m"]
    for slot in pool.slots.values():
        assert slot.backend is not None
        slot.backend.url = "http://127.0.0.1:9"  # nobody is there any more
    load(running, 30)
    eventually(lambda: len(acts(running)) == 3)
    assert acts(running) == ["start", "promote", "rollback"]
    assert running.chat("hi").json()["model"] == "mock"


def test_what_one_user_asks_wrongly_takes_no_promotion_back_and_what_several_meet_does(start: Start) -> None:
    running = begun(start, release={"watch": {}}, breaker={"least": 1000})
    running.client.post(f"{running.url}/admin/releases/m", json={"act": "promote", "reason": "because"})
    load(running, 10)
    for prompt in ("status 400", "status 500"):
        told = {running.chat(f"{prompt} {at}", user="eve").status_code for at in range(8)}
        assert told == {400 if "400" in prompt else 502}
    assert status(running)["phase"] == "baking"
    for at in range(12):
        assert running.chat("status 400", user=f"w{at}").status_code == 400
    assert status(running)["phase"] == "baking"
    for at in range(8):
        running.chat("status 500", user=f"v{at}")
    eventually(lambda: acts(running) == ["start", "promote", "rollback"])
    assert running.get("/admin/releases").json()["changes"][-1]["reason"].startswith("errors")


def test_a_response_that_was_only_taken_in_is_no_empty_answer(start: Start) -> None:
    running = begun(start)
    asked = {"model": "m", "input": "hi", "background": True}
    taken = running.client.post(f"{running.url}/v1/responses", json=asked).json()
    eventually(lambda: running.get(f"/v1/responses/{taken['id']}").json()["status"] == "completed")
    eventually(lambda: sum(status(running)["answers"].values()))
    told = status(running)["signals"]["empty"]
    assert [sum(told[arm][of] for arm in ("stable", "candidate")) for of in ("yes", "of")] == [0, 1]


def test_users_keep_their_model(start: Start) -> None:
    running = begun(start, release={"requests": 10_000})
    seen = [{user: running.chat("hi", user=f"u{user}").json()["model"] for user in range(30)} for _ in range(2)]
    assert seen[0] == seen[1]
    assert {"mock", "new"} == set(seen[0].values())


def test_shadow_answers_nobody_and_compares(start: Start) -> None:
    running = begun(start, "--say", "quite another answer", release={"mode": "shadow"})
    answers = [running.chat("hi", user=f"u{at}").json()["model"] for at in range(20)]
    assert set(answers) == {"mock"}
    told = eventually(lambda: (now := status(running)["shadow"])["compared"] >= 10 and now)
    assert told["equal"] == 0
    assert told["mean_similarity"] < 0.5
    assert running.client.post(f"{running.url}/admin/releases/m", json={"act": "rollback"}).status_code == 200


def test_a_shadow_that_hangs_holds_up_nobody(start: Start) -> None:
    hangs = mock("--delay", "30", prewarm=False)
    running = begun(start, release={"mode": "shadow"}, candidate=hangs)
    assert set(load(running, 120)) == {200}
    assert status(running)["shadow"]["dropped"] > 0
    running.client.post(f"{running.url}/admin/releases/m", json={"act": "rollback"})


@pytest.mark.parametrize(("how", "says"), [("--dead", "this one does not start"), ("--done", "ended with code 0")])
def test_a_candidate_that_does_not_start_goes_back(start: Start, how: str, says: str) -> None:
    running = start({"m": mock()}, candidates={"new": mock(f"{how}-on-start")})
    running.client.post(f"{running.url}/admin/releases", json={"model": "m", "candidate": "new"})
    eventually(lambda: acts(running) == ["start", "rollback"])
    assert says in running.get("/admin/releases").json()["changes"][-1]["reason"]


def test_a_candidate_whose_replicas_others_end_does_not_go_back_for_it(start: Start) -> None:
    running = begun(start, release={"requests": 10_000})
    pool = running.gateway.releases.active["m"].pool
    for number in range(4):
        (slot,) = pool.slots.values()
        eventually(lambda slot=slot: slot.phase == "ready")
        assert slot.child is not None
        os.kill(slot.child.pid, signal.SIGKILL)
        eventually(lambda number=number: pool.deaths == number + 1)
    eventually(pool.ready)
    assert (pool.crashes, acts(running)) == (0, ["start"])


def test_a_release_goes_on_after_a_restart(start: Start) -> None:
    begun(start).stop()
    candidates = {"new": mock("--natural", "--digest", "new", "--model", "new")}
    again = start({"m": mock("--natural", "--digest", "old")}, candidates=candidates)
    assert status(again)["percent"] == 30
    assert acts(again) == ["start", "resume"]


def test_what_cannot_be_done_is_said(start: Start) -> None:
    running = begun(start)
    url = f"{running.url}/admin/releases"
    asked: list[tuple[str, Any, int]] = [
        (url, {"model": "m", "candidate": "new"}, 409),
        (url, {"model": "x", "candidate": "new"}, 404),
        (url, {"model": "m"}, 400),
        (f"{url}/x", {"act": "promote"}, 404),
        (f"{url}/m", {"act": "explode"}, 400),
        (f"{url}/m", {"act": "feedback", "request": "r", "good": True}, 404),
    ]
    for place, body, code in asked:
        assert running.client.post(place, json=body).status_code == code, body
    told = running.client.post(url, json={"model": "m", "candidate": "new"}).json()["error"]["message"]
    assert "started by local at" in told, "the second of two who start is told who was first"
    listed = running.get("/admin/releases").json()
    assert (listed["models"], listed["candidates"]) == ({"m": ""}, ["new"])
    assert running.client.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    liked = running.chat("hi").headers["x-request-id"]
    assert running.client.post(f"{url}/m", json={"act": "feedback", "request": liked, "good": True}).status_code == 200
    assert sum(status(running)["signals"]["liked"][arm]["of"] for arm in ("stable", "candidate")) == 1


def test_the_second_of_two_is_told_what_the_first_did(start: Start) -> None:
    running = begun(start)
    url, first = f"{running.url}/admin/releases/m", status(running)["release"]

    def act(what: str, release: str = "") -> tuple[int, str]:
        answer = running.client.post(url, json={"act": what, "reason": "ada asked", "release": release})
        return answer.status_code, answer.json().get("error", {}).get("message", "")

    assert act("promote", first) == (200, "")
    code, told = act("promote", first)
    assert code == 409
    assert "already" in told
    assert "promoted by local at" in told
    assert "(ada asked)" in told
    assert act("rollback", first) == (200, "")
    code, told = act("rollback", first)
    assert code == 404
    assert "rolled back by local" in told
    running.client.post(f"{running.url}/admin/releases", json={"model": "m", "candidate": "new", "release": QUICK})
    second = status(running)["release"]
    code, told = act("rollback", first)
    assert code == 409
    assert first in told
    assert second in told
    assert status(running)["release"] == second, "the other release is not touched"
    assert acts(running) == ["start", "promote", "rollback", "start"]


def test_the_command_line(start: Start, catena: Catena) -> None:
    running = start({"m": mock()}, candidates={"new": mock("--model", "new")})
    place = ("--gateway", running.url)
    told = catena("release", "start", "m", "new", "--set", "steps=[10, 50]", *place, "--json").json
    assert (told["mode"], told["percent"]) == ("canary", 10)
    eventually(lambda: status(running)["phase"] == "under way")
    assert "under way" in catena("release", "status", *place).out
    assert catena("release", "promote", "m", "--reason", "good", *place).code == 0
    assert catena("release", "status", "m", *place, "--json").json["phase"] == "baking"
    assert catena("release", "rollback", "m", *place).code == 0
    assert catena("release", "rollback", "m", *place).code == 3
    assert catena("release", "start", "m", "nothing", *place).code == 3
    assert catena("release", "start", "m", "new", "--mode", "canry", *place).code == 2
    assert catena("release", "status", "--gateway", "http://127.0.0.1:9").code == 8


def test_a_changed_change_log_shows(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path / "c.jsonl")
    for number in range(3):
        log.add("step", "m", "me", number=number)
    assert [entry["number"] for entry in ChangeLog(tmp_path / "c.jsonl").entries()] == [0, 1, 2]
    lines = (tmp_path / "c.jsonl").read_bytes().splitlines(keepends=True)
    changed = orjson.loads(lines[1]) | {"number": 7}
    for bad in ([lines[0], lines[2]], [lines[1], lines[0], lines[2]], [lines[0], orjson.dumps(changed) + b"\n"]):
        (tmp_path / "c.jsonl").write_bytes(b"".join(bad))
        with pytest.raises(IntegrityError):
            log.entries()


@pytest.mark.parametrize("left", [1, 20, -1])
def test_what_a_kill_left_of_a_line_stops_nobody_and_the_chain_goes_on(tmp_path: Path, left: int) -> None:
    path = tmp_path / "c.jsonl"
    ChangeLog(path).add("start", "m", "me")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:left])
    log = ChangeLog(path)
    assert [entry["act"] for entry in log.entries()] == ["start"]
    log.add("rollback", "m", "me")
    assert [entry["act"] for entry in ChangeLog(path).entries()] == ["start", "rollback"]
    assert path.read_bytes().startswith(whole)


def test_a_full_disk_under_the_change_log_takes_no_act_along(small_disk: Path) -> None:
    log = ChangeLog(small_disk / "c.jsonl")
    log.add("start", "m", "me")
    ballast = fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        log.add("step", "m", "me", evidence="x" * (1 << 16))
    ballast.unlink()
    log.add("rollback", "m", "me")
    assert [entry["act"] for entry in ChangeLog(small_disk / "c.jsonl").entries()] == ["start", "rollback"]


def test_a_rollback_on_a_full_disk_is_written_when_there_is_room(
    start: Start, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "AGAIN_S", 0.1)
    (small_disk / "state").mkdir()
    (tmp_path / "state").symlink_to(small_disk / "state")
    running = begun(start, jobs={"on": False})
    act = f"{running.url}/admin/releases/m"
    assert running.client.post(act, json={"act": "promote", "reason": "because"}).status_code == 200
    ballast = fill(small_disk)
    assert running.client.post(act, json={"act": "rollback", "reason": "it is bad"}).status_code == 200
    assert running.chat("hi").json()["model"] == "mock"
    assert "rollback" not in acts(running)
    ballast.unlink()
    eventually(lambda: acts(running) == ["start", "promote", "rollback"])
    running.stop()
    again = begun(start, jobs={"on": False})
    assert acts(again) == ["start", "promote", "rollback", "start"], "no resume of what had gone back"


@pytest.mark.parametrize("act", ["promote", "rollback"])
def test_what_a_restart_needs_is_written_before_the_line_of_an_act(
    start: Start, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    running = begun(start)
    url = f"{running.url}/admin/releases/m"
    if act == "rollback":
        running.client.post(url, json={"act": "promote", "reason": "because"})

    def full(log: ChangeLog, *given: Any, **facts: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ChangeLog, "add", full)
    assert running.client.post(url, json={"act": act, "reason": "because"}).status_code == 200
    running.stop()
    monkeypatch.undo()
    again = start({"m": mock("--natural", "--digest", "old")}, candidates={"new": mock("--model", "new")})
    assert again.chat("hi").json()["model"] == ("new" if act == "promote" else "mock")


def test_similarity() -> None:
    assert similarity("a b c", "a b c") == 1.0
    assert 0 < similarity("a b c d", "a b x d") < 1
    assert similarity("", "something") < 0.1
    assert 0.5 < similarity("你好世界吗", "你好世界") < 1
