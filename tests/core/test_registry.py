"""Names are found lazily, built-in and of plugins alike."""

from __future__ import annotations

import pytest

from catena.core.errors import MissingExtra, NotFound, did_you_mean, environment_problem
from catena.core.generate import SCORERS
from catena.core.registry import Registry, require
from catena.flow.table import STAGES


def test_a_plugin_of_another_package_adds_names() -> None:
    assert "example.shout" in STAGES
    assert SCORERS.load("same_length")("abc", "xyz", {}) == 1.0


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(NotFound) as caught:
        STAGES.load("data.dedupe")
    assert caught.value.hint == "Did you mean 'data.dedup'?"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scrapy", None)
    with pytest.raises(MissingExtra, match="scrapy") as caught:
        require("scrapy")
    assert "catena-ai[data]" in caught.value.hint


def test_a_module_that_is_missing_for_another_reason_is_not_hidden() -> None:
    with pytest.raises(ModuleNotFoundError):
        Registry("thing", {"x": "no_such_module_anywhere:f"}).load("x")


def test_suggestions_fall_back_to_what_there_is() -> None:
    assert did_you_mean("zzz", ["a", "b"]) == "Known: a, b."
    assert did_you_mean("zzz", []) == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "No space left on device"), "DiskFull"),
        (RuntimeError("LanceError(IO): No space left on device (os error 28)"), "DiskFull"),
        (PermissionError(13, "Permission denied"), "NotWritable"),
        (OSError(98, "Address already in use"), "PortInUse"),
    ],
)
def test_refusals_of_the_system_are_translated(error: Exception, code: str) -> None:
    problem = environment_problem(error, "x")
    assert problem is not None
    assert type(problem).__name__ == code
    assert problem.hint


def test_other_errors_are_left_alone() -> None:
    assert environment_problem(ValueError("what")) is None
