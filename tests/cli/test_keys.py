"""`catena keys`: a key is shown once, and found again by name, id and prefix."""

from __future__ import annotations

from .conftest import Catena


def test_a_key_from_its_making_to_its_end(catena: Catena) -> None:
    catena("init")
    made = catena("keys", "create", "ada", "--role", "developer", "--for", "Ada", "--expires", "90d", "--json").json
    assert made["key"].startswith(f"ctn_{made['id']}_")
    assert (made["role"], made["subject"], made["state"]) == ("developer", "Ada", "active")
    turned = catena("keys", "rotate", "ada", "--json").json
    listed = {row["id"]: row for row in catena("keys", "list", "--json").json}
    assert [listed[made["id"]]["state"], listed[turned["id"]]["state"]] == ["revoked", "active"]
    assert made["key"] not in catena("keys", "list").out
    assert catena("keys", "revoke", turned["prefix"]).out.startswith(f"revoked {turned['id']}")
    assert {row["state"] for row in catena("keys", "list", "--json").json} == {"revoked"}


def test_a_name_is_revoked_with_the_key_that_has_a_time_of_grace(catena: Catena) -> None:
    catena("init")
    made = catena("keys", "create", "ada", "--json").json
    turned = catena("keys", "rotate", "ada", "--grace", "7d", "--json").json
    assert catena("keys", "revoke", "ada").out == f"revoked {turned['id']} (ada)\nrevoked {made['id']} (ada)\n"
    assert {row["state"] for row in catena("keys", "list", "--json").json} == {"revoked"}
    assert catena("keys", "revoke", "ada", "--json").json["also_revoked"] == []


def test_in_a_pipe_the_key_is_the_whole_output(catena: Catena) -> None:
    catena("init")
    done = catena("keys", "create", "ada")
    assert done.out.count("\n") == 1
    assert "shown only now" in done.err


def test_mistakes_are_told(catena: Catena) -> None:
    catena("init")
    assert "Did you mean 'admin'?" in catena("keys", "create", "a", "--role", "admn").err
    assert "does not have the action 'audit'" in catena("keys", "create", "a", "--action", "audit").err
    assert catena("keys", "create", "a", "--expires", "soon").code == 2
    assert catena("keys", "revoke", "nobody").code == 3
