"""Facts about what `catena init` writes: recipes plan, one runs, the steps of pipelines run as they stand."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import torch
import yaml

import catena as c
from catena.cli.main import run as run_line
from catena.core.errors import NotFound, UsageError
from catena.flow.templates import PIPELINES, templates, write_pipeline, write_template
from catena.models import checkpoint
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer

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


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of every kind, and a workspace in it with two tiny models under four names."""
    folder = tmp_path_factory.mktemp("team")
    talk = [{"role": "user", "content": "what is alpha?"}, {"role": "assistant", "content": "alpha is one."}]
    rows: dict[str, list[dict[str, Any]]] = {
        "conversations": [{"messages": talk}] * 12,
        "questions": [{"messages": talk}] * 12,
        "labels": [{"input": f"book a flight {number}", "output": "flight"} for number in range(12)],
    }
    for name, lines in rows.items():
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "documents").mkdir()
    (folder / "documents" / "a.txt").write_text("alpha is one and beta is two.\n" * 20)
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


def test_the_template_of_an_adapter_runs(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(filled)
    (filled / "again").mkdir(exist_ok=True)
    path = write_template("lora", filled / "again")
    small = ["tuned.phases=[{epochs: 1}]", "answers.splits=[train]", "answers.max_tokens=2"]
    with c.open(filled) as workspace:
        done = workspace.run(path, overrides=[*small, "conversations.folder=conversations"])
    assert set(done.outputs) == {"conversations", "examples", "tuned", "whole", "answers"}


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
