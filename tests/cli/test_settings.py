"""Settings: where they come from, which of them wins, and mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.core.errors import ConfigError
from catena.hub.store import init_store
from catena.settings import load_settings
from tests.cli.conftest import Catena


def test_later_places_win(here: Path) -> None:
    assert load_settings(environment={}).serve.port == 8000
    (here / "catena.yaml").write_text("serve: {port: 1, host: h}\n")
    assert load_settings(environment={}).serve.port == 1
    settings = load_settings(environment={"CATENA_SERVE_PORT": "2"})
    assert (settings.serve.port, settings.serve.host) == (2, "h")
    assert load_settings(environment={"CATENA_SERVE_PORT": "2"}, assignments=["serve.port=3"]).serve.port == 3


def test_workspace_is_the_one_asked_for_then_the_environment_then_the_nearest(here: Path) -> None:
    for name in ("asked", "environment"):
        init_store(here / name).close()
    init_store(here / ".catena").close()
    init_store(here / "project" / ".catena").close()
    environment = {"CATENA_WORKSPACE": str(here / "environment")}
    assert load_settings(workspace=here / "asked", environment=environment).workspace == here / "asked"
    assert load_settings(environment=environment).workspace == here / "environment"
    (here / "deep").mkdir()
    assert load_settings(environment={}, start=here / "deep").workspace == here / ".catena"
    assert load_settings(workspace=here / "project", environment={}).workspace == here / "project" / ".catena"


def test_file_beside_the_workspace_holds_in_folders_below(here: Path) -> None:
    init_store(here / ".catena").close()
    (here / "catena.yaml").write_text("serve: {port: 5}\n")
    (here / "deep").mkdir()
    assert load_settings(environment={}, start=here / "deep").serve.port == 5


def test_file_may_say_where_the_workspace_is(here: Path) -> None:
    (here / "catena.yaml").write_text("workspace: data/w\n")
    assert load_settings(environment={}).workspace == here / "data" / "w"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("serv: {port: 1}", "Did you mean 'serve'?"),
        ("serve: {prt: 1}", "Did you mean 'port'?"),
        ("serve: {port: 70000}", "less than or equal to 65535"),
        ("serve: {port: many}", "serve.port"),
        ("- a list", "settings are a mapping"),
        ("serve: [", "not valid YAML"),
    ],
)
def test_mistakes_name_the_file_and_what_was_meant(here: Path, text: str, said: str) -> None:
    (here / "catena.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_settings(environment={})
    assert "catena.yaml" in str(error.value)
    assert said in str(error.value)


def test_commands_find_the_workspace_from_anywhere(
    catena: Catena, recipe: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catena("run", str(recipe), "-w", str(here / "w"), "-q").code == 0
    assert catena("list").code == 3
    assert len(catena("list", "--json", "--workspace", str(here / "w")).json) == 2
    monkeypatch.setenv("CATENA_WORKSPACE", str(here / "w"))
    monkeypatch.chdir(tmp_path)
    assert len(catena("list", "--json").json) == 2
