"""Task files: every mistake is told at once, with its line and what was meant; rows say where they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from catena.core.errors import DataError, NotFound, TaskError
from catena.evaluate.extract import Extractor
from catena.evaluate.prompts import ChoiceReader, Prompter
from catena.evaluate.rows import Row, read_rows
from catena.evaluate.suite import check_templates
from catena.evaluate.task import ChoiceTask, DataConfig, ExtractStep, GenerateTask
from catena.evaluate.taskfile import described, load_tasks, shipped, task_from
from catena.evaluate.template import Template

GOOD = """\
name: sums
kind: generate
data:
  rows: [{q: 1 + 1, a: 2}, {q: 1 + 2, a: 3}, {q: 2 + 2, a: 4}]
few_shot: {count: 2, pick: first, between: "; "}
prompt: "{{ q }} ="
answer: "{{ a }}"
score: [exact]
"""


def rows_of(*values: dict[str, object]) -> list[Row]:
    return [Row(f"r{number}", value, f"row {number}") for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (("score: [exact]", "score: [exat]"), "task.yaml:8: score: there is no score 'exat'. Did you mean 'exact'?"),
        (("kind: generate", "kind: genrate"), "task.yaml:2: there is no kind 'genrate'. Did you mean 'generate'?"),
        (("kind: generate", "kind: [generate]"), "task.yaml:2: there is no kind ['generate']."),
        (("kind: generate", "kind: {generate: 1}"), "task.yaml:2: there is no kind {'generate': 1}."),
        (("a: 2}", "a: 2024-02-30}"), "task.yaml:4: '2024-02-30' cannot be read as timestamp"),
        (("prompt:", "promt:"), "task.yaml:6: promt: unknown key 'promt'. Did you mean 'prompt'?"),
        (("prompt:", "promt:"), "task.yaml:1: prompt: a value is required."),
        (("{{ q }} =", "{{ q }"), "task.yaml:6: prompt: the template does not parse"),
        (("count: 2", "count: two"), "task.yaml:5: few_shot.count"),
        (("pick: first", "pik: first"), "task.yaml:5: few_shot.pik: unknown key 'pik'. Did you mean 'pick'?"),
        (("  rows:", "  made: addtion\n  rows:"), "data has exactly one of file, dataset, rows and made"),
        (
            ("rows: [{q: 1 + 1, a: 2}, {q: 1 + 2, a: 3}, {q: 2 + 2, a: 4}]", "rows: []"),
            "task.yaml:3: data: rows is empty",
        ),
        (("name: sums", "name: my sums"), "task.yaml:1: name: a name has letters"),
        (("score: [exact]", "extract: [{regex: '('}]"), "the regular expression '(' does not parse"),
        (("score: [exact]", "extract: [{}]"), "task.yaml:8: extract.0: a step of extract needs one of"),
        (("score: [exact]", "score: []"), "task.yaml:8: score: it cannot be empty"),
    ],
)
def test_a_mistake_is_told_with_its_line(change: tuple[str, str], wanted: str) -> None:
    with pytest.raises(TaskError) as caught:
        task_from(GOOD.replace(*change))
    assert wanted in caught.value.message


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(TaskError) as caught:
        task_from(GOOD.replace("prompt:", "promt:").replace("[exact]", "[exat]"))
    assert len(caught.value.problems) == 3
    assert caught.value.exit_code == 2
    with pytest.raises(TaskError, match="it has no `kind`"):
        task_from("name: x")
    with pytest.raises(TaskError, match=r"task.yaml:2: not valid YAML"):
        task_from("name: x\nkind: [")
    with pytest.raises(TaskError, match="the key 'name' is given twice"):
        task_from("name: x\nname: y")


def test_all_shipped_tasks_parse() -> None:
    assert {"gsm8k", "humaneval", "mmlu", "ceval", "cmmlu", "truthfulqa", "wikitext", "basics", "basics-zh"} <= set(
        shipped()
    )
    rows = described()
    assert all(row["description"] for row in rows)
    own = load_tasks(["basics", "basics-zh"])
    for one in own:
        found = read_rows(one.task.data, one.folders)
        check_templates(one.task, found)
        assert len(found) >= 10
        assert len({row.id for row in found}) == len(found)
    assert [one.digest for one in load_tasks(["basics", "basics-zh"])] == [one.digest for one in own]


def test_a_name_that_is_none() -> None:
    with pytest.raises(NotFound) as caught:
        load_tasks(["gsm8"])
    assert "Did you mean 'gsm8k'?" in caught.value.hint
    with pytest.raises(NotFound, match=r"the file 'gsm8k-test.jsonl' is not there") as caught:
        load_tasks(["gsm8k"])
    assert "--data" in caught.value.hint
    assert "openai/grade-school-math" in caught.value.hint


def test_suites_of_files(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(GOOD)
    (tmp_path / "all.yaml").write_text("name: all\nsuite: [one.yaml, addition]\n")
    assert [one.task.name for one in load_tasks([str(tmp_path / "all.yaml")])] == ["sums", "addition"]
    (tmp_path / "all.yaml").write_text("name: all\nsuite: [all.yaml]\n")
    with pytest.raises(TaskError, match="has itself in it"):
        load_tasks([str(tmp_path / "all.yaml")])
    (tmp_path / "all.yaml").write_text("name: all\nsuite: []\n")
    with pytest.raises(TaskError, match=r"all.yaml:2: suite: it cannot be empty"):
        load_tasks([str(tmp_path / "all.yaml")])
    (tmp_path / "two.yaml").write_text(GOOD.replace("a: 4", "a: 5"))
    with pytest.raises(TaskError, match="two different tasks are called 'sums'"):
        load_tasks([str(tmp_path / name) for name in ("one.yaml", "two.yaml")])


def test_files_of_every_kind(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_text('{"q": "x", "a": 1}\n\n{"q": "y", "a": 2}\n')
    (tmp_path / "a.json").write_text('[{"q": "x", "a": 1}, {"q": "y", "a": 2}]')
    (tmp_path / "a.csv").write_text('\ufeffq,a\n"x",1\ny,2\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("x\t1\ny\t2\n")
    pq.write_table(pa.table({"q": ["x", "y"], "a": [1, 2]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"):
        columns = ("q", "a") if name == "a.tsv" else ()
        rows = read_rows(DataConfig(file=name, columns=columns), [tmp_path])
        assert [(row.values["q"], int(row.values["a"])) for row in rows] == [("x", 1), ("y", 2)]
        assert rows[0].values["file"] == "a"
    (tmp_path / "a.txt").write_text("= One =\nfirst\n= Two =\nsecond\n")
    rows = read_rows(DataConfig(file="a.txt", divide="^= "), [tmp_path])
    assert [row.values["text"] for row in rows] == ["= One =\nfirst\n", "= Two =\nsecond\n"]
    assert rows[1].where == "a.txt:3"
    assert len(read_rows(DataConfig(file="a.js*"), [tmp_path])) == 4


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": ', r"a.jsonl:2: not valid JSON"),
        ("a.jsonl", "[1]\n", r"a.jsonl:1: a row is an object with fields, not list"),
        ("a.jsonl", "\n", "holds no rows"),
        ("a.csv", "q,a\n1,2,3\n", r"a.csv:2: 3 fields, and 2 columns"),
        ("a.json", "{}", "is a list of objects"),
        ("a.parquet", "nonsense", "cannot be read"),
        ("a.doc", "x", "files of this kind are not read"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, text: str, wanted: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=wanted):
        read_rows(DataConfig(file=name), [tmp_path])


def test_templates_see_rows_and_nothing_else() -> None:
    with pytest.raises(DataError, match="names 'qestion'") as caught:
        Template("{{ qestion }}").check({"question"}, "sums, prompt")
    assert "Did you mean 'question'?" in caught.value.hint
    for bad in (
        "{{ ''.__class__.__mro__ }}",
        "{{ 'a' * 10**9 }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ x.y }}",
    ):
        with pytest.raises(DataError, match=r"row 1: the template .* cannot be filled in"):
            Template(bad).text_of({"x": {}}, "row 1")
    assert Template("{{ choices }}").value_of({"choices": [1, 2]}, "") == [1, 2]
    assert Template("{{ a }}-{{ b }}").value_of({"a": 1, "b": 2}, "") == "1-2"


def test_examples_stand_before_a_question_and_are_never_it() -> None:
    task = task_from(GOOD)
    assert isinstance(task, GenerateTask)
    rows = read_rows(task.data, ())
    prompter = Prompter(task, rows, own=True, chat=False)
    assert prompter(rows[2]) == "1 + 1 = 2; 1 + 2 = 3; 2 + 2 ="
    assert prompter(rows[0]) == "1 + 2 = 3; 2 + 2 = 4; 1 + 1 ="
    turns = Prompter(task, rows, own=True, chat=True)(rows[2])
    assert [turn.role for turn in turns if not isinstance(turn, str)] == ["user", "assistant"] * 2 + ["user"]
    with pytest.raises(DataError, match="sums wants 2 examples, and there are 1"):
        Prompter(task, rows[:2], own=True, chat=False)(rows[0])
    for pick in ("random", "each"):
        drawn = task_from(GOOD.replace("first", pick))
        assert isinstance(drawn, GenerateTask)
        prompts = [str(Prompter(drawn, rows, own=True, chat=False)(row)) for row in rows]
        assert prompts == [str(Prompter(drawn, rows, own=True, chat=False)(row)) for row in rows]
        assert all(str(row.values["q"]) + " = " not in prompt for row, prompt in zip(rows, prompts, strict=True))


@pytest.mark.parametrize(("correct", "place"), [(1, 1), ("1", 1), ("B", 1), ("b", 1), ("yes", 0)])
def test_the_right_choice_is_a_number_a_letter_or_a_text(correct: object, place: int) -> None:
    task = ChoiceTask(
        name="x", kind="choice", data=DataConfig(made="addition"), prompt="", choices=("yes", "no"), correct="{{ c }}"
    )
    (row,) = rows_of({"c": correct})
    assert ChoiceReader(task)(row).correct == place
    for wrong in (2, "C", "maybe", -1):
        with pytest.raises(DataError, match=r"row 0: .* is none of the 2 choices"):
            ChoiceReader(task)(*rows_of({"c": wrong}))


def test_extraction() -> None:
    steps = [ExtractStep(regex=r"answer is (\d+)|#### (\d+)", take="last"), ExtractStep(map={"7": "seven"})]
    extract = Extractor(steps)
    assert extract("the answer is 5 ... #### 7") == "seven"
    assert extract("nothing here") is None
    assert extract.nothing == 1
    assert Extractor([ExtractStep(until="\n", strip=True, lower=True, remove="[.]")])(" YES.\nno") == "yes"


def test_a_pattern_that_runs_away_finds_nothing() -> None:
    extract = Extractor([ExtractStep(regex=r"^(\w+\s?)*$")])
    assert extract("a " * 40 + "!") is None
    assert extract.late in (0, 1)  # the library may see through it
    slow = Extractor([ExtractStep(regex=r"(x+x+)+y")])
    assert slow("x" * 5000) is None
    assert slow.nothing == 1
