"""The index of plugins: what is signed and whole is installed, and nothing else."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catena.cli.main import run

METADATA = "Metadata-Version: 2.1\nName: catena-loud\nVersion: {}\nSummary: Shouts.\nRequires-Dist: catena-ai\n"
POINTS = "[catena.plugins]\nfilter:loud = catena_loud:Loud\n\n[console_scripts]\nloud = catena_loud:main\n"


def wheel(folder: Path, version: str = "0.1.0", code: str = "class Loud: pass\n") -> Path:
    """Build a package by hand: a wheel is an archive with four files."""
    path = folder / f"catena_loud-{version}-py3-none-any.whl"
    info = f"catena_loud-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("catena_loud.py", code)
        archive.writestr(f"{info}/METADATA", METADATA.format(version))
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", POINTS)
        archive.writestr(f"{info}/RECORD", f"catena_loud.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


Said = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def catena(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.chdir(tmp_path)

    def line(*words: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = run([*words, "--json"])
        told = json.loads(capsys.readouterr().out)
        return code, told, told["error"]["message"] if code else ""

    return line


@pytest.fixture
def key(catena: Said, tmp_path: Path) -> str:
    """An index with two versions of a plugin; gives the publisher's public key."""
    for version in ("0.9.0", "0.10.0"):
        code, entry, _ = catena("plugins", "sign", str(wheel(tmp_path, version)), "--index", "index.json", "--key", "k")
        assert code == 0
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    return str(entry["key"])


def test_search_shows_the_newest_and_whether_it_is_trusted(catena: Said, key: str) -> None:
    _, found, _ = catena("plugins", "search", "loud", "--index", "index.json")
    assert [(one["version"], one["adds"], one["state"]) for one in found] == [
        ("0.10.0", ["filter:loud"], "not trusted")
    ]
    assert catena("plugins", "search", "--index", "index.json", "--trust", key)[1][0]["state"] == "trusted"
    assert catena("plugins", "search", "quiet", "--index", "index.json")[1] == []


def test_what_is_signed_by_somebody_trusted_is_installed(catena: Said, key: str, tmp_path: Path) -> None:
    (tmp_path / "catena.yaml").write_text(f"plugins: {{index: index.json, keys: ['{key}']}}\n")
    code, done, _ = catena("plugins", "install", "catena_loud", "--target", "there")
    assert (code, done["version"]) == (0, "0.10.0")
    assert (tmp_path / "there" / "catena_loud.py").exists()
    code, _, message = catena("plugins", "install", "catena-loud==0.1")
    assert (code, "no version" in message) == (3, True)


def test_who_is_not_trusted_installs_nothing(catena: Said, key: str, tmp_path: Path) -> None:
    words = ("plugins", "install", "catena-loud", "--index", "index.json", "--target", "there")
    code, _, message = catena(*words, "--trust", "0" * 64)
    assert (code, "nobody here trusts" in message) == (6, True)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("field", ["version", "sha256", "size", "file", "summary", "key", "signature", "adds"])
def test_an_entry_that_was_changed_installs_nothing(catena: Said, key: str, tmp_path: Path, field: str) -> None:
    index = json.loads((tmp_path / "index.json").read_text())
    other = {"size": 5, "adds": ["filter:other"], "version": "0.11.0", "file": "other.whl"}
    for entry in index["plugins"]:
        entry[field] = other.get(field, "ab" * (64 if field == "signature" else 32))
    (tmp_path / "index.json").write_text(json.dumps(index))
    words = ("plugins", "install", "catena-loud", "--index", "index.json", "--trust", key, "--trust", "ab" * 32)
    code, _, message = catena(*words, "--target", "there")
    assert (code, "signature" in message) == (6, True)
    assert not (tmp_path / "there").exists()


def test_a_file_that_was_changed_installs_nothing(catena: Said, key: str, tmp_path: Path) -> None:
    wheel(tmp_path, "0.10.0", "class Loud: evil = 1\n")
    words = ("plugins", "install", "catena-loud", "--index", "index.json", "--trust", key, "--target", "there")
    code, _, message = catena(*words)
    assert code == 6, message
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    "body", ["", "[]", '{"format": 2, "plugins": []}', '{"format": 1, "plugins": [{"name": ".."}]}']
)
def test_what_is_no_index_is_refused(catena: Said, tmp_path: Path, body: str) -> None:
    (tmp_path / "index.json").write_text(body)
    code, _, message = catena("plugins", "search", "--index", "index.json")
    assert (code, "no index of plugins" in message) == (4, True)
    assert catena("plugins", "search", "--index", "none.json")[0] == 3
    assert catena("plugins", "search")[0] == 2


def test_what_is_installed_is_listed(catena: Said) -> None:
    _, found, _ = catena("plugins", "list")
    assert "filter:no_shouting" in next(one for one in found if one["name"] == "catena-example-plugin")["adds"]
