"""Keys and access: hashed, scoped, expiring, rotated, revoked; and what holds while the index is away."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from catena.core.errors import EnvironmentProblem, NotFound, UsageError
from catena.govern import access as access_module, keys as module
from catena.govern.access import SNAPSHOT, Access, Denied
from catena.govern.config import AuthConfig
from catena.govern.crypto import open_signer
from catena.govern.keys import Keys
from catena.govern.roles import ACTIONS, GRANTED, ROLES, Principal, checked_actions
from catena.hub.schema import api_keys
from catena.hub.store import Store

from .conftest import Switch

Open = Callable[..., Access]


def identify(access: Access, credential: str) -> Principal:
    return asyncio.run(access.identify(credential))


def refusal(access: Access, credential: str) -> Denied:
    with pytest.raises(Denied) as caught:
        identify(access, credential)
    return caught.value


def test_the_secret_is_nowhere_in_the_workspace(store: Store, keys: Keys, access_of: Open) -> None:
    key, record = keys.create("ada", "user")
    access_of()
    store.index.engine.dispose()
    secret = key.split("_", 2)[2].encode()
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_bytes()]
    assert record.id in key


def test_what_is_shown_of_a_key_holds_no_hash(keys: Keys) -> None:
    record = keys.create("ada", "user")[1]
    shown = record.shown(datetime.now(UTC))
    assert not {"salt", "hash"} & shown.keys()
    assert (shown["prefix"], shown["state"]) == (f"ctn_{record.id}", "active")


def test_a_key_opens_as_whom_it_was_made_for(keys: Keys, access_of: Open) -> None:
    key, record = keys.create("ada's laptop", "developer", subject="ada", models=("helper*",))
    assert identify(access_of(), key) == Principal("ada", "developer", record.id, ("helper*",))


def test_scrypt_is_asked_once_for_each_key(keys: Keys, access_of: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keys.create("ada", "user")[0]
    asked = []
    hashed = module.hashed
    monkeypatch.setattr(module, "hashed", lambda *given: asked.append(given) or hashed(*given))
    access = access_of()
    for _ in range(5):
        identify(access, key)
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    for _ in range(5):
        assert refusal(access, wrong).code == "invalid_api_key"
    assert len(asked) == 2


def test_many_who_come_with_a_new_key_at_once_wait_for_one_check(
    keys: Keys, access_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.create("ada", "user")[0]
    asked: list[str] = []
    opens = module.opens
    monkeypatch.setattr(module, "opens", lambda record, secret: (asked.append(secret), opens(record, secret))[1])
    access = access_of()

    async def all_at_once() -> list[Principal]:
        return await asyncio.gather(*(access.identify(key) for _ in range(500)))

    assert {one.subject for one in asyncio.run(all_at_once())} == {"ada"}
    assert len(asked) == 1


def test_a_provider_that_hangs_keeps_no_key_from_being_checked(store: Store, keys: Keys) -> None:
    key, asked, answers = keys.create("ada", "user")[0], threading.Event(), threading.Event()

    def hangs(token: str) -> Principal:
        asked.set()
        answers.wait(30)
        return Principal("bob", "user", "jwt")

    access = Access(keys.all, store.root, open_signer(store.root), AuthConfig(), hangs).open()

    async def both() -> tuple[str, str]:
        token = asyncio.create_task(access.identify("a.b.c"))
        await asyncio.to_thread(asked.wait, 30)
        try:
            first = await asyncio.wait_for(access.identify(key), 10)
        finally:
            answers.set()
        return first.subject, (await token).subject

    assert asyncio.run(both()) == ("ada", "bob")
    access.close()


def test_secrets_are_compared_in_constant_time(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    record = keys.create("ada", "user")[1]
    compared = []
    monkeypatch.setattr(module.hmac, "compare_digest", lambda one, other: compared.append((one, other)) or False)
    assert not module.opens(record, "x" * 43)
    [(one, other)] = compared
    assert len(one) == len(other) == 64


@pytest.mark.parametrize(
    "credential",
    ["ctn_", "ctn_0123456789ab_short", "ctn_0123456789ab_" + "a" * 43, "sk-other", "é" * 60, "a.b.c", "x" * 100_000],
)
def test_what_is_no_key_opens_nothing(keys: Keys, access_of: Open, credential: str) -> None:
    keys.create("ada", "user")
    assert refusal(access_of(), credential).code == "invalid_api_key"


def test_no_credential_is_told_how_to_send_one(access_of: Open) -> None:
    error = refusal(access_of(), "")
    assert error.code == "missing_api_key"
    assert "Authorization: Bearer" in error.message


def test_a_key_expires_also_where_it_is_known(keys: Keys, access_of: Open) -> None:
    key = keys.create("ada", "user", lifetime=timedelta(milliseconds=300))[0]
    access = access_of()
    asyncio.run(asyncio.sleep(0.35))
    for _ in range(2):
        assert refusal(access, key).code == "expired_api_key"


def test_a_revoked_key_is_refused_from_the_next_look_on(keys: Keys, access_of: Open) -> None:
    key, record = keys.create("ada", "user")
    access = access_of()
    identify(access, key)
    keys.revoke(f"ctn_{record.id}")
    access.refresh()
    assert refusal(access, key).code == "revoked_api_key"
    [again] = keys.revoke("ada")
    assert again.revoked == keys.find("ada").revoked  # a second time changes nothing


def test_the_watcher_looks_by_itself(keys: Keys, access_of: Open) -> None:
    key = keys.create("ada", "user")[0]
    access = access_of(refresh_s=0.05)
    identify(access, key)
    keys.revoke("ada")

    async def refused() -> str:
        for _ in range(400):
            try:
                await access.identify(key)
            except Denied as error:
                return error.code
            await asyncio.sleep(0.05)
        return "still open"

    assert asyncio.run(refused()) == "revoked_api_key"


def test_a_key_that_was_made_just_now_opens_at_once(keys: Keys, access_of: Open) -> None:
    access = access_of()
    key, record = keys.create("ada", "user")

    async def many() -> list[Principal]:
        return await asyncio.gather(*(access.identify(key) for _ in range(50)))

    assert {one.key for one in asyncio.run(many())} == {record.id}
    assert refusal(access, f"{key[:-2]}AA").http_status == 401


def test_keys_that_nobody_made_do_not_ask_the_index_again_and_again(
    keys: Keys, access_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "LOOK_S", 3600.0)
    access, asked = access_of(), []
    refresh = access.refresh
    monkeypatch.setattr(access, "refresh", lambda: asked.append(1) or refresh())
    strange, _ = keys.create("ada", "user")
    forged = [f"ctn_{number:012x}_{strange[-43:]}" for number in range(20)]
    assert all(module.split(key) for key in forged)
    assert {refusal(access, key).http_status for key in forged} == {401}
    assert asked == [1]
    later, record = keys.create("bob", "user")
    assert refusal(access, later).http_status == 401
    assert access.refresh()
    assert identify(access, later).key == record.id


def test_nobody_waits_for_an_index_that_hangs(keys: Keys, access_of: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "LOOK_WAIT_S", 0.05)
    access, goes_on = access_of(), threading.Event()
    key, record = keys.create("ada", "user")
    refresh = access.refresh
    monkeypatch.setattr(access, "refresh", lambda: goes_on.wait(30) and refresh())

    async def asks() -> str:
        with pytest.raises(Denied):
            await access.identify(key)
        goes_on.set()
        while access._looking is not None:
            await asyncio.sleep(0.01)
        return (await access.identify(key)).key

    assert asyncio.run(asks()) == record.id


def test_rotation_gives_a_new_key_and_the_old_one_a_time_of_grace(keys: Keys, access_of: Open) -> None:
    old, first = keys.create("ada", "developer", subject="a", models=("m",), lifetime=timedelta(days=9))
    new, second = keys.rotate("ada", grace=timedelta(hours=1))
    access = access_of()
    assert identify(access, old).subject == identify(access, new).subject == "a"
    assert (second.role, second.models) == (first.role, first.models)
    assert second.expires is not None
    assert second.expires - second.created == timedelta(days=9)
    assert keys.find(first.id).successor == second.id
    with pytest.raises(UsageError, match="was rotated already"):
        keys.rotate(first.id)


def test_without_grace_the_old_key_ends_at_once(keys: Keys, access_of: Open) -> None:
    old = keys.create("ada", "user")[0]
    new = keys.rotate("ada")[0]
    access = access_of()
    assert refusal(access, old).code == "revoked_api_key"
    assert identify(access, new).role == "user"


def test_a_name_is_revoked_with_the_keys_that_have_a_time_of_grace(keys: Keys, access_of: Open) -> None:
    opened, ids = [keys.create("ada", "user")], []
    opened += [keys.rotate("ada", grace=timedelta(days=7)) for _ in range(2)]
    other = keys.create("bob", "user")[0]
    access = access_of()
    for key, record in opened:
        ids.append(record.id)
        assert identify(access, key).key == record.id
    ended = keys.revoke("ada")
    assert [one.id for one in ended] == [ids[2], ids[0], ids[1]]
    access.refresh()
    assert [refusal(access, key).code for key, _ in opened] == ["revoked_api_key"] * 3
    assert identify(access, other).subject == "bob"
    assert keys.revoke("ada") == ended[:1]


def test_an_id_is_revoked_alone_and_the_name_then_takes_the_rest(keys: Keys, access_of: Open) -> None:
    old = keys.create("ada", "user")[0]
    new, record = keys.rotate("ada", grace=timedelta(days=7))
    access = access_of()
    assert [one.id for one in keys.revoke(record.id)] == [record.id]
    access.refresh()
    assert refusal(access, new).code == "revoked_api_key"
    assert identify(access, old).subject == "ada"
    keys.revoke("ada")
    access.refresh()
    assert refusal(access, old).code == "revoked_api_key"


def test_keys_are_found_by_name_id_and_prefix(keys: Keys) -> None:
    record = keys.create("ada", "user")[1]
    keys.create("bob", "user")
    for ref in ("ada", record.id, f"ctn_{record.id}"):
        assert keys.find(ref) == record
    with pytest.raises(NotFound) as caught:
        keys.find("adda")
    assert "ada" in caught.value.hint
    keys.create("bob", "user")
    with pytest.raises(UsageError, match="2 keys are named 'bob'"):
        keys.find("bob")


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00", "x" * 201])
def test_a_name_that_could_forge_a_line_of_the_log_is_refused(keys: Keys, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a key"):
        keys.create(name, "user")


# -- the index is away ---------------------------------------------------------------------------------------------


def test_known_and_new_keys_open_while_the_index_is_away(keys: Keys, switch: Switch, access_of: Open) -> None:
    one, other = keys.create("ada", "user")[0], keys.create("bob", "user")[0]
    access = access_of()
    identify(access, one)
    switch.away = True
    assert not access.refresh()
    assert identify(access, one).subject == "ada"
    assert identify(access, other).subject == "bob"
    assert access.status()["problem"] == "the index is away"


def test_a_restart_without_the_index_goes_on_with_the_signed_copy(keys: Keys, switch: Switch, access_of: Open) -> None:
    key, gone = keys.create("ada", "user")[0], keys.create("bob", "user")[0]
    keys.revoke("bob")
    access_of().close()
    switch.away = True
    again = access_of()
    assert identify(again, key).subject == "ada"
    assert refusal(again, gone).code == "revoked_api_key"


def test_a_forged_copy_opens_nothing(store: Store, keys: Keys, switch: Switch, access_of: Open) -> None:
    keys.create("ada", "user")
    access_of().close()
    path = store.root / "keys" / SNAPSHOT
    copy = json.loads(path.read_text())
    assert '"user"' in copy["body"]
    path.write_text(json.dumps({**copy, "body": copy["body"].replace('"user"', '"admin"')}))
    switch.away = True
    with pytest.raises(EnvironmentProblem, match="not the workspace's own"):
        access_of()


def test_without_index_and_copy_nothing_starts(switch: Switch, access_of: Open) -> None:
    switch.away = True
    with pytest.raises(EnvironmentProblem, match="no copy of the keys"):
        access_of()


def test_too_old_knowledge_opens_nothing(keys: Keys, access_of: Open) -> None:
    key = keys.create("ada", "user")[0]
    access = access_of(stale_after_h=1e-9)
    with pytest.raises(EnvironmentProblem, match="too long"):
        identify(access, key)


def test_a_damaged_table_is_an_error_of_ours(store: Store, keys: Keys) -> None:
    with store.index.engine.begin() as connection:
        api_keys.drop(connection)
    with pytest.raises(EnvironmentProblem):
        keys.all()


# -- roles ---------------------------------------------------------------------------------------------------------


def test_each_role_may_all_that_the_lesser_may() -> None:
    assert GRANTED["user"] < GRANTED["developer"] < GRANTED["admin"] == set(ACTIONS)
    assert set(GRANTED) == set(ROLES)


def test_a_key_never_may_more_than_its_role() -> None:
    assert not Principal("a", "user", actions=("audit", "infer")).may("audit")
    with pytest.raises(UsageError, match="does not have the action 'audit'"):
        checked_actions(["audit"], "user")
    with pytest.raises(UsageError, match="there is no action 'infr'"):
        checked_actions(["infr"], "user")
    assert checked_actions([], "user") is None
    assert Principal("a", "admin", actions=("infer",)).allowed == {"infer", "public"}


@pytest.mark.parametrize(
    ("patterns", "model", "allowed"),
    [
        (("*",), "anything", True),
        (("helper",), "helper", True),
        (("helper",), "helper:french", False),
        (("helper:*",), "helper:french", True),
        (("helper*",), "helper2", True),
        (("a", "b"), "b", True),
        ((), "b", False),
        (("helper",), "HELPER", False),
        (("helper",), "", False),
    ],
)
def test_patterns_of_models(patterns: tuple[str, ...], model: str, allowed: bool) -> None:
    assert Principal("a", "user", models=patterns).may_use(model) is allowed
