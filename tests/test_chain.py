"""The whole chain of the demo, made small: killed at random moments, run twice at once, asked where an answer is from.

The small chain has every step of `recipes/python-helper.yaml`; only numbers differ. It is about the machinery: that the
model becomes good is measured by `benchmarks/demo_quality.py`.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

import catena as c
from catena.hub.fsck import check, collect_garbage
from tests.chain import Chain, digests, start

pytestmark = [pytest.mark.chain, pytest.mark.xdist_group("chain")]

KILLS = 20
"""Two at the very beginning of a chain and the others over its steps, by how long they take."""


def test_every_step_is_taken_from_the_store_the_second_time(chain: Chain) -> None:
    events = start(chain.workspace).events()
    steps = [event["status"] for event in events if event["event"] == "step"]
    assert set(steps) == {"cached"}
    assert len(steps) == len(chain.end["outputs"])
    assert digests(events[-1]) == digests(chain.end)


def test_a_chain_killed_again_and_again_ends_as_if_nothing_had_happened(chain: Chain, tmp_path: Path) -> None:
    """Kill -9 at random moments: each try comes to the step of the one before or a later one, and some way into it.

    A chain that ends before its kill must have ended right; the kills that are left then fall on a new one.
    """
    chance, kills, workspace = random.Random(20261122), 0, tmp_path
    seconds = {step: 0.1 + took for step, took in chain.end["seconds"].items()}
    order = list(seconds)
    aims: list[str | None] = []
    while kills < KILLS:
        if not aims:
            workspace = tmp_path / str(kills) / ".catena"
            workspace.parent.mkdir(exist_ok=True)
            reached = sorted(chance.choices(order, list(seconds.values()), k=KILLS), key=order.index)
            aims = [None, None, *reached]
        step = aims.pop(0)
        running = start(workspace)
        while step is not None and not running.has_reached(step) and running.process.is_alive():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.5 if step is None else seconds[step]))
        if running.kill():
            kills += 1
        else:
            assert digests(running.end()) == digests(chain.end)
            aims.clear()
        if (workspace / "workspace.json").exists():
            with c.open(workspace) as ws:
                assert not check(ws.store)
    assert digests(start(workspace).end()) == digests(chain.end)
    with c.open(workspace) as ws:
        left = list(ws.store.root.glob("work/*"))
        assert all(path.name.startswith("tmp-") for path in left), "only a kill within a moment leaves a folder"
        collect_garbage(ws.store)
        assert not list(ws.store.root.glob("work/*"))


def test_two_chains_at_once_in_one_workspace_both_end_right(chain: Chain, tmp_path: Path) -> None:
    both = [start(tmp_path / ".catena") for _ in range(2)]
    ends = [running.end() for running in both]
    assert digests(ends[0]) == digests(ends[1]) == digests(chain.end)
    with c.open(tmp_path / ".catena") as ws:
        done = ws.store.index.find_runs(status="done")
        assert len({run.key for run in done}) == len(done), "a step was done twice"


def test_no_evaluation_question_and_no_held_out_page_is_learnt(chain: Chain) -> None:
    with c.open(chain.workspace) as ws:
        conversations = list(ws.dataset("python-helper/conversations").samples())
        pages = {sample.id for sample in ws.dataset("python-helper/pages").samples()}
        examples = {sample.id: sample for sample in ws.dataset("python-helper/definitions").samples()}
    asked = {sample.data["messages"][0]["content"] for sample in conversations if sample.split == "train"}
    kept = {sample.data["messages"][0]["content"] for sample in conversations if sample.split != "train"}
    assert asked.isdisjoint(kept)
    assert {sample.split for sample in conversations} == {"train", "held_out_phrasings", "unseen_words"}
    for sample in conversations:
        (example,) = sample.parents
        assert set(examples[example].parents) <= pages


def test_lineage_leads_from_the_model_to_the_pages(chain: Chain) -> None:
    with c.open(chain.workspace) as ws:
        graph = ws.lineage("python-helper@production")
        stages = {node.label for node in graph.nodes if node.kind == "run"}
        assert {"data.crawl", "train.sft", "compress.quantize", "govern.promote"} <= stages
        definition = next(iter(ws.dataset("python-helper/definitions").samples()))
        (source,) = ws.model("python-helper@production").sources(definition.data["output"], limit=1)
    assert source.similarity == 1.0
    assert source.page == definition.metadata["page"]


def test_a_model_of_the_store_loads_in_plain_transformers_and_answers(
    chain: Chain,
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with c.open(chain.workspace) as ws, ws.model("python-helper/tuned") as model:
        ours = model.chat("What does shutil.move do?", max_tokens=6)
        tokenizer = AutoTokenizer.from_pretrained(model.folder)
        theirs = AutoModelForCausalLM.from_pretrained(model.folder)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What does shutil.move do?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        ids = theirs.generate(**prompt, max_new_tokens=6, do_sample=False)
        answer = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ours == answer
