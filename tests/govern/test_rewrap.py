"""A new sealing key: all that the old one opened is opened by it, whoever writes meanwhile, wherever it is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import ConfigError, IntegrityError
from catena.govern.audit import vault
from catena.govern.audit.forget import erase
from catena.govern.audit.log import Log
from catena.govern.audit.reading import entries
from catena.govern.audit.rewrap import rewrap
from catena.govern.audit.verify import verify
from tests.govern.logs import CONFIG, fill, open_log as open_log, root as root

Open = Callable[..., Log]
Patch = pytest.MonkeyPatch


def test_a_new_sealing_key_opens_all_that_the_old_one_did(root: Path, open_log: Open) -> None:
    with open_log() as log:
        fill(log, 30)
        before, tag = (root / "keys" / "audit.key").read_bytes(), log.vault.tag("lovelace")
        other = open_log()  # a server that goes on while keys are wrapped anew
        done = rewrap(log, root, by="me")
        assert done["keys"] == 2
        other.act({"act": "x"}, "somebody new")
        other.close()
        log.act({"act": "y"}, "another one")
    assert (root / "keys" / "audit.key").read_bytes() != before
    assert not (root / "keys" / "audit.key.new").exists()
    told = list(entries(root, CONFIG))
    assert not any(one["kind"] in ("erased", "damaged") for one in told)
    assert [one["act"] for one in told if one["kind"] == "act"][-3:] == ["audit.rewrap", "x", "y"]
    assert verify(root, CONFIG, deep=True).sound
    with open_log() as log:
        assert log.vault.tag("lovelace") == tag, "who was erased by a tag is found by it"
        erase(log, "somebody new", reason="", by="me")
    (root / "keys" / "audit.key").write_bytes(before)
    with pytest.raises(IntegrityError, match="sealed by another key"):
        list(entries(root, CONFIG))


def test_wrapping_anew_goes_on_where_it_was_killed(root: Path, open_log: Open, monkeypatch: Patch) -> None:
    with open_log() as log:
        for number in range(6):
            log.act({"act": "x"}, f"subject {number}")
    real, left = vault.write_atomically, [5]

    def killed(*given: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*given, **options)

    with open_log() as log, monkeypatch.context() as patch:
        patch.setattr(vault, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            rewrap(log, root, by="me")
    assert len(list(entries(root, CONFIG))) == 6
    with open_log() as log:
        log.act({"act": "x"}, "subject 7")
        assert rewrap(log, root, by="me")["keys"] < 8
    assert verify(root, CONFIG, deep=True).sound
    assert not any(one["kind"] in ("erased", "damaged") for one in entries(root, CONFIG))


def test_a_sealing_key_of_the_environment_is_followed_by_one_of_it(
    root: Path, monkeypatch: Patch, open_log: Open
) -> None:
    monkeypatch.setenv("CATENA_AUDIT_KEY", "ab" * 32)
    with open_log() as log:
        fill(log, 3)
        with pytest.raises(ConfigError, match="CATENA_AUDIT_KEY_NEW"):
            rewrap(log, root, by="me")
        monkeypatch.setenv("CATENA_AUDIT_KEY_NEW", "cd" * 32)
        rewrap(log, root, by="me")
    monkeypatch.delenv("CATENA_AUDIT_KEY_NEW")
    with pytest.raises(IntegrityError, match="sealed by another key"):
        open_log()
    monkeypatch.setenv("CATENA_AUDIT_KEY", "cd" * 32)
    assert not any(one["kind"] in ("erased", "damaged") for one in entries(root, CONFIG))
