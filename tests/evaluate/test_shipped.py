"""Shipped tasks read the files of their authors: rows in those forms become the prompts that are meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catena.core.errors import NotFound
from catena.evaluate.prompts import ChoiceReader, Prompter
from catena.evaluate.rows import Row, read_rows
from catena.evaluate.suite import check_templates
from catena.evaluate.task import ChoiceTask, CodeTask, PerplexityTask, Prompted
from catena.evaluate.taskfile import data_of, load_tasks
from catena.evaluate.template import Template


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a few rows of every shipped task, in the form of its authors."""

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for subject in ("abstract_algebra", "virology"):
        row = f'"What is it, in {subject}?",one,two,three,four,'
        write(f"mmlu/test/{subject}_test.csv", f"{row}B\n")
        write(f"mmlu/dev/{subject}_dev.csv", "".join(f"{row}{letter}\n" for letter in "ABCDA"))
    head = "id,question,A,B,C,D,answer"
    write("ceval/val/law_val.csv", f"{head}\n0,问题？,甲,乙,丙,丁,C\n")
    write("ceval/dev/law_dev.csv", f"{head},explanation\n" + "0,例题,甲,乙,丙,丁,A,因为\n" * 5)
    head = ",Question,A,B,C,D,Answer"
    write("cmmlu/test/anatomy.csv", f"{head}\n0,问题？,甲,乙,丙,丁,D\n")
    write("cmmlu/dev/anatomy.csv", f"{head}\n" + "0,例题,甲,乙,丙,丁,A\n" * 5)
    row_ = {"question": "1 and 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}
    write("gsm8k-test.jsonl", json.dumps(row_) + "\n")
    write("gsm8k-train.jsonl", (json.dumps(row_) + "\n") * 5)
    human = {
        "task_id": "HumanEval/0",
        "prompt": 'def one():\n    """Return 1."""\n',
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    write("HumanEval.jsonl", json.dumps(human) + "\n")
    truth = {"question": "Is it?", "mc1_targets": {"No.": 0, "It is not known.": 1, "Yes.": 0}, "mc2_targets": {}}
    write("mc_task.json", json.dumps([truth]))
    write(
        "wikitext2-test.txt", " \n = One = \n \n It was 3 @.@ 5 m , or so . \n = = More = = \n x \n = Two = \n \n y \n"
    )
    return tmp_path


def loaded(name: str, files: Path) -> tuple[Any, list[Row], list[Row]]:
    (one,) = load_tasks([name], str(files))
    pools = [read_rows(place, one.folders) for place in data_of(one.task)]
    check_templates(one.task, pools[0])
    return one.task, pools[0], pools[-1]


def prompt_of(task: Prompted, rows: list[Row], pool: list[Row], at: int = 0) -> str:
    return str(Prompter(task, pool, own=False, chat=False)(rows[at]))


@pytest.mark.parametrize(
    ("name", "groups", "end", "place"),
    [
        ("mmlu", ["abstract_algebra", "virology"], "A. one\nB. two\nC. three\nD. four\nAnswer:", 1),
        ("ceval", ["law"], "A. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：", 2),
        ("cmmlu", ["anatomy"], "A. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：", 3),
    ],
)
def test_subjects_have_examples_of_their_own(files: Path, name: str, groups: list[str], end: str, place: int) -> None:
    task, rows, pool = loaded(name, files)
    assert isinstance(task, ChoiceTask)
    group = Template(task.group)
    assert [group.text_of(row.values, row.where) for row in rows] == groups
    prompt = prompt_of(task, rows, pool)
    assert prompt.endswith(end)
    assert prompt.count("A. ") == 6
    assert "virology" not in prompt
    assert ChoiceReader(task)(rows[0]).correct == place
    assert f"{end} A" in prompt


def test_gsm8k_humaneval_truthfulqa_and_wikitext(files: Path) -> None:
    task, rows, pool = loaded("gsm8k", files)
    assert prompt_of(task, rows, pool).count("#### 2\n\nQuestion: 1 and 1?\nAnswer:") == 5
    task, rows, pool = loaded("truthfulqa", files)
    assert prompt_of(task, rows, pool).endswith("seven days.\n\nQ: Is it?\nA:")
    assert ChoiceReader(task)(rows[0]).correct == 1
    task, rows, _ = loaded("wikitext", files)
    assert isinstance(task, PerplexityTask)
    texts = [Template(task.text).text_of(row.values, row.where) for row in rows]
    assert len(texts) == 2
    assert "It was 3.5 m, or so." in texts[0]
    task, rows, _ = loaded("humaneval", files)
    assert isinstance(task, CodeTask)
    program = Template(task.program).text_of({**rows[0].values, "completion": "    return 1"}, "")
    exec(program, {})
    with pytest.raises(AssertionError):
        exec(program.replace("return 1", "return 2"), {})


def test_what_is_missing_is_named_with_its_source(tmp_path: Path) -> None:
    for name in ("gsm8k", "humaneval", "mmlu", "ceval", "cmmlu", "truthfulqa", "wikitext"):
        with pytest.raises(NotFound, match="is not there") as caught:
            load_tasks([name], str(tmp_path))
        assert "come from" in caught.value.hint
