"""The notebooks run from their first cell to their last, in a folder of their own; none carries outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NAMES = {"pretraining", "lora", "evaluation", "serving"}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def test_there_is_one_for_each_part_of_the_way() -> None:
    assert {path.stem for path in NOTEBOOKS} == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs_and_explains_itself_in_both_languages(path: Path) -> None:
    book = read(path)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
    assert set(book.metadata) == {"kernelspec", "language_info"}
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    sections = [text for text in texts if text.startswith("#")]
    assert len(sections) >= 4
    chinese = [any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in sections]
    assert all(chinese), sections[chinese.index(False)]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """Kernels that are spoken to over sockets of the file system, with nothing of this user's own settings."""
    with tempfile.TemporaryDirectory(prefix="nb-") as folder:  # a short name: such a socket's path is bounded
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            monkeypatch.setenv(name, folder)
        monkeypatch.delenv("CATENA_WORKSPACE", raising=False)
        # A whole path: kernel and client stand in different folders.
        yield Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


@pytest.mark.chain
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, kernels: Config) -> None:
    book = read(path)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(
        book, timeout=600, startup_timeout=300, kernel_name="python3", resources=where, config=kernels
    ).execute()
    said = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in said if output.output_type == "error"]
    printed = "".join(output.text for output in said if output.output_type == "stream" and output.name == "stdout")
    assert printed.strip()
    assert (tmp_path / "workspace" / "workspace.json").exists()
