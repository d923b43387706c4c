"""The second half of a real chain: measure, compress, measure again, decide, promote, report."""

from __future__ import annotations

from pathlib import Path

import pytest

import catena as c
from catena.core.sample import Sample, sample_id
from catena.hub.lineage import as_json
from catena.hub.store import Store
from catena.models import checkpoint
from catena.models.presets import build
from catena.models.tokenizer import train_tokenizer

RECIPE = """\
name: little
seed: 3
steps:
  small: {stage: compress.quantize, use: {model: model}}
  answers: {stage: evaluate.answers, use: {model: model, data: talks}, with: {splits: [train, all]}}
  answers-small: {stage: evaluate.answers, use: {model: small, data: talks}, with: {splits: [train, all]}}
  reading: {stage: evaluate.perplexity, use: {model: model, data: text}, with: {split: all}}
  reading-small: {stage: evaluate.perplexity, use: {model: small, data: text}, with: {split: all}}
  gate:
    stage: govern.gate
    use:
      candidate: small
      baseline: model
      candidate_report: answers-small
      baseline_report: answers
      candidate_also: reading-small
      baseline_also: reading
    with: {keep: {perplexity: 0.95, bits_per_byte: 0.95}, max_size_ratio: 0.9}
  helper:
    stage: govern.promote
    use: {gate: gate, candidate: small, baseline: model}
    name: helper
    tags: [production]
"""


def fill(store: Store, folder: Path) -> None:
    """Store a tiny untrained model, conversations whose references are anything, and documents."""
    tokenizer = train_tokenizer(["json.loads reads a document.", "读取一个文件。"], 300)
    checkpoint.save(build("llama-nano", 320, 3, end_id=tokenizer.eos_token_id), tokenizer, folder / "model")
    model = store.put_model(folder / "model", **checkpoint.describe(folder / "model"))
    with store.new_dataset("conversation") as out:
        for number in range(12):
            messages = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}]
            split = "train" if number % 2 else None
            out.add(Sample(sample_id(number), {"messages": messages}, {"page": "site:/q"}, split=split))
        talks = out.commit()
    with store.new_dataset("document") as out:
        out.add(Sample("d", {"text": "json.loads reads a document. 读取一个文件。"}))
        text = out.commit()
    for name, artifact in (("model", model), ("talks", talks), ("text", text)):
        store.index.add_artifact(artifact)
        store.index.add_name(name, artifact.digest)


@pytest.fixture
def recipe(store: Store, tmp_path: Path) -> Path:
    fill(store, tmp_path)
    path = tmp_path / "little.yaml"
    path.write_text(RECIPE)
    return path


def test_a_model_is_compressed_measured_and_promoted(store: Store, recipe: Path) -> None:
    ws = c.open(store.root)
    first = ws.run(recipe)
    winner = ws.resolve("helper@production")
    assert isinstance(winner, c.ModelVersion)
    assert winner == first.outputs["small"]
    assert winner.quantization == "int8"
    assert first.report is not None
    text = first.report.read_text(encoding="utf-8")
    assert "catena serve helper@production" in text
    assert "keep/perplexity" in text
    assert "lost" in text

    again = ws.run(recipe)
    assert {run.status for run in again.runs.values()} == {"cached"}
    stages = [node["stage"] for node in as_json(ws.lineage("helper@production"))["nodes"] if node["kind"] == "run"]
    assert sorted(stages) == [
        "compress.quantize",
        "evaluate.answers",
        "evaluate.perplexity",
        "govern.gate",
        "govern.promote",
    ]
    ws.close()


def test_a_refused_candidate_leaves_the_baseline_in_place(store: Store, recipe: Path) -> None:
    ws = c.open(store.root)
    ws.run(recipe, overrides=["gate.max_size_ratio=0.01"])
    assert ws.resolve("helper@production") == ws.resolve("model")
    with pytest.raises(c.CatenaError, match="step 'gate': the gate refused the candidate: size_ratio is") as caught:
        ws.run(recipe, overrides=["gate.max_size_ratio=0.01", "gate.on_fail=stop"])
    assert caught.value.exit_code == 7
    ws.close()
