"""Models whose cache cannot be paged: they decode in padded batches, and answer as `generate` does all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t

from catena.core.errors import UsageError
from catena.core.generate import Request, SamplingParams
from catena.infer.capacity import EngineConfig
from catena.infer.engine import Engine
from catena.infer.linears import PanelLinear
from catena.infer.unpaged import UnpagedRunner
from catena.models import native
from tests.infer.architectures import FAMILIES, SHAPE, _mamba
from tests.infer.test_parity import Numbers, prompts

ANSWER = 10
pytestmark = pytest.mark.filterwarnings("ignore:.*is falling back to its reference", "ignore:.*use_mamba_kernels")


def alibi() -> Any:
    shape = {**SHAPE, "alibi": True, "multi_query": True, "new_decoder_architecture": False}
    del shape["num_key_value_heads"]
    return t.FalconForCausalLM(t.FalconConfig(**shape))


def lfm2() -> Any:
    return t.Lfm2ForCausalLM(t.Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"], conv_L_cache=3))


def jamba(**other: Any) -> Any:
    parts = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    return t.JambaForCausalLM(t.JambaConfig(**{**SHAPE, **other}, **parts, num_experts=2, mamba_d_state=8))


LAID_OUT = {"hidden_size": 64}
"""So wide that its layers are laid out in panels, whose rows it looks at beside."""


KINDS: dict[str, tuple[Callable[[], Any], bool]] = {
    "falcon": (FAMILIES["falcon"], True),
    "falcon-alibi": (alibi, True),
    "lfm2": (lfm2, True),
    "mamba": (_mamba, False),
    "mamba-wide": (lambda: _mamba(**LAID_OUT, time_step_rank=32), False),
    "jamba": (jamba, False),
    "jamba-wide": (lambda: jamba(**LAID_OUT, mamba_dt_rank=32), False),
}
"""Each with whether it goes on with a prompt that was cut."""


@pytest.fixture(autouse=True)
def float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let float32 be laid out whatever is faster here."""
    monkeypatch.setattr(native, "wins_at_many", lambda dtype: True)


def built(kind: str) -> Any:
    torch.manual_seed(3)
    model = KINDS[kind][0]().float().eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def counted(engine: Engine) -> list[int]:
    """Note the rows of every call of the model."""
    rows: list[int] = []
    forward = engine.runner._forward

    def noting(ids: Any, held: Any, cache: Any) -> Any:
        rows.append(len(ids))
        return forward(ids, held, cache)

    engine.runner._forward = noting
    return rows


@pytest.mark.parametrize("kind", list(KINDS))
def test_they_decode_together_and_answer_as_generate_does(kind: str) -> None:
    model, given, expected = built(kind), prompts()[:9], {}
    for number, prompt in enumerate(given):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False)
        expected[str(number)] = out[0, len(prompt) :].tolist()
    engine = Engine(model, Numbers(), EngineConfig(block_size=8, token_budget=40))  # the longest prompt has 64
    assert isinstance(engine.runner, UnpagedRunner)
    laid_out = [layer for layer in model.modules() if isinstance(layer, PanelLinear)]
    if "wide" in kind:
        assert {layer.panels is None for layer in laid_out} == {True, False}, "of some it looks at the rows"
    assert (engine.runner.batched, engine.runner.resumes) == (True, KINDS[kind][1])
    rows = counted(engine)
    # Answers of other lengths: the batch changes under way.
    asked = [Request(str(at), one, SamplingParams(max_tokens=ANSWER - at % 4)) for at, one in enumerate(given)]
    for done in engine.generate(asked):
        assert list(done.token_ids) == expected[done.request_id][: len(done.token_ids)], done.request_id
        assert len(done.token_ids) == ANSWER - int(done.request_id) % 4
    assert max(rows) == len(given)
    assert engine.stats()["cache_blocks_used"] == 0
    assert not engine.runner._caches
    assert engine.runner._joined is None


def test_prompts_are_scored_in_pieces_as_in_whole() -> None:
    prompt = prompts()[4]
    for kind in ("falcon", "jamba"):
        told = []
        for budget in (24, 512):
            engine = Engine(built(kind), Numbers(), EngineConfig(block_size=8, token_budget=budget, max_running=4))
            [done] = engine.score([Request("s", prompt)])
            told.append(done.logprobs)
        assert told[0] == pytest.approx(told[1], abs=1e-4)


def test_a_model_that_forgets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = UnpagedRunner._forward
    monkeypatch.setattr(UnpagedRunner, "_forward", lambda self, ids, held, cache: forward(self, ids, [0], None))
    with pytest.raises(UsageError, match="does not go on from its cache"):
        Engine(built("falcon"), Numbers())
