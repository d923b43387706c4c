"""The circle: a served model, what users said of its answers, the next dataset and model, and back to the trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import catena
from catena.cli.main import run as run_line
from catena.core.generate import GENERATORS
from catena.core.sample import Sample
from catena.core.types import DatasetVersion, ModelVersion
from catena.govern.audit.reading import Query, entries
from catena.govern.config import AuditConfig, AuthConfig, GovernConfig
from catena.govern.keys import Keys
from catena.serve.app import build_app
from catena.serve.config import ServeConfig
from catena.serve.governed import governed
from catena.serve.server import background
from catena.workspace import Workspace

RECIPE = Path(__file__).parent.parent / "recipes" / "feedback.yaml"
KNOWN = {"what is alpha?": "alpha is one.", "what is beta?": "beta is two."}
BASE = """\
name: python-helper
steps:
  tokenizer: {stage: train.tokenizer, use: {source: python-helper/corpus}, with: {vocab_size: 320}}
  base:
    stage: train.pretrain
    use: {tokenizer: tokenizer, data: python-helper/corpus}
    with: {preset: llama-nano, sequence_length: 32, batch_size: 8, steps: 8, warmup_steps: 2}
  tuned:
    stage: train.sft
    use: {base: base, data: python-helper/conversations}
    with: {batch_size: 2, learning_rate: 0.005, split: held_out_phrasings, phases: [{epochs: 30}]}
"""
SMALL = (
    "tuned.learning_rate=0.005",
    "tuned.phases=[{epochs: 60}]",
    "tuned.batch_size=2",
    "answers-new.splits=[train]",
    "answers-old.splits=[train]",
    "answers-new.max_tokens=48",
    "answers-old.max_tokens=48",
    "known-new.max_tokens=48",
    "known-old.max_tokens=48",
    # Two-layer models forget: only what was corrected counts here.
    "gate.keep={}",
    "gate.at_least={accuracy/train: 0.9}",
)


def put(workspace: Workspace, name: str, shape: Any, data: list[dict[str, Any]], split: str) -> None:
    with workspace.store.new_dataset(shape, license="CC0-1.0") as writer:
        for number, one in enumerate(data):
            writer.add(Sample(f"{name}-{number}", one, split=split))
        made = writer.commit()
    workspace.store.index.add_artifact(made)
    workspace.store.index.add_name(name, made.digest)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace with a tiny model that was trained on a few conversations."""
    with catena.open(tmp_path / ".catena") as opened:
        texts = [{"text": f"{question} {answer} red is warm, blue is cold. " * 8} for question, answer in KNOWN.items()]
        put(opened, "python-helper/corpus", "document", texts * 4, "train")
        turns = [("user", "assistant")] * len(KNOWN)
        chats = [
            {"messages": [{"role": role, "content": text} for role, text in zip(roles, pair, strict=True)]}
            for roles, pair in zip(turns, KNOWN.items(), strict=True)
        ]
        put(opened, "python-helper/conversations", "conversation", chats, "held_out_phrasings")
        base = tmp_path / "base.yaml"
        base.write_text(BASE)
        opened.run(base)
        yield opened


def rated(workspace: Workspace) -> dict[str, str]:
    """Serve the model, ask it, say what it should have said; return trace ids by question."""
    model = workspace.store.resolve("python-helper/tuned", ModelVersion)
    key = Keys(workspace.store.index).create("ada", "user")[0]
    config = GovernConfig(auth=AuthConfig(on=True), audit=AuditConfig(on=True))
    head = {"authorization": f"Bearer {key}"}
    colours = {"red": "red is warm.", "blue": "blue is cold.", "teal": "teal is both, says ada@corp.net."}
    found = {}
    with (
        governed(workspace.store, config, ServeConfig()) as middleware,
        closing(GENERATORS.load("native")(workspace.store.checkout(model))) as engine,
        background(
            build_app({"python-helper": engine}, fingerprints={"python-helper": model.digest}, middleware=middleware)
        ) as url,
        httpx.Client(headers=head, timeout=120, trust_env=False) as client,
    ):
        for colour, correction in {**colours, "grey": ""}.items():
            body = {"model": "python-helper", "messages": [{"role": "user", "content": f"what is {colour}?"}]}
            answer = client.post(f"{url}/v1/chat/completions", json={**body, "max_tokens": 8})
            name = answer.headers["x-request-id"]
            said = {"request_id": name, "rating": "down", "consent": colour != "grey"}
            more = {"correction": correction} if correction else {}
            assert client.post(f"{url}/v1/feedback", json={**said, **more}).status_code == 201
            found[colour] = name
    return found


