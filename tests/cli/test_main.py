"""The command line as a whole: light help, options on both sides, one boundary for every error."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from catena.cli.main import app, known_error, run, take_common
from catena.core import errors
from tests.cli.conftest import Catena

LEAST = {
    *("init", "doctor", "run", "plan", "tune", "do", "train", "plan-training", "explain", "list", "show", "log"),
    *("lineage", "tag", "chat", "serve", "up", "fsck", "gc"),
}
COMMANDS = [str(command.name) for command in app.registered_commands]


def test_every_command_of_the_list_is_there() -> None:
    assert set(COMMANDS) >= LEAST


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from catena.cli.main import run; run(['--help'])\n"
        "heavy = 'torch transformers sqlalchemy lance pyarrow pydantic rich starlette uvicorn daft scrapy matplotlib'\n"
        "print([name for name in heavy.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_examples_that_begin_with_it(catena: Catena, command: str) -> None:
    result = catena(command, "--help")
    assert result.code == 0
    assert re.search(rf"Examples:\n    catena {command}\b", result.out)


@pytest.mark.parametrize("line", [["--help"], ["data", "--help"]])
def test_every_summary_fits_on_its_line(catena: Catena, line: list[str]) -> None:
    _, commands = catena(*line).out.split("Commands:\n")
    assert [row for row in commands.splitlines() if row.endswith("...")] == []


def test_a_plan_needs_no_workspace_and_makes_none(catena: Catena, recipe: Path, here: Path) -> None:
    rows = catena("plan", str(recipe), "--json").json
    assert [(row["step"], row["status"], row["reason"]) for row in rows] == [
        ("small", "run", "new"),
        ("loud", "run", "after small"),
    ]
    assert not (here / ".catena").exists()


def test_no_arguments_show_the_help(catena: Catena) -> None:
    assert catena().out == catena("--help").out


@pytest.mark.parametrize(
    "line",
    [
        ["--json", "--workspace", "w", "list", "-q"],
        ["list", "--json", "-w", "w", "--quiet"],
        ["--workspace=w", "list", "--quiet", "--json"],
    ],
)
def test_common_options_stand_on_either_side(line: list[str]) -> None:
    common = take_common(line)
    assert (common.rest, common.workspace, common.json, common.quiet) == (["list"], Path("w"), True, True)


def test_words_after_two_dashes_are_left_alone() -> None:
    assert take_common(["chat", "m", "--", "--json"]).rest == ["chat", "m", "--", "--json"]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["lst"], 2, "Did you mean 'list'?"),
        (["list", "--nam", "x"], 2, "no such option: --nam"),
        (["run"], 2, "missing argument"),
        (["list", "--workspace"], 2, "--workspace needs a folder"),
        (["list", "things"], 2, "'things' is not a kind"),
        (["list"], 3, "there is no workspace here"),
        (["gc", "--older-than", "soon"], 3, "there is no workspace here"),
        (["run", "absent.yaml"], 3, "no recipe file"),
        (["explain", "data.crwl"], 3, "there is no stage 'data.crwl'"),
        (["do", "example.numbers", "--use", "x"], 2, "is not of the form input=ref"),
        (["do", "example.numbers", "--set", "rows"], 2, "is not of the form a.b=value"),
        (["show", "x", "--svg", "f.svg"], 2, "--svg draws a funnel"),
        (["log", "--limit", "-1"], 2, "greater than or equal to 0"),
        (["run", "absent.yaml", "--on", "mars"], 2, "'--on': 'mars' is not one of 'local', 'ray'"),
    ],
)
def test_mistakes_end_with_one_sentence_and_their_exit_code(
    catena: Catena, line: list[str], code: int, said: str
) -> None:
    result = catena(*line)
    assert result.code == code
    assert result.err.startswith("error: ")
    assert said in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


@pytest.mark.parametrize("line", [["--json", "lst"], ["list", "--json"], ["run", "absent.yaml", "--json"]])
def test_with_json_an_error_is_an_object_on_standard_output(catena: Catena, line: list[str]) -> None:
    result = catena(*line)
    error = result.json["error"]
    assert set(error) == {"type", "message", "hint", "exit_code"}
    assert result.code == error["exit_code"]
    assert result.err == ""


def test_problems_of_a_recipe_are_listed_with_their_lines(catena: Catena, here: Path) -> None:
    (here / "bad.yaml").write_text("name: bad\nsteps:\n  a: {stage: example.numbrs}\n  b: {stage: example.shout}\n")
    result = catena("run", "bad.yaml")
    assert result.code == 2
    assert "bad.yaml:3" in result.err
    assert "Did you mean 'example.numbers'?" in result.err
    assert "bad.yaml:4" in result.err
    problems = catena("run", "bad.yaml", "--json").json["error"]["problems"]
    assert len(problems) == 2


def test_recipe_with_a_mistake_makes_no_workspace(catena: Catena, here: Path) -> None:
    (here / "bad.yaml").write_text("name: bad\nsteps:\n  a: {stage: example.numbrs}\n")
    assert catena("run", "bad.yaml").code == 2
    assert not (here / ".catena").exists()


def test_version(catena: Catena) -> None:
    assert catena("--version").out.startswith("catena 0.")


def test_characters_that_the_terminal_lacks_are_replaced(filled: Catena, recipe: Path) -> None:
    command = [sys.executable, "-m", "catena", "run", str(recipe), "--set", "loud.mark=+"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"? loud  done" in done.stdout


def test_every_error_class_keeps_its_exit_code() -> None:
    for error in (errors.UsageError("x"), errors.NotFound("x"), errors.GateFailed("x"), errors.RemoteError("x")):
        assert known_error(error) is error
    assert isinstance(known_error(KeyboardInterrupt()), errors.Cancelled)
    assert isinstance(known_error(OSError(28, "No space left on device")), errors.DiskFull)
    assert isinstance(known_error(PermissionError(13, "Permission denied", "x")), errors.NotWritable)
    assert known_error(KeyError("x")) is None


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a mistake\nof ours")

    monkeypatch.setattr("catena.cli.views.list_rows", fail)


def test_unexpected_error_is_one_line_and_a_file(filled: Catena, broken: None) -> None:
    result = filled("list")
    assert result.code == 1
    first, second = result.err.splitlines()
    assert first.startswith("error: something unexpected happened: KeyError")
    found = re.search(r"traceback is in (\S+\.txt)", second)
    assert found
    path = Path(found[1])
    assert "in fail" in path.read_text()
    path.unlink()


def test_debug_shows_the_traceback(filled: Catena, broken: None) -> None:
    result = filled("--debug", "list")
    assert "Traceback" in result.err
    assert "in fail" in result.err


def test_output_that_nobody_reads_is_no_error(filled: Catena) -> None:
    command = [sys.executable, "-m", "catena", "log", "--json", "--limit", "0"]
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True) as child:
        os.close(write)
        _, said = child.communicate()
    assert child.returncode == 141
    assert said == ""


def test_interrupted_run_ends_with_130_and_goes_on_later(filled: Catena, recipe: Path) -> None:
    command = [sys.executable, "-m", "catena", "run", str(recipe), "--set", "loud.seconds=30", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if '"loud"' in line and '"running"' in line:
                child.send_signal(signal.SIGINT)
                break
        rest = child.stdout.read()
    assert child.returncode == 130
    assert '"event": "end"' in rest.splitlines()[-1]
    assert '"cancelled"' in rest.splitlines()[-1]


def test_failing_step_has_its_class_and_its_step_in_the_message(catena: Catena, recipe: Path) -> None:
    result = catena("run", str(recipe), "--set", "loud.fail=true")
    assert result.code == 4
    assert result.err == "error: step 'loud': told to fail\nhint: Set fail to false.\n"


def test_system_exit_passes(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    def leave(*_: object, **__: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr("catena.settings.load_settings", leave)
    with pytest.raises(SystemExit):
        run(["list"])
