"""Facts about what `catena init` writes: every recipe plans and runs, the steps of pipelines run as they stand."""

from __future__ import annotations

import http.server
import inspect
import json
import os
import shutil
import statistics
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx2 as httpx
import pytest
import torch
import yaml

import catena as c
from catena.cli.main import run as run_line
from catena.core.errors import NotFound, UsageError
from catena.core.generate import GENERATORS
from catena.flow.templates import PIPELINES, templates, write_pipeline, write_template
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig
from catena.govern.keys import Keys
from catena.models import checkpoint
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.governed import governed
from catena.serve.server import background

pytestmark = pytest.mark.xdist_group("templates")
TASK = """\
name: mine
kind: choice
data: {rows: [{q: one, a: 0}, {q: two, a: 1}, {q: three, a: 0}]}
prompt: "{{ q }} is"
choices: [" odd", " even"]
correct: "{{ a }}"
"""
RECIPE = """\
name: measured
steps:
  scores: {stage: evaluate.tasks, use: {model: candidate}, with: {tasks: [mine.yaml]}}
"""


def labelled(number: int) -> dict[str, str]:
    """A row of a classifier with two labels."""
    text, label = (("book a flight to stop", "flight"), ("show my balance", "balance"))[number % 2]
    return {"input": f"{text} {number}", "output": label}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of every kind, and a workspace in it with two tiny models under four names."""
    folder = tmp_path_factory.mktemp("team")
    talk = [{"role": "user", "content": "what is alpha?"}, {"role": "assistant", "content": "alpha is one."}]
    rows: dict[str, list[dict[str, Any]]] = {
        "conversations": [{"messages": talk}] * 12,
        "questions": [{"messages": talk}] * 12,
        "labels": [labelled(number) for number in range(12)],
    }
    for name, lines in rows.items():
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows_of = {"validation": 4, "test": 6}
    for split, count in rows_of.items():
        lines = [labelled(100 + number) for number in range(count)]
        (folder / "labels" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "documents").mkdir()
    for module in (shutil, statistics, textwrap):  # real texts, most unlike one another
        for name, one in inspect.getmembers(module, inspect.isfunction):
            (folder / "documents" / f"{module.__name__}.{name}.txt").write_text(inspect.getdoc(one) or name)
    tokenizer = train_tokenizer(["alpha is one. what is beta? odd even"] * 20, 300)
    with c.open(folder / ".catena") as workspace:
        for seed, names in enumerate((("base", "candidate"), ("production", "assistant"))):
            torch.manual_seed(seed)
            model = build("llama-nano", len(tokenizer), seed, context=256, end_id=tokenizer.eos_token_id)
            checkpoint.save(model, tokenizer, folder / f"model-{seed}")
            version = workspace.store.put_model(
                folder / f"model-{seed}", **checkpoint.describe(folder / f"model-{seed}")
            )
            workspace.store.index.add_artifact(version)
            for name in names:
                workspace.store.index.add_name(name, version.digest)
    return folder


@pytest.mark.parametrize("name", templates())
def test_a_template_is_written_and_plans(
    name: str, filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(filled)
    assert run_line(["init", "--template", name]) == 0
    assert run_line(["plan", f"{name}.yaml", "--json"]) == 0, capsys.readouterr()
    assert run_line(["init", "--template", name]) == 2
    assert "is there already" in capsys.readouterr().err


SMALL: dict[str, tuple[str, ...]] = {
    "pretrain": (
        "tokenizer.vocab_size=300",
        "model.preset=llama-nano",
        "model.sequence_length=32",
        "model.steps=4",
        "model.warmup_steps=1",
        "model.eval_every=2",
        "perplexity.max_tokens=100",
    ),
    "lora": ("tuned.phases=[{epochs: 1}]", "answers.splits=[train]", "answers.max_tokens=2"),
    "classification": (
        "tokenizer.vocab_size=300",
        "encoder.preset=modernbert-nano",
        "encoder.epochs=1",
        "encoder.batch_size=8",
        "classifier.epochs=1",
        "classifier.batch_size=8",
        "classifier.warmup_steps=1",
    ),
    "docs-qa": (
        "tokenizer.vocab_size=300",
        "read.preset=llama-nano",
        "read.sequence_length=32",
        "read.steps=4",
        "read.warmup_steps=1",
        "answering.phases=[{epochs: 1}]",
        "answers.splits=[train]",
        "answers.max_tokens=2",
    ),
    "evaluation": ("new.tasks=[mine.yaml]", "old.tasks=[mine.yaml]", "comparison.margin={mine/acc: 1.0}"),
    "feedback": (
        "examples.ratios={train: 1.0}",
        "tuned.phases=[{epochs: 1}]",
        *(f"answers-{one}.{field}" for one in ("new", "old") for field in ("splits=[train]", "max_tokens=2")),
        "gate.at_least={accuracy/train: 0.0}",
    ),
}
"""What makes each template small enough for a test, and nothing else: places and names are those that it has."""


def rate(folder: Path) -> None:
    """Serve `assistant` with the audit on, ask it, and say what it should have answered."""
    with c.open(folder) as workspace, workspace.model("assistant") as model:
        key = Keys(workspace.store.index).create("ada", "user")[0]
        config = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True))
        digests = {"assistant": model.version.digest}
        with (
            governed(workspace.store, config, ServeConfig()) as middleware,
            closing(GENERATORS.load("native")(model.folder)) as engine,
            background(build_app({"assistant": engine}, fingerprints=digests, middleware=middleware)) as url,
            httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=120, trust_env=False) as client,
        ):
            for word in ("alpha", "beta", "gamma"):
                asked = [{"role": "user", "content": f"what is {word}?"}]
                body = {"model": "assistant", "messages": asked, "max_tokens": 2}
                answer = client.post(f"{url}/v1/chat/completions", json=body)
                rating = {"request_id": answer.headers["x-request-id"], "rating": "down", "consent": True}
                said = client.post(f"{url}/v1/feedback", json={**rating, "correction": f"{word} is a letter."})
                assert said.status_code == 201


@pytest.mark.parametrize("name", templates())
def test_a_template_runs_from_its_first_step_to_its_last(
    name: str, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(filled)
    if name == "feedback":
        rate(filled)
    (filled / "mine.yaml").write_text(TASK)
    recipe = write_template(name, tmp_path)
    small = [part for assignment in SMALL[name] for part in ("--set", assignment)]
    assert run_line(["run", str(recipe), "--json", "--report", str(tmp_path / "run.html"), *small]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told["outputs"]) == set(yaml.safe_load(recipe.read_text(encoding="utf-8"))["steps"])
    assert "<html" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_templates_are_listed_and_a_wrong_name_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_line(["init", "--template", "list", "--json", "--workspace", str(tmp_path / "none")]) == 0
    assert json.loads(capsys.readouterr().out) == templates()
    assert not (tmp_path / "none").exists()
    with pytest.raises(NotFound) as error:
        write_template("lorra", tmp_path)
    assert error.value.hint == "Did you mean 'lora'?"
    with pytest.raises(NotFound, match="no pipeline for 'githup'"):
        write_pipeline("githup", tmp_path)
    write_pipeline("gitlab", tmp_path)
    with pytest.raises(UsageError, match="is there already"):
        write_pipeline("gitlab", tmp_path)


@pytest.mark.parametrize("forge", PIPELINES)
def test_a_pipeline_is_one_by_the_schema_of_its_forge(forge: str, tmp_path: Path) -> None:
    kind, how = {"github": ("github-workflows", ()), "gitlab": ("gitlab-ci", ("--data-transform", "gitlab-ci"))}[forge]
    path = write_pipeline(forge, tmp_path)
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{kind}", *how]
    assert subprocess.run([*check, str(path)], capture_output=True, check=False).returncode == 0
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(path.read_text(encoding="utf-8").replace("runs-on:", "run-on:").replace("script:", "scripts:"))
    assert subprocess.run([*check, str(wrong)], capture_output=True, check=False).returncode == 1


def steps_of(forge: str, folder: Path) -> list[str]:
    """Return the shell lines of a pipeline, but those that install."""
    values = yaml.safe_load(write_pipeline(forge, folder).read_text(encoding="utf-8"))
    if forge == "gitlab":
        job = values["compare"]
        assert job["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "merge_request_event"'}]
        assert set(job["artifacts"]) == {"when", "paths", "expire_in"}
        return list(job["script"])
    assert values["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert "pull_request" in (values.get("on") or values[True])  # YAML 1.1 reads the key `on` as true
    job = values["jobs"]["compare"]
    assert {"runs-on", "steps"} <= set(job)
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    return [step["run"] for step in job["steps"] if "run" in step and step["name"] != "Install"]


@pytest.fixture
def notes() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A server that takes notes, as GitLab's does: its address, and (path, token, body) of each."""
    taken: list[tuple[str, str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            taken.append((self.path, self.headers["PRIVATE-TOKEN"], parse_qs(body)["body"][0]))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", taken
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("forge", PIPELINES)
def test_the_steps_of_a_pipeline_run_and_comment(
    forge: str, filled: Path, tmp_path: Path, notes: tuple[str, list[tuple[str, str, str]]]
) -> None:
    address, taken = notes
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in (
        ("catena", f'exec {sys.executable} -m catena "$@"'),
        ("gh", 'printf "%s\\n" "$@" > gh-arguments; cp "$5" gh-body'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "mine.yaml").write_text(TASK)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CATENA_WORKSPACE": str(filled / ".catena"),
        **{"RECIPE": "recipe.yaml", "CANDIDATE": "candidate", "PRODUCTION": "production", "TASKS": "mine.yaml"},
        **{"PULL_REQUEST": "7", "CI_API_V4_URL": address, "CI_PROJECT_ID": "3", "CI_MERGE_REQUEST_IID": "7"},
        "CATENA_TOKEN": "secret-token",
        "no_proxy": "127.0.0.1",
    }
    for line in steps_of(forge, tmp_path):
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", line],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    if forge == "github":
        assert (tmp_path / "gh-arguments").read_text().split("\n")[:3] == ["pr", "comment", "7"]
        body = (tmp_path / "gh-body").read_text()
    else:
        ((path, token, body),) = taken
        assert (path, token) == ("/projects/3/merge_requests/7/notes", "secret-token")
    assert body.startswith("### candidate beside production")
    assert "| mine/acc | " in body
    assert (tmp_path / "scores.html").exists()
