"""`catena audit`: acts of the command line are in it, and it is searched, exported, erased and checked."""

from __future__ import annotations

import json
from pathlib import Path

from catena.govern.audit.log import Log
from catena.govern.config import AuditConfig

from .conftest import Catena


def test_acts_of_the_command_line_are_written_down(catena: Catena, here: Path) -> None:
    catena("init")
    assert catena("audit", "verify").err == "there is no audit here yet\n"
    made = catena("keys", "create", "lovelace", "--json").json
    catena("keys", "revoke", made["id"])
    with Log(here / ".catena", AuditConfig()) as log:
        log.act({"kind": "request", "subject": "lovelace", "body": "my secret"}, "lovelace")
    found = catena("audit", "search", "--json").json
    assert [entry.get("act", entry["kind"]) for entry in found] == ["keys.create", "keys.revoke", "request"]
    assert made["key"] not in json.dumps(found)
    assert catena("audit", "export", "found.jsonl", "--subject", "lovelace", "--json").json["entries"] == 1
    assert json.loads((here / "found.jsonl").read_text())["body"] == "my secret"
    assert catena("audit", "erase", "lovelace", "--reason", "asked").out.startswith("erased: 1 data key")
    assert catena("audit", "search", "--text", "my secret").err == "nothing is found\n"
    checked = catena("audit", "verify", "--deep", "--json")
    assert (checked.code, checked.json["sound"], checked.json["unreadable"]) == (0, True, 1)
    assert "lovelace" not in catena("audit", "search", "--kind", "act", "--since", "1h").out
    assert catena("audit", "prune").err == "nothing is older than 180 days\n"


def test_what_was_changed_ends_with_six(catena: Catena, here: Path) -> None:
    catena("init")
    catena("keys", "create", "lovelace")
    [path] = (here / ".catena" / "audit" / "segments").iterdir()
    raw = bytearray(path.read_bytes())
    raw[60] ^= 1
    path.write_bytes(raw)
    checked = catena("audit", "verify")
    assert checked.code == 6
    assert "record 1" in checked.out
    assert catena("audit", "search", "--since", "yesterday").code == 2
    assert catena("audit", "erase", "nobody").code == 3
