"""Every command of the READMEs runs, the Python too, on a small chain; their numbers are those that were measured."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import catena as c
from catena.cli.main import run as run_line
from catena.flow.run import RecipeRun
from tests.chain import RECIPE, ROOT, SMALL, Chain

pytestmark = [pytest.mark.chain, pytest.mark.xdist_group("chain")]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(name: str, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall((ROOT / name).read_text()) if found == language]


def commands() -> list[str]:
    found: dict[str, None] = {}
    for name in ("README.md", "README.zh.md"):
        for body in blocks(name, "sh"):
            found.update(dict.fromkeys(line.partition("#")[0].strip() for line in body.splitlines()))
    return [line for line in found if line]


@pytest.mark.parametrize("line", [line for line in commands() if "catena" in line.split()[0]])
def test_a_command_of_the_readme_runs(
    line: str, chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)[1:]
    if words[0] in ("run", "plan"):
        words += [part for assignment in SMALL for part in ("--set", assignment)]
    words += ["--workspace", str(chain.workspace)]
    if words[0] == "chat":
        words += ["What does html.escape do?"]  # else it would wait for a person
    code = run_line(words)
    said = "".join(capsys.readouterr())
    assert code == 0, said
    assert said.strip()


def test_both_readmes_show_the_same_commands() -> None:
    english, chinese = (
        {line.partition("#")[0].strip() for body in blocks(name, "sh") for line in body.splitlines()}
        for name in ("README.md", "README.zh.md")
    )
    assert chinese == english


def test_make_knows_every_target_of_the_readme() -> None:
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert "demo" in targets
    for target in targets:
        planned = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT, check=True).stdout
        assert "catena run recipes/python-helper.yaml" in planned or target != "demo"


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_python_of_the_readme_runs(
    name: str, chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = c.Workspace.run

    def small(self: c.Workspace, recipe: Any, **options: Any) -> RecipeRun:
        return run(self, recipe, overrides=SMALL, **options)

    monkeypatch.setattr(c.Workspace, "run", small)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CATENA_WORKSPACE", str(chain.workspace))
    (body,) = blocks(name, "python")
    exec(body, {})
    assert capsys.readouterr().out.strip()


def test_the_numbers_of_the_readmes_are_those_that_were_measured() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "readme_numbers.py"), "--check"]
    assert subprocess.run(check, capture_output=True, text=True, check=False).stdout == "up to date\n"


def test_what_the_readmes_link_to_is_there() -> None:
    for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "docs/architecture.md"):
        path = ROOT / name
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{name} links to {target}"


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_tree_of_the_readme_is_the_tree(name: str) -> None:
    (tree,) = [body for body in blocks(name, "") if "src/" in body]
    folders = {path.parent.name for path in Path(ROOT / "src" / "catena").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)) == folders


def test_every_value_that_an_example_sets_is_one_that_the_recipe_has(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [(ROOT / name).read_text() for name in ("README.md", "README.zh.md")]
    for command in ("run", "plan"):
        run_line([command, "--help"])
        texts.append(capsys.readouterr().out)
    assignments = re.findall(r"--set ([a-z0-9-]+\.[a-z_.]+=\S+)", "\n".join(texts))
    assert len(assignments) >= 3
    c.load_recipe(RECIPE, overrides=assignments)
