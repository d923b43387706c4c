"""The shape of the code, held by a test: sizes, public names, light imports, one name for each stage."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import catena
from catena.core.stage import stage_of
from catena.flow.table import STAGES

ROOT = Path(__file__).parent.parent
# What scripts/grpc_code.py makes is nobody's to read.
SOURCES = sorted(path for path in (ROOT / "src" / "catena").rglob("*.py") if "_pb2" not in path.name)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6


def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((path, node))
    return found


def test_files_stay_readable() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in SOURCES}
    assert not {name: count for name, count in lines.items() if count > MAX_FILE_LINES}, "split by noun"


def test_functions_stay_readable() -> None:
    lengths = {f"{path.name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for path, node in functions()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}


def test_functions_take_few_parameters() -> None:
    # Left out: commands of the command line, whose parameters are its options, and kernels, which have no other place.
    wide = []
    for path, node in functions():
        positional = [item for item in (*node.args.posonlyargs, *node.args.args) if item.arg not in ("self", "cls")]
        kernel = any(ast.unparse(one) == "triton.jit" for one in node.decorator_list)
        if "cli" not in path.parts and not kernel and len(positional) > MAX_PARAMETERS:
            wide.append(f"{path.name}:{node.name}")
    assert not wide


def test_no_file_is_called_utils() -> None:
    assert not [path for path in SOURCES if re.fullmatch(r"(utils?|helpers?|misc|common)\.py", path.name)]


def test_every_module_says_what_it_is() -> None:
    modules = [path for path in SOURCES if "migrations" not in path.parts]
    assert not [str(path) for path in modules if not ast.get_docstring(ast.parse(path.read_text()))]


def test_every_stage_is_what_the_table_says() -> None:
    for name in STAGES:
        stage = stage_of(STAGES.load(name))
        assert stage.name == name
        assert stage.summary, name


def test_every_config_field_has_help() -> None:
    from catena.core.config import describe

    rows = [(name, row) for name in STAGES for row in describe(stage_of(STAGES.load(name)).config)]
    assert not [f"{name}: {row.name}" for name, row in rows if not row.help]


def test_public_names_resolve() -> None:
    for name in catena.__all__:
        assert getattr(catena, name) is not None


HEAVY = ("torch", "transformers", "scrapy", "ray")
LIGHT = ("catena", "catena.cli.main", "catena.workspace", "catena.serve.app", "catena.flow.run")


@pytest.mark.parametrize("module", LIGHT)
def test_heavy_packages_stay_out_of(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_checking_a_recipe_and_asking_for_its_plan_imports_nothing_heavy(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "python-helper.yaml"
    code = (
        f"import sys, catena as c; c.open({str(tmp_path)!r}).plan({str(recipe)!r});"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_no_path_of_a_machine_is_in_the_project() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"(^|[\s\"'=(])/(work|home|root|Users)/", re.MULTILINE)
    files = [ROOT / name for name in listed if name != "tests/test_shape.py"]
    assert not [str(path) for path in files if path.exists() and pattern.search(path.read_text(errors="replace"))]


@pytest.mark.xdist_group("alone")
def test_grouped_tests_carry_their_group(request: pytest.FixtureRequest) -> None:
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@alone"), "pytest-xdist would hand out groups piece by piece"
