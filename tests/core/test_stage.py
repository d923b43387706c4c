"""The signature of a stage is its interface."""

from __future__ import annotations

import pytest

from catena.core import stage as stage_module
from catena.core.config import Config
from catena.core.stage import Context, code_digest, stage, stage_of
from catena.core.types import DatasetVersion, ModelVersion, Report


class NoConfig(Config):
    pass


@stage("test.both", uses=("json",))
def both(ctx: Context, cfg: NoConfig, *, model: ModelVersion | DatasetVersion, extra: Report | None = None) -> Report:
    """Do something.

    More words.
    """
    raise AssertionError


def test_inputs_output_and_summary_are_read_off_the_signature() -> None:
    read = stage_of(both)
    assert read.name == "test.both"
    assert read.config is NoConfig
    assert read.inputs == {"model": (ModelVersion, DatasetVersion), "extra": (Report,)}
    assert read.optional == {"extra"}
    assert read.output == (Report,)
    assert read.summary == "Do something."


def test_a_function_without_the_mark_or_the_form_is_refused() -> None:
    def plain(ctx: Context, cfg: NoConfig) -> Report:
        raise AssertionError

    with pytest.raises(TypeError, match="not marked"):
        stage_of(plain)

    @stage("test.bad")
    def bad(ctx: Context, cfg: NoConfig, *, number: int) -> Report:
        raise AssertionError

    with pytest.raises(TypeError, match="not an artifact"):
        stage_of(bad)


def test_a_digest_of_code_covers_what_a_module_imports_within_functions_too(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "acme_code"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from acme_code import b\n    return b.x\n")
    (package / "b.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = code_digest("acme_code.a")
    (package / "b.py").write_text("x = 2\n")
    code_digest.cache_clear()
    digests = {before, code_digest("acme_code.a")}
    for beside in ("words.txt", "readings.tsv", "kernel.c"):  # word lists, tables and kernels count too
        (package / beside).write_text(beside)
        code_digest.cache_clear()
        stage_module._data_files.cache_clear()
        digests.add(code_digest("acme_code.a"))
    assert len(digests) == 5


def test_relative_imports_and_versions_of_other_packages_count(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "acme_relative"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "a.py").write_text("from ..b import x\nfrom . import c\nimport yaml\n")
    (package / "b.py").write_text("x = 1\n")
    (package / "inner" / "c.py").write_text("y = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = {code_digest("acme_relative.inner.a")}
    for name, text in (("b.py", "x = 2\n"), ("inner/c.py", "y = 2\n")):
        (package / name).write_text(text)
        code_digest.cache_clear()
        digests.add(code_digest("acme_relative.inner.a"))
    monkeypatch.setattr(stage_module, "_version", lambda package: f"{package}==another")
    code_digest.cache_clear()
    digests.add(code_digest("acme_relative.inner.a"))
    code_digest.cache_clear()
    assert len(digests) == 4
