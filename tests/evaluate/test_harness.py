"""Tasks of lm-evaluation-harness: what it tells becomes lines and evidence."""

from __future__ import annotations

from math import exp
from types import SimpleNamespace
from typing import Any

import pytest

from catena.evaluate.harness import outcome_of, params_of, prompts_of
from catena.evaluate.measures import measure_of
from catena.evaluate.task import HarnessTask
from catena.evaluate.taskfile import load_tasks


def test_what_the_harness_tells_becomes_lines_and_evidence() -> None:
    task = HarnessTask(name="some", kind="lm_eval", task="some")
    samples = {
        name: [
            {
                "doc_id": number,
                "filter": "none",
                "metrics": ["acc", "word_perplexity"],
                "acc": float(number),
                "word_perplexity": (-3.0, 2),
                "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": " a"}},
                "filtered_resps": [["a"]],
                "target": "b",
            }
            for number in range(2)
        ]
        for name in ("one", "two")
    }
    found = outcome_of(task, samples, {"one": {"acc,none": 0.5, "acc_stderr,none": 0.1}})
    assert found.evidence["acc"].tolist() == [[0, 1], [1, 1], [0, 1], [1, 1]]
    assert found.evidence["word_perplexity"].tolist() == [[3, 2]] * 4
    assert [line["group"] for line in found.lines] == ["one", "one", "two", "two"]
    assert len({line["id"] for line in found.lines}) == 4
    assert (found.lines[0]["question"], found.lines[0]["answer"]) == ("Q", "a")
    assert found.notes == {"as_the_harness_says": "one/acc,none 0.5"}
    params = params_of({"until": ["\n", ""], "max_gen_toks": 7, "do_sample": False, "temperature": 0.7})
    assert (params.stop, params.max_tokens, params.temperature) == (("\n",), 7, 0.0)


def samples_of(metric: str, values: list[Any]) -> dict[str, list[dict[str, Any]]]:
    return {"t": [{"doc_id": at, "metrics": [metric, "acc"], metric: one, "acc": 1.0} for at, one in enumerate(values)]}


@pytest.mark.parametrize("metric", ["f1", "mcc"])
def test_pairs_of_labels_are_no_log_likelihoods(metric: str) -> None:
    task = HarnessTask(name="t", kind="lm_eval", task="t")
    found = outcome_of(task, samples_of(metric, [(1, 1), (0, 1), (1, 0)]), {"t": {f"{metric},none": 0.5}})
    assert set(found.evidence) == {"acc"}
    assert found.notes == {"as_the_harness_says": f"t/{metric},none 0.5"}


def test_perplexity_is_that_of_the_harness() -> None:
    task = HarnessTask(name="t", kind="lm_eval", task="t")
    evidence = outcome_of(task, samples_of("perplexity", [-2.0, -4.0]), {}).evidence["perplexity"]
    assert measure_of("perplexity").finish(evidence.sum(axis=0)) == pytest.approx(exp(3.0))


def test_each_answer_to_a_repeated_request_is_drawn_by_itself() -> None:
    drawn, other = (SimpleNamespace(args=(text, {"do_sample": True, "temperature": 0.7})) for text in ("Q", "R"))
    greedy = SimpleNamespace(args=("Q", {}))
    asked = prompts_of([drawn, drawn, drawn, other, greedy, greedy])
    assert [(prompt, params.seed) for prompt, params in asked] == [
        *[("Q", 0), ("Q", 1), ("Q", 2), ("R", 0)],
        *[("Q", None), ("Q", None)],
    ]


def test_a_task_of_the_harness_by_its_name() -> None:
    (loaded,) = load_tasks(["lm_eval:arc/easy"])
    assert (loaded.task.name, loaded.task.kind) == ("arc-easy", "lm_eval")
