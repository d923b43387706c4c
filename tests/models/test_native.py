"""Our own products with weights in panels: exact, for any number of rows, in any company; and a life without."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from catena.models import native
from catena.models.quant import SCHEMES

wanted = pytest.mark.skipif(native.library() is None and not os.environ.get("CI"), reason="no C compiler here")
OUTPUTS, INPUTS = 80, 192
"""Two and a half panels; int8 groups of 192."""


FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def rounded(scheme: str, *, bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return SCHEMES[scheme].rounded(nn.Linear(INPUTS, OUTPUTS, bias=bias, dtype=torch.bfloat16), 32)


def panels(kind: str) -> tuple[native.Panels, Tensor]:
    """Return a weight in panels, and in float64."""
    if kind in FLOATS:
        torch.manual_seed(0)
        weight = torch.randn(OUTPUTS, INPUTS).to(FLOATS[kind])
        return native.Panels(native.FLOATS[weight.dtype], weight), weight.double()
    layer = rounded(kind)
    exact = layer.dense_weight(torch.float64)
    assert layer.prepack_(torch.bfloat16)
    return layer.panels, exact


@pytest.fixture(params=["this processor", "any processor"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library as it is, and without the instructions that only some processors have."""
    if request.param == "any processor":
        native.library.cache_clear()
        monkeypatch.setattr(native, "FLAGS", ("-O1", "-shared", "-fPIC", "-fopenmp", "-Wno-psabi"))
    yield
    if request.param == "any processor":
        native.library.cache_clear()


@wanted
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("kind", "error"), [("float32", 1e-6), ("bfloat16", 3e-3), ("int8", 1e-4), ("int4", 1e-4), ("w8a8", 0.02)]
)
def test_products_are_those_of_the_numbers(kind: str, error: float) -> None:
    packed, exact = panels(kind)
    torch.manual_seed(1)
    inputs = torch.randn(53, INPUTS)
    expected = inputs.double() @ exact.T
    whole = packed.product(inputs)
    assert ((whole - expected).norm() / expected.norm()).item() < error
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for rows in (1, 2, 3, 5, 7, 12, 13, 16, 17, 31):
                assert torch.equal(packed.product(inputs[:rows]), whole[:rows]), (rows, threads)
    finally:
        torch.set_num_threads(before)


@wanted
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
def test_a_weight_can_be_had_back(kind: str) -> None:
    packed, exact = panels(kind)
    if kind in FLOATS:
        assert torch.equal(packed.numbers().double(), exact)
        return
    layer = rounded(kind)
    before = layer.dense_weight()
    assert layer.prepack_(torch.bfloat16)
    assert layer.prepack_(torch.bfloat16)
    assert torch.equal(layer.dense_weight(), before)


@wanted
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4", "w8a8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none_and_spoils_its_own_row_only(kind: str, bad: float) -> None:
    packed, _ = panels(kind)
    inputs = torch.ones(3, INPUTS)
    inputs[1, 100] = bad
    found = packed.product(inputs)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@wanted
@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("kind", ["int8", "int4", "w8a8"])
@pytest.mark.parametrize("many", [True, False])
def test_a_prepared_layer_gives_what_it_gave(rows: int, kind: str, many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "wins_at_many", lambda _: many)
    packed = rounded(kind, bias=True)
    inputs = torch.randn(1, rows, INPUTS).to(torch.bfloat16)
    with torch.inference_mode():
        before = packed(inputs)
        assert packed.prepack_(torch.bfloat16)
        after = packed(inputs)
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after.float(), before.float(), atol=0.02, rtol=0.02)


def test_it_can_be_turned_off_and_does_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.cache_clear()
    monkeypatch.setenv("CATENA_NATIVE", "0")
    try:
        assert native.library() is None
        monkeypatch.delenv("CATENA_NATIVE")
        native.library.cache_clear()
        monkeypatch.setenv("PATH", "")
        assert native.library() is None
        assert not native.takes(64, 64)
        assert rounded("int8").prepack_(torch.float32) is False
    finally:
        native.library.cache_clear()


def test_a_compiler_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    native.library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("--no-such-flag",))
    try:
        assert native.library() is None
    finally:
        native.library.cache_clear()


@wanted
def test_which_is_faster_at_many_rows_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_wins", {})
    told = {dtype: native.wins_at_many(dtype) for dtype in FLOATS.values()}
    assert native._wins == told
    for dtype, wins in told.items():
        native._wins[dtype] = not wins
        assert native.wins_at_many(dtype) != wins, "measured once"


@wanted
def test_weights_lie_one_behind_the_other_and_go_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = native._Arena()
    monkeypatch.setattr(native, "_arena", arena)
    weight = torch.ones(64, 96, dtype=torch.bfloat16)
    first, second = native.Panels(native.BF16, weight), native.Panels(native.BF16, weight)
    assert second.weight.data_ptr() - first.weight.data_ptr() == weight.nbytes
    large = native.Panels(native.INT8, torch.zeros(32, native.CHUNK // 32 + 32, dtype=torch.int8), torch.ones(32, 1))
    assert large.weight.data_ptr() % native.PAGE == 0
    del first, second
    assert arena._chunk() is not None
    del large
    assert arena._chunk() is None


@wanted
def test_a_weight_is_cut_between_panels_only() -> None:
    packed, _ = panels("int4")
    packed.bias = torch.randn(OUTPUTS)
    packed.record.bias = packed.bias.data_ptr()
    inputs = torch.randn(3, INPUTS)
    whole, found = packed.product(inputs), []
    for part in native.cut(packed.record, [32, OUTPUTS - 32]):
        packed.record, packed.outputs = part, part.outputs
        found.append(packed.product(inputs))
    assert torch.equal(torch.cat(found, dim=1), whole)
    with pytest.raises(ValueError, match="joined"):
        native.cut(part, [16, 32])
