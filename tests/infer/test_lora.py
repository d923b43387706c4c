"""Many adapters beside one model: each request gets the answer that plain PEFT gives with its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from catena.core.errors import DataError, UsageError
from catena.core.generate import Request, SamplingParams
from catena.infer.engine import Engine
from tests.infer.architectures import build
from tests.infer.test_parity import Numbers

# PEFT 0.21 asks transformers for a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
PROMPT = [7, 9, 30, 7, 44, 9, 21, 8, 60, 61, 62, 63, 64, 65, 66, 67, 68]
ANSWER = 8


def adapter(folder: Path, seed: int, family: str = "llama", **settings: Any) -> Path:
    """Write an adapter with random weights, large enough to change answers."""
    torch.manual_seed(seed)
    adapted = get_peft_model(build(family), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    adapted.save_pretrained(folder)
    return folder


def by_peft(folder: Path, family: str = "llama") -> list[int]:
    model = PeftModel.from_pretrained(build(family), folder).eval()
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False)
    return out[0, len(PROMPT) :].tolist()


def ask(engine: Engine, *names: str) -> list[list[int]]:
    params = SamplingParams(max_tokens=ANSWER)
    requests = [Request(str(at), PROMPT, params, adapter=name) for at, name in enumerate(names)]
    answers = {int(done.request_id): list(done.token_ids) for done in engine.generate(requests)}
    return [answers[at] for at in range(len(names))]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_requests_with_other_adapters_share_a_step(tmp_path: Path, family: str) -> None:
    layers = ["c_attn", "c_fc"] if family == "gpt2" else "all-linear"
    flipped = family == "gpt2"
    first = adapter(tmp_path / "1", 1, family, r=4, target_modules=layers, fan_in_fan_out=flipped)
    second = adapter(
        tmp_path / "2", 2, family, r=2, lora_alpha=3, use_rslora=True, target_modules=layers, fan_in_fan_out=flipped
    )
    engine = Engine(build(family), Numbers())
    plain = ask(engine, "")[0]
    engine.load_adapter("one", first)
    engine.load_adapter("two", second)
    assert engine.adapters == ["one", "two"]
    alone = [by_peft(folder, family) for folder in (first, second)]
    assert ask(engine, "one", "", "two", "one") == [alone[0], plain, alone[1], alone[0]]
    assert len({tuple(answer) for answer in ask(engine, "", "one", "two")}) == 3


def test_an_adapter_that_comes_again_is_another_one(tmp_path: Path) -> None:
    old = adapter(tmp_path / "old", 1, target_modules=["q_proj", "v_proj"])
    new = adapter(tmp_path / "new", 2, target_modules=["q_proj", "v_proj"])
    engine = Engine(build("llama"), Numbers())
    engine.load_adapter("a", old)
    assert ask(engine, "a") == [by_peft(old)]
    engine.load_adapter("a", new)
    assert ask(engine, "a") == [by_peft(new)], "nothing comes from the old one's prefix cache"
    engine.unload_adapter("a")
    with pytest.raises(UsageError, match="no adapter 'a'"):
        ask(engine, "a")


def test_what_cannot_stand_beside_others_is_refused(tmp_path: Path) -> None:
    engine = Engine(build("llama"), Numbers())
    dora = adapter(tmp_path / "dora", 1, use_dora=True, target_modules=["q_proj"])
    with pytest.raises(UsageError, match="dora"):
        engine.load_adapter("a", dora)
    wide = adapter(tmp_path / "other", 1, "gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(DataError, match="does not fit"):
        engine.load_adapter("a", wide)
    half = adapter(tmp_path / "half", 1, target_modules=["q_proj"])
    tensors = load_file(half / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, half / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="does not fit"):
        engine.load_adapter("a", half)
    (half / "adapter_model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(DataError, match="cannot be read"):
        engine.load_adapter("a", half)
    assert engine.adapters == []
