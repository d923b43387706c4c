"""`catena data`: the versions of a dataset from the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from catena.cli.main import run
from tests.cli.conftest import Catena


@pytest.fixture
def pages(catena: Catena, here: Path) -> Catena:
    """A workspace with `pages@1`: three rows, and a branch `fix` that changed one of them."""
    assert catena("init").code == 0
    write(here / "pages.jsonl", {"a": "one", "b": "two", "c": "three"})
    assert catena("data", "commit", "pages", "pages.jsonl", "-m", "begin", "--author", "ann").code == 0
    assert catena("data", "branch", "pages", "fix").code == 0
    write(here / "fix.jsonl", {"a": "one", "b": "two", "c": "drei"})
    assert catena("data", "commit", "pages", "fix.jsonl", "--branch", "fix", "-m", "german").code == 0
    return catena


def write(path: Path, rows: dict[str, str]) -> None:
    path.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in rows.items()))


def test_log_shows_commits_and_verifies_them(pages: Catena) -> None:
    shown = pages("data", "log", "pages", "--verify", "--json").json
    assert [(item["message"], item["author"], item["branches"]) for item in shown["commits"]][1] == (
        "begin",
        "ann",
        ["main"],
    )
    assert shown["commits"][0]["changes"] == {"added": 0, "removed": 0, "changed": 1}
    assert shown["problems"] == []
    lines = pages("data", "log", "pages", "--branch", "main").out.splitlines()
    assert len(lines) == 1
    assert "begin" in lines[0]


def test_log_of_a_changed_history_fails(pages: Catena, here: Path) -> None:
    import sqlite3

    with sqlite3.connect(here / ".catena" / "catena.db") as connection:
        connection.execute("UPDATE commits SET body = replace(body, 'ann', 'eve')")
    connection.close()
    result = pages("data", "log", "pages", "--verify")
    assert result.code == 6
    assert "does not hold" in result.err


def test_diff_counts_and_shows_fields(pages: Catena) -> None:
    shown = pages("data", "diff", "pages", "pages@fix", "--json").json
    assert {name: shown[name] for name in ("added", "removed", "changed", "unchanged")} == {
        "added": 0,
        "removed": 0,
        "changed": 1,
        "unchanged": 2,
    }
    assert shown["rows"][0]["fields"] == [{"field": "text", "before": "three", "after": "drei"}]
    assert pages("data", "diff", "pages", "pages@fix").out.splitlines() == [
        "0 added, 0 removed, 1 changed, 2 unchanged",
        "changed\tc\ttext\tthree\tdrei",
    ]
    assert pages("data", "diff", "pages", "pages@nothing").code == 3


def test_branches_are_listed_and_taken_away(pages: Catena) -> None:
    assert set(pages("data", "branch", "pages", "--json").json["branches"]) == {"main", "fix"}
    assert pages("data", "branch", "pages", "fix", "--delete").code == 0
    assert set(pages("data", "branch", "pages", "--json").json["branches"]) == {"main"}
    assert pages("data", "branch", "pages", "main", "--delete").code == 2


def test_a_tag_stands_for_a_branch_as_it_is_now(pages: Catena) -> None:
    assert pages("data", "tag", "pages@fix", "reviewed").code == 0
    assert pages("show", "pages@reviewed", "--samples", "3", "--json").json["samples"][2]["data"]["text"] == "drei"


@pytest.mark.parametrize("form", ["jsonl", "parquet", "lance"])
def test_a_checkout_can_be_committed_again(pages: Catena, here: Path, form: str) -> None:
    assert pages("data", "checkout", "pages@fix", "--to", "out", "--format", form, "--quiet").code == 0
    assert (here / "out" / f"samples.{form}").exists()
    assert pages("data", "checkout", "pages@fix", "--to", "out").code == 2
    assert pages("data", "commit", "pages", "out", "--json").json["changes"] == {"added": 0, "removed": 0, "changed": 1}
    assert pages("data", "checkout", "pages", "--to", "other", "--format", "xml").code == 2


def test_a_merge_takes_what_the_branch_changed(pages: Catena) -> None:
    shown = pages("data", "merge", "pages@fix", "--json").json
    assert shown["status"] == "fast-forward"
    assert pages("show", "pages@2", "--json").code == 0


def test_a_conflict_is_listed_and_decided_by_a_file(pages: Catena, here: Path) -> None:
    write(here / "ours.jsonl", {"a": "one", "b": "two", "c": "trois"})
    assert pages("data", "commit", "pages", "ours.jsonl").code == 0
    result = pages("data", "merge", "pages@fix", "--json")
    assert result.code == 4
    assert result.json["error"]["problems"] == [
        {"key": "c", "field": "text", "base": "three", "ours": "trois", "theirs": "drei"}
    ]
    result = pages("data", "merge", "pages@fix")
    assert result.out == "c\ttext\tthree\ttrois\tdrei\n"
    assert pages("data", "merge", "pages@fix", "--ours", "--theirs").code == 2
    (here / "decided.json").write_text('{"c": {"text": "3"}}')
    shown = pages("data", "merge", "pages@fix", "--resolutions", "decided.json", "--json").json
    assert shown["changes"] == {"added": 0, "removed": 0, "changed": 1}
    assert pages("data", "diff", "pages@2", "pages", "--json").json["rows"][0]["after"]["text"] == "3"
    (here / "decided.json").write_text("[]")
    assert pages("data", "merge", "pages@fix", "--resolutions", "decided.json").code == 4
    assert pages("data", "merge", "pages").code == 2


def test_a_row_that_one_side_took_away_is_told_from_one_that_changed(pages: Catena, here: Path) -> None:
    write(here / "ours.jsonl", {"a": "one", "b": "two"})
    assert pages("data", "commit", "pages", "ours.jsonl").code == 0
    result = pages("data", "merge", "pages@fix")
    key, field, base, ours, theirs = result.out.rstrip("\n").split("\t")
    assert (key, field, ours) == ("c", "(row)", "(no row)")
    assert '"text": "three"' in base
    assert '"text": "drei"' in theirs
    assert "1 row is in conflict" in result.err


def test_log_says_of_how_many_commits_the_data_is_gone(pages: Catena) -> None:
    assert "2 commits hold\n" in pages("data", "log", "pages", "--verify").err
    assert pages("data", "merge", "pages@fix").code == 0
    assert pages("data", "branch", "pages", "fix", "--delete").code == 0
    assert pages("gc", "--unused").code == 0
    assert "of 1 the data was freed by `catena gc --unused`" in pages("data", "log", "pages", "--verify").err


def test_an_erasure_is_planned_done_and_listed(pages: Catena, here: Path) -> None:
    assert pages("data", "erase", "pages", "--id", "b", "--dry-run", "--json").json["rows"] == ["b"]
    assert pages("data", "erase", "pages", "--id", "b", "--where", "text=two").code == 2
    result = pages("data", "erase", "pages", "--where", "text=two", "--reason", "asked", "--quiet")
    assert result.code == 0
    assert "1 rows (1 asked for)" in result.out
    samples = pages("show", "pages@1", "--samples", "5", "--json").json["samples"]
    assert [sample["id"] for sample in samples] == ["a", "c"]
    [done] = pages("data", "erased", "--json").json
    assert (done["reason"], done["valid"]) == ("asked", True)
    assert pages("data", "log", "pages", "--verify", "--json").json["problems"] == []
    assert pages("data", "erase", "pages", "--id", "b").code == 3


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("log", "diff", "branch", "tag", "checkout", "commit", "merge", "erase", "erased"):
        assert run(["data", word, "--help"]) == 0
        assert f"catena data {word}" in capsys.readouterr().out


def test_the_commands_of_the_documentation_run(catena: Catena, here: Path) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "versions.md").read_text()
    lines = [line.partition("#")[0].strip() for line in text.split("```")[1].strip().splitlines()]
    assert catena("init").code == 0
    write(here / "pages.jsonl", {"a": "one", "b": "two", "3f2a...": "three"})
    assert catena("data", "commit", "pages", "pages.jsonl").code == 0
    for line in lines:
        if " commit " in line:
            write(here / "work" / "samples.jsonl", {"a": "one", "b": "zwei", "3f2a...": "three"})
        result = catena(*shlex.split(line)[1:])
        assert result.code == 0, f"{line}: {result.err}"
    assert [row["id"] for row in catena("show", "pages", "--samples", "9", "--json").json["samples"]] == ["a", "b"]
