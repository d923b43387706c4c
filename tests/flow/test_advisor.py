"""Facts about the advisor: formulas by hand, tables that agree, wishes that cannot be met, bad input."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import catena as c
from catena.cli.main import run as run_line
from catena.core.errors import CatenaError, NotFound, UsageError, WrittenError
from catena.flow.advisor import machine as machine_module, serving as serving_module
from catena.flow.advisor.machine import gpus_of
from catena.flow.advisor.need import parse_budget, parse_gpu, parse_seconds
from catena.flow.advisor.reckon import reckon
from catena.flow.advisor.tables import OpenModel, gpus, models, tasks
from catena.flow.advisor.training import shape_of_model
from catena.flow.table import STAGES

# Llama 3.1 8B by its config.json, and an A100's data sheet, for the sums below.
LAYER = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336
MATRICES = 32 * LAYER


def value(advice: Any, name: str) -> float:
    numbers = [*advice.choice.serving.numbers, *(advice.choice.training.numbers if advice.choice.training else ())]
    return float(next(one.value for one in numbers if one.name == name))


def llama(**fields: Any) -> Any:
    return c.advise(gpu="a100", model="llama-3.1-8b", **{"train": "none", **fields})


def test_a_formula_is_what_is_computed() -> None:
    number = reckon("area", "max(width, 2) * ceil(height / 2) ** 2", "m2", width=3, height=5)
    assert number.value == 27
    assert number.line() == "area = 27 m2 = max(width, 2) * ceil(height / 2) ** 2; width 3, height 5"
    with pytest.raises(AssertionError, match="stray"):
        reckon("area", "width * 2", width=3, stray=1)
    with pytest.raises(ValueError, match="cannot have"):
        reckon("area", "width.real", width=3)


def test_serving_memory_by_hand() -> None:
    advice = llama(users=8, context=4096)
    assert advice.choice.serving.format.name == "bfloat16"
    assert value(advice, "weights") == pytest.approx(8.03e9 * 2 / 1e9)
    # 128 KiB for each token: 2 x 32 layers x 1024 x 2 bytes
    assert value(advice, "cache") == pytest.approx(8 * 4096 * 131072 / 1e9)
    scratch = (2048 * (4 * 4096 + 3 * 14336) * 2 + 8 * 128256 * 4) / 1e9
    assert value(advice, "memory") == pytest.approx(16.06 + 4.294967296 + scratch)


def test_speed_by_hand() -> None:
    advice = llama(users=8, prompt=512, new=256)
    read = MATRICES * 2 + 128256 * 4096 * 2 + 8 * (512 + 128) * 131072
    step = read / (2039e9 * 0.6)
    assert value(advice, "step") == pytest.approx(step)
    assert value(advice, "user_tokens") == pytest.approx(1 / step)
    assert value(advice, "tokens") == pytest.approx(8 / step)
    operations = 512 * (2 * MATRICES + 2 * 32 * 512 * 4096) + 2 * 128256 * 4096
    assert value(advice, "latency") == pytest.approx(operations / (312e12 * 0.4))
    assert 0.05 < value(advice, "latency") < 0.07


def test_many_users_are_bound_by_products_and_not_by_memory() -> None:
    advice = llama(users=400, prompt=16, new=16, context=32)
    products = 2 * (MATRICES + 128256 * 4096) * 400 / (312e12 * 0.4)
    assert value(advice, "step") == pytest.approx(products)


def test_two_gpus_share_the_weights_and_pay_for_the_link() -> None:
    advice = c.advise(gpu="a100:2", model="llama-3.1-70b", train="none")
    assert (advice.choice.serving.format.name, advice.choice.serving.tensor) == ("int8", 2)
    sent = 8 * 8192 * 2 * 2 * (1 / 2) / 300e9
    assert value(advice, "step_link") == pytest.approx(2 * 80 * (sent + 1e-5))


def test_four_bits_by_hand() -> None:
    advice = c.advise(gpu="l4", model="qwen3-14b", train="none", users=1, speed=0)
    assert advice.choice.serving.format.name == "fp8"
    matrices = 40 * (2 * 5120 * (5120 + 1024) + 3 * 5120 * 17408)
    assert value(advice, "weights") == pytest.approx((matrices + (14.8e9 - matrices) * 2) / 1e9)
    rounded = c.advise(gpu="t4", model="qwen3-14b", train="none", users=1, speed=0)
    assert rounded.choice.serving.format.name == "int4"
    assert value(rounded, "weights") == pytest.approx((matrices * 4.125 / 8 + (14.8e9 - matrices) * 2) / 1e9)


def test_encoders_and_encoder_decoders_by_hand() -> None:
    bert = c.advise("classification", gpu="t4", model="bert-base", prompt=128)
    matrices = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    assert value(bert, "prompt_operations") == pytest.approx(128 * (2 * matrices + 4 * 12 * 128 * 768))
    assert value(bert, "texts") == pytest.approx(65e12 * 0.4 / value(bert, "prompt_operations"))
    t5 = c.advise("translation", gpu="t4", model="t5-base", train="none", prompt=100, new=50, users=2)
    decoder = 12 * (8 * 768 * 768 + 2 * 768 * 3072)
    read = (decoder + 32128 * 768) * 2 + 2 * (100 + 25) * 2 * 12 * 768 * 2
    assert value(t5, "read") == pytest.approx(read / 1e9)


def test_cost_by_hand() -> None:
    advice = llama(price=2.0)
    assert value(advice, "cost_month") == 1460
    assert value(advice, "cost_million_tokens") == pytest.approx(2 / (value(advice, "tokens") * 3600) * 1e6)
    assert value(advice, "energy_day") == pytest.approx(9.6)


def test_lora_by_hand() -> None:
    advice = llama(train="lora", rank=8, train_tokens=1_000_000)
    widths = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert value(advice, "adapter") == 8 * 32 * widths
    speed = 312e12 * 0.4 / (4 * (MATRICES + 128256 * 4096) + 6 * 32 * 2048 * 4096)
    assert value(advice, "train_tokens_s") == pytest.approx(speed)
    assert value(advice, "train_hours") == pytest.approx(1e6 / speed / 3600)


def test_all_weights_are_what_the_planner_says() -> None:
    from catena.train.planner import PlanConfig, plan_training

    advice = c.advise("chat", gpu="h100:8", model="llama-3.2-1b", train="full")
    config = PlanConfig(memory=80, link=450, batch_size=32, sequence_length=2048)
    planned = plan_training(shape_of_model(models()["llama-3.2-1b"]), config)
    best = next(one for one in planned.candidates if not one.layout.checkpointing)
    assert value(advice, "train_memory") == pytest.approx(best.memory / 1e9)
    assert advice.choice.training.plan == best.layout.label()


@pytest.mark.parametrize("name", models())
def test_a_model_has_as_many_parameters_as_its_widths_say(name: str) -> None:
    model: OpenModel = models()[name]
    ends = model.vocabulary * model.hidden * (1 if model.tied or model.kind == "encoder" else 2)
    positions = model.context * model.hidden if model.family in ("gpt2", "bert") else 0
    assert model.matrices + ends + positions == pytest.approx(model.parameters, rel=0.015)
    assert shape_of_model(model).layer_parameters * shape_of_model(model).layers == pytest.approx(
        model.matrices, rel=0.01
    )


def test_the_tables_agree_with_each_other() -> None:
    known = tasks()
    assert {task for one in models().values() for task in one.tasks} == set(known)
    assert all(one.stage in STAGES for one in known.values())
    assert all(one.source.startswith("https://") for table in (models(), gpus()) for one in table.values())


def test_the_class_follows_the_task_and_the_language_the_model() -> None:
    chosen = c.advise("classification", language="zh", gpu="t4")
    assert chosen.choice is not None
    assert chosen.choice.model.kind == "encoder"
    assert chosen.choice.model.speaks("zh")
    assert c.advise("translation", language=["zh", "en"], gpu="t4").choice.model.kind == "encoder-decoder"
    assert c.advise(gpu="t4", licence=["apache-2.0"]).choice.model.licence == "Apache-2.0"
    assert not [one for one in c.advise(language="zh", gpu="t4").candidates if not one.model.speaks("zh")]


def test_wishes_make_it_smaller_and_the_reason_is_said() -> None:
    free, bound = c.advise(gpu="a100:2", train="none"), c.advise(gpu="a100:2", train="none", latency="100ms")
    assert bound.choice.model.parameters < free.choice.model.parameters
    assert value(bound, "latency") <= 0.1
    assert "allowed are 0.1 s" in bound.why
    cheap = c.advise(gpu="a100:8", train="none", price=2, budget="1500/month")
    assert cheap.choice.serving.used == 1
    assert value(cheap, "cost_month") == 1460


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (
            {"task": "classification", "model": "xlm-roberta-large", "prompt": 4000},
            "takes 512 tokens, asked for are 4,000",
        ),
        ({"model": "phi-4", "prompt": 16_000, "new": 500}, "takes 16,384 tokens, asked for are 16,500"),
        ({"model": "phi-4", "new": 20_000}, "takes 16,384 tokens, asked for are 20,001"),
        ({"model": "phi-4", "context": 20_000}, "takes 16,384 tokens, asked for are 20,000"),
        (
            {"task": "translation", "model": "t5-large", "prompt": 600, "new": 1100},
            "asked for are 1,100",
        ),
    ],
)
def test_lengths_that_a_model_does_not_take_are_no_advice(asked: dict[str, Any], taken: str) -> None:
    advice = c.advise(gpu="h100:4", train="none", language="en", **asked)
    assert advice.choice is None
    assert taken in advice.why


def test_what_is_asked_is_kept_in_memory_and_lengths_that_nobody_asked_for_are_cut() -> None:
    assert value(llama(prompt=30_000, new=1_000), "cache") == pytest.approx(value(llama(context=31_000), "cache"))
    assert c.advise("classification", gpu="t4", prompt=4000).choice.model.context >= 4000
    assert c.advise("summarization", gpu="t4", kind="encoder-decoder").choice is not None
    halves = c.advise("translation", gpu="a100", model="t5-large", train="none", prompt=512, new=512, context=1)
    assert value(halves, "cache") == pytest.approx(8 * 1024 * 2 * 24 * 1024 * 2 / 1e9)


@pytest.mark.parametrize("wishes", [{}, {"users": 100, "speed": 60}, {"price": 2.0, "budget": "9/hour"}])
def test_leaving_out_copies_that_nobody_would_choose_changes_no_advice(
    monkeypatch: pytest.MonkeyPatch, wishes: dict[str, Any]
) -> None:
    few = c.advise(gpu="l4:7", train="none", **wishes)

    def every(model: OpenModel, machine: Any, need: Any) -> list[tuple[int, int]]:
        sizes = [one for one in range(1, 8) if not (model.heads % one or (model.key_value_heads or model.heads) % one)]
        return [(tensor, replicas) for tensor in sizes for replicas in range(1, 7 // tensor + 1)]

    monkeypatch.setattr(serving_module, "_shares", every)
    best = [one.choice or one.nearest for one in (few, c.advise(gpu="l4:7", train="none", **wishes))]
    assert best[0].record() == best[1].record()


def test_nothing_fits_and_the_nearest_is_named_with_what_would_hold_it(capsys: pytest.CaptureFixture[str]) -> None:
    advice = c.advise(gpu="t4", model="llama-3.1-70b", train="none")
    assert advice.choice is None
    assert "Nothing fits on NVIDIA T4. The nearest, llama-3.1-70b in int4: needs 50.8 GB a GPU of 14.7 GB" in advice.why
    assert "It would fit on 4 x NVIDIA T4 (--gpu t4:4)" in advice.why
    assert run_line(["advise", "--gpu", "t4", "--model", "llama-3.1-70b", "--set", "train=none"]) == 4
    assert "Nothing fits" in capsys.readouterr().out
    assert "none of the table" in c.advise(gpu="t4", latency="0.1ms", language="zh").why


def test_a_processor_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"float32": 100.0, "bfloat16": 20.0}
    found = {"gflops": rates, "read_gb_per_s": 20.0, "cpu": "AVX2", "best_threads": 2}
    monkeypatch.setattr(machine_module, "measured", lambda: found)
    advice = c.advise("chat", cpu=True, model="smollm2-135m", train="none", users=1, context=512, speed=0)
    matrices = 30 * (2 * 576 * (576 + 192) + 3 * 576 * 1536)
    assert value(advice, "weights") == pytest.approx(134.5e6 * 4 / 1e9)
    read = (matrices + 49152 * 576) * 4 + (512 - 256 + 128) * 2 * 30 * 192 * 4
    assert value(advice, "read") == pytest.approx(read / 1e9, rel=0.05)
    monkeypatch.setattr(machine_module, "measured", lambda: {"error": "ended by signal 4"})
    with pytest.raises(CatenaError, match="could not be measured: ended by signal 4"):
        c.advise(cpu=True)


def test_a_file_of_ones_own_adds_models_and_gpus(tmp_path: Path) -> None:
    own = tmp_path / "gpus.yaml"
    own.write_text("mine: {name: My GPU, memory: 12, bandwidth: 400, tflops: 50, link: 16, source: a label}\n")
    assert c.advise(gpu="mine", gpus_file=own, train="none").choice is not None
    values = models()["llama-3.2-1b"].model_dump(mode="json") | {"parameters": "1.24e9"}
    table = tmp_path / "models.yaml"
    table.write_text(json.dumps({"ours-1b": values}))
    assert c.advise(gpu="a100", models_file=table, model="ours-1b").choice.name == "ours-1b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {memry: 3}", "mine.memry: unknown key 'memry'. Did you mean 'memory'?"),
        ("mine: 3", "1: mine is no mapping"),
        ("[]", "a table is a mapping"),
        ("mine: {name: x, memory: -1, bandwidth: 1, tflops: 1, link: 1, source: s}", "mine.memory"),
        ("mine: {", "not valid YAML"),
    ],
)
def test_a_table_with_mistakes_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    own = tmp_path / "gpus.yaml"
    own.write_text(text)
    with pytest.raises(WrittenError) as error:
        c.advise(gpu="mine", gpus_file=own)
    assert message in str(error.value)


def test_a_model_whose_numbers_contradict_each_other_is_refused(tmp_path: Path) -> None:
    values = models()["llama-3.2-1b"].model_dump(mode="json") | {"parameters": 1e6}
    table = tmp_path / "models.yaml"
    table.write_text(json.dumps({"ours": values}))
    with pytest.raises(WrittenError, match="its layers alone have"):
        c.advise(gpu="a100", models_file=table)


@pytest.mark.parametrize(
    ("asked", "message", "hint"),
    [
        ({"task": "chatt", "gpu": "a100"}, "there is no task 'chatt'", "Did you mean 'chat'?"),
        ({"gpu": "a10O"}, "there is no GPU 'a10o'", "Did you mean"),
        ({"gpu": "a100:0"}, "is no GPU and number", "a100:2"),
        ({}, "either which GPU, or cpu", "--cpu"),
        ({"gpu": "a100", "cpu": True}, "either which GPU, or cpu", "--cpu"),
        ({"gpu": "a100:99999"}, "is no GPU and number", "at most 65,536"),
        ({"gpu": "a100", "latency": "soon"}, "is no time", "200ms"),
        ({"gpu": "a100", "budget": "100"}, "a budget needs a price", "--price"),
        ({"gpu": "a100", "budget": "much", "price": 1}, "is no budget", "1500/month"),
        ({"gpu": "a100", "language": "chinese"}, "is no code of a language", "Did you mean 'zh'?"),
        ({"gpu": "a100", "model": "qwen3-9b"}, "there is no model 'qwen3-9b'", "Did you mean 'qwen3-"),
        ({"gpu": "a100", "user": 3}, "unknown key 'user'. Did you mean 'users'?", ""),
        ({"gpu": "a100", "licence": ["GPL-3.0"]}, "has the licence GPL-3.0", "Known"),
        ({"gpu": "a100", "kind": "encoder"}, "no encoder of the table is meant for chat", "--models"),
        ({"gpu": "a100", "users": -1}, "users", ""),
    ],
)
def test_bad_wishes_say_what_was_meant(asked: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises((UsageError, NotFound)) as error:
        c.advise(**asked)
    assert message in error.value.message
    assert hint in error.value.hint


def test_how_people_write_things() -> None:
    assert [parse_seconds(text) for text in ("200ms", "1.5s", "2")] == [0.2, 1.5, 2.0]
    assert [parse_gpu(text) for text in ("A100", "h100:8")] == [("a100", 1), ("h100", 8)]
    assert [parse_budget(text) for text in ("2000", "1500/month", "4.5 / hour")] == [
        (2000, "training"),
        (1500, "month"),
        (4.5, "hour"),
    ]
    assert gpus_of("t4:2", gpus()).count == 2


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["advise", "--task", "chat", "--language", "zh", "--gpu", "a100:2", "--latency", "200ms"]
    assert run_line([*line, "--price", "2", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "memory = " in out
    assert "(weights + cache) / tensor + scratch; weights" in out
    assert run_line([*line, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record) == {"need", "machine", "choice", "nearest", "why", "candidates"}
    for candidate in record["candidates"]:
        for number in candidate["serving"]["numbers"].values():
            again = reckon(number["name"], number["formula"], number["unit"], **number["inputs"])
            assert again.value == pytest.approx(number["value"])


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"gflops": {"float32": 200.0}, "read_gb_per_s": 30.0, "cpu": "AVX2", "best_threads": 4}
    monkeypatch.setattr(machine_module, "measured", lambda: found)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "advisor.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for kind, name, body in blocks:
        if kind == "yaml":
            (tmp_path / name).write_text(body, encoding="utf-8")
    lines = [line for kind, _, body in blocks if kind == "sh" for line in body.splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert run_line([*shlex.split(line)[1:], "--quiet"]) == 0, line
    for kind, _, body in blocks:
        if kind == "python":
            exec(body, {})


@pytest.mark.parametrize("table", [models, gpus], ids=["models", "gpus"])
def test_every_row_says_where_its_numbers_can_be_read_again(table: Any) -> None:
    for name, row in table().items():
        assert re.fullmatch(r"https://[\w.-]+/\S+", row.source), name
    told = {name for name, row in table().items() if row.checked}
    assert len(told) > len(table()) // 2
    page = (Path(__file__).parents[2] / "docs" / "advisor.md").read_text(encoding="utf-8")
    assert f"{len(told)} of {len(table())}" in page


DEFAULTS = {
    "gpt2-124m": ("GPT2Config", {"n_embd": "hidden", "n_layer": "layers", "n_head": "heads", "n_positions": "context"}),
    "bert-base": ("BertConfig", {"intermediate_size": "feed_forward", "max_position_embeddings": "context"}),
    "modernbert-base": (
        "ModernBertConfig",
        {"intermediate_size": "feed_forward", "max_position_embeddings": "context"},
    ),
    "t5-small": ("T5Config", {"d_model": "hidden", "d_ff": "feed_forward", "num_layers": "layers", "d_kv": "head_dim"}),
    "mt5-small": (
        "MT5Config",
        {"d_model": "hidden", "d_ff": "feed_forward", "num_layers": "layers", "d_kv": "head_dim"},
    ),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_row_agrees_with_the_defaults_of_transformers(name: str) -> None:
    import transformers

    row = models()[name]
    kind, fields = DEFAULTS[name]
    config = getattr(transformers, kind)()
    assert kind in row.checked
    if "hidden_size" in config.to_dict():
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
            row.hidden,
            row.layers,
            row.heads,
        )
    assert {theirs: getattr(config, theirs) for theirs in fields} == {
        theirs: getattr(row, ours) for theirs, ours in fields.items()
    }
