"""Tasks of lm-evaluation-harness: what it tells becomes lines and evidence."""

from __future__ import annotations


def test_what_the_harness_tells_becomes_lines_and_evidence() -> None:
    from catena.evaluate.harness import outcome_of, params_of
    from catena.evaluate.task import HarnessTask

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


def test_a_task_of_the_harness_by_its_name() -> None:
    from catena.evaluate.taskfile import load_tasks

    (loaded,) = load_tasks(["lm_eval:arc/easy"])
    assert (loaded.task.name, loaded.task.kind) == ("arc-easy", "lm_eval")