def test_feedback_becomes_the_next_model_and_leads_back_to_its_trace(workspace: Workspace) -> None:
    before = workspace.store.resolve("python-helper/tuned", ModelVersion)
    traces = rated(workspace)
    split = ("examples.ratios={train: 1.0}",)
    done = workspace.run(RECIPE, overrides=(*SMALL, *split), refresh=True)
    collected = done.outputs["collected"]
    assert isinstance(collected, DatasetVersion)
    assert (collected.rows, collected.rejects) == (3, 1)
    stored = {one.source: one for one in workspace.dataset("feedback/collected").samples()}
    teal = stored[f"trace:{traces['teal']}"]
    assert teal.data["messages"][-1]["content"] == "teal is both, says [EMAIL]."
    assert before.digest.startswith(teal.metadata["digest"])
    assert done.outputs["gate"].details["verdict"] == "passed"  # type: ignore[union-attr]
    after = workspace.store.resolve("python-helper@next", ModelVersion)
    assert after.digest == done.outputs["tuned"].digest != before.digest
    with workspace.model("python-helper@next") as tuned:
        assert tuned.chat("what is red?", max_tokens=16, temperature=0.0) == "red is warm."
    # Back: from the answer to the trace, from the trace to what was asked, from the model to what it was made of.
    [source] = workspace.model("python-helper@next").sources("red is warm.", limit=1)
    assert source.page == f"trace:{traces['red']}"
    asked = next(entries(workspace.store.root, AuditConfig(), Query(id=traces["red"], kind="request")))
    assert asked["body"]["messages"][0]["content"] == "what is red?"
    assert {"feedback/collected@1"} <= {
        name for node in workspace.lineage("python-helper@next").nodes for name in node.names
    }
    again = workspace.run(RECIPE, overrides=(*SMALL, *split), refresh=True)
    assert again.runs["tuned"].status == "cached", "nothing new was said: nothing is trained"


def test_the_command_line_collects_lists_and_erases(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    traces = rated(workspace)

    def run(*words: str) -> Any:
        capsys.readouterr()
        code = run_line([*words, "--json", "--workspace", str(workspace.store.root)])
        told = capsys.readouterr()
        assert code == 0, told
        return json.loads(told.out)

    made = run("data", "collect", "feedback", "--model", "python-helper/tuned")
    assert (made["ref"], made["rows"], made["new"], made["rejected"]) == ("feedback@1", 3, 3, {"no_consent": 1})
    assert [one["request"] for one in run("feedback", "list")] == list(traces.values())
    found = run("drift", "report", "--reference", "feedback", "--since", "1h")
    assert {one["verdict"] for one in found["features"].values()} == {"too few"}
    assert Path(found["file"]).read_text().startswith("<!doctype html>")
    assert json.loads((workspace.store.root / "drift" / "latest.json").read_text())["digest"] == found["digest"]
    lines = {one["id"]: one for one in run("compliance", "report")["lines"]}
    told = {name: lines[name]["status"] for name in ("feedback-consent", "feedback-masked", "drift-watched")}
    assert set(told.values()) == {"held"}, lines
    run("audit", "erase", "ada", "--reason", "asked")
    lines = {one["id"]: one for one in run("compliance", "report")["lines"]}
    assert lines["feedback-consent"]["status"] == "failed", "rows of somebody who was erased are still there"
    assert run("data", "collect", "feedback", "--model", "python-helper/tuned")["erased"] == 3
    gone = run("data", "erase", "feedback", "--subject", "ada", "--reason", "asked")
    assert len(gone["rows"]) == 4
    assert gone["proof"]["after"]["pieces_found"] == 0
    acts = [one["act"] for one in entries(workspace.store.root, AuditConfig(), Query(kind="act"))]
    assert {"data.collect", "feedback.list", "audit.erase"} <= set(acts)
