"""Our own kernel for a few rows of int8 weights: exact sums, any number of rows, and a life without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from catena.models import few_rows
from catena.models.quant import SCHEMES

wanted = pytest.mark.skipif(few_rows.library() is None, reason="no C compiler, or no bfloat16 products here")


def layer(bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return SCHEMES["int8"].rounded(nn.Linear(160, 48, bias=bias, dtype=torch.bfloat16), 32)


@wanted
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 31, 32])
@pytest.mark.parametrize("threads", [1, 2])
def test_sums_are_those_of_the_whole_numbers(rows: int, threads: int) -> None:
    packed = layer()
    inputs = torch.randn(rows, 160).to(torch.bfloat16)
    exact = (inputs.double() @ packed.weight.double().T) * packed.weight_scale.double()[:, 0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = few_rows.int8(inputs, packed.weight, packed.weight_scale.float().contiguous())
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=2**-8)


@wanted
def test_what_is_no_number_stays_none() -> None:
    inputs = torch.full((1, 160), float("nan"), dtype=torch.bfloat16)
    packed = layer()
    assert few_rows.int8(inputs, packed.weight, packed.weight_scale.float()).isnan().all()


@wanted
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_a_prepared_layer_gives_what_it_gave(rows: int) -> None:
    packed = layer(bias=True)
    inputs = torch.randn(1, rows, 160).to(torch.bfloat16)
    with torch.inference_mode():
        before = packed(inputs)
        assert packed.prepack_(torch.bfloat16)
        after = packed(inputs)
    torch.testing.assert_close(after.float(), before.float(), atol=0.02, rtol=0.02)


def test_it_can_be_turned_off_and_does_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows.library.cache_clear()
    monkeypatch.setenv("CATENA_NATIVE", "0")
    try:
        assert few_rows.library() is None
        monkeypatch.delenv("CATENA_NATIVE")
        few_rows.library.cache_clear()
        monkeypatch.setenv("PATH", "")
        assert few_rows.library() is None
        assert not few_rows.takes(torch.zeros(4, 32, dtype=torch.int8), 32)
    finally:
        few_rows.library.cache_clear()


def test_a_compiler_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    few_rows.library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(few_rows, "FLAGS", ("--no-such-flag",))
    try:
        assert few_rows.library() is None
    finally:
        few_rows.library.cache_clear()
