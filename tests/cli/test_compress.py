"""`catena compress`: smaller versions, measured, side by side in one report; and mistakes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

import catena as c
from catena.core.sample import Sample, sample_id
from catena.core.types import ModelVersion, Report
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer
from tests.cli.conftest import Catena

WORDS = ["one", "two", "three", "四", "五", "六"]
FAST = ["--set", "calibration.tokens=256", "--set", "calibration.length=32"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([" ".join(WORDS)], 300)
    checkpoint.save(build("llama-nano", 512, 3, context=128, end_id=tokenizer.eos_token_id), tokenizer, made)
    return made


@pytest.fixture
def stored(here: Path, folder: Path) -> Path:
    """A workspace with the model `helper` and the documents `corpus`."""
    random = Random(1)
    with c.open(here / ".catena") as ws:
        model = ws.store.put_model(folder, **checkpoint.describe(folder))
        _name(ws.store, model, "helper")
        with ws.store.new_dataset("document") as out:
            for number in range(30):
                split = "test" if number % 3 == 0 else "train"
                text = " ".join(random.choices(WORDS, k=30))
                out.add(Sample(sample_id(number), {"text": text}, source="test:", split=split))
            data = out.commit()
        _name(ws.store, data, "corpus")
    return here


def _name(store: Store, artifact: object, name: str) -> None:
    from catena.core.types import Run

    run = Run(id=name, group="g", step=name, stage="test", recipe="test", key=name, status="done")
    store.index.finish(run, artifact, name, ())  # type: ignore[arg-type]


def test_one_version_is_made_measured_and_named(catena: Catena, stored: Path) -> None:
    line = ["compress", "helper", "--method", "gptq", "--bits", "4", "--group", "16", "--data", "corpus"]
    result = catena(*line, *FAST, "--name", "helper-4bit", "--json")
    assert result.code == 0, result.err
    (version,) = result.json["versions"]
    assert version["version"] == "gptq-4"
    assert version["ref"] == "helper-4bit@1"
    assert version["after"]["size"] < version["before"]["size"]
    assert {"perplexity", "token_ms", "first_token_ms"} <= set(version["after"])
    with c.open(stored / ".catena") as ws:
        made = ws.resolve("helper-4bit")
        assert isinstance(made, ModelVersion)
        assert made.quantization == "int4"
        assert ws.model("helper-4bit").generate(["one two"], max_tokens=4)


def test_versions_are_compared_in_one_report(catena: Catena, stored: Path) -> None:
    line = ["compress", "helper", "--compare", "int8,awq:4,layers:0.5", "--group", "16"]
    result = catena(*line, "--data", "corpus", *FAST, "--report", "page.html", "--quiet")
    assert result.code == 0, result.err
    assert [row.split()[0] for row in result.out.splitlines() if row.split()] == [
        *("before", "int8", "awq-4", "layers-0.5")
    ]
    page = (stored / "page.html").read_text()
    section = page[page.index('id="compression"') :]
    assert "over size of every version" in section
    assert all(f"<td>{name}</td>" in section for name in ("int8", "awq-4", "layers-0.5"))
    assert "unbeaten" in section


def test_the_python_api_does_the_same(stored: Path) -> None:
    with c.open(stored / ".catena") as ws:
        smaller = ws.model("helper").compress("rtn", 4, group_size=16, name="small")
        assert smaller.version.quantization == "int4"
        found = ws.compress("helper", ["int8"], test="corpus")
        assert isinstance(found.reports["int8"], Report)
        assert found.reports["int8"].scores["size_ratio"].value < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what is to be done"),
        (["--method", "awk"], "there is no method 'awk'"),
        (["--method", "awq", "--bits", "8"], "awq is not offered in '8' bits"),
        (["--method", "awq"], "the method awq needs calibration data"),
        (["--method", "rtn", "--bits", "4"], "which groups of 128 do not divide"),
        (["--method", "wanda", "--sparsity", "much"], "wanda takes a share"),
        (["--method", "int8", "--set", "grup_size=3"], "none of these methods has the value 'grup_size'"),
        (["--method", "int8", "--test", "helper"], "helper"),
        (["--compare", "int8,int8"], "a version is named twice"),
        (["--compare", "int8", "--bits", "4"], "--compare says the amounts itself"),
    ],
)
def test_mistakes_are_named(catena: Catena, stored: Path, options: list[str], message: str) -> None:
    result = catena("compress", "helper", *options, "--quiet")
    assert result.code in (2, 3, 4)
    assert message in result.err


def test_a_small_model_is_not_made_small_again(catena: Catena, stored: Path) -> None:
    assert catena("compress", "helper", "--method", "int8", "--name", "small", "--quiet").code == 0
    result = catena("compress", "small", "--method", "int8", "--quiet")
    assert "only a full model can be quantized" in result.err
