"""Facts about number formats: what is refused, what is scaled, and how close float8 products are."""

import math

import pytest
import torch

from catena.core.errors import EnvironmentProblem, UsageError
from catena.core.stage import Context
from catena.models.presets import build
from catena.train import precision
from catena.train.float8 import Float8Linear, use_float8, without_float8
from catena.train.precision import LossScale, choose_device, prepare, settle_precision
from catena.train.settings import TrainConfig
from catena.train.speed import Speed, flops_per_token, peak_flops

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="the machine has a GPU")
def test_missing_gpu_is_said_plainly() -> None:
    with pytest.raises(EnvironmentProblem, match="no CUDA GPU"):
        choose_device(TrainConfig(device="cuda"))


def test_float8_and_compiling_are_refused_on_a_cpu(context: Context) -> None:
    with pytest.raises(UsageError, match="float8 is for GPUs"):
        settle_precision(context, TrainConfig(precision="float8"), CPU)
    with pytest.raises(UsageError, match="compiling is for GPUs"):
        prepare(build("llama-nano", 70, 0), TrainConfig(compile="on"), CPU, 10)


def test_settled_format_is_kept_for_a_training_that_goes_on(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fastest", lambda device: (torch.bfloat16, 1))
    assert settle_precision(context, TrainConfig(), CPU) == "bfloat16"
    monkeypatch.setattr(precision, "fastest", lambda device: (torch.float32, 1))
    assert settle_precision(context, TrainConfig(), CPU) == "bfloat16"
    assert settle_precision(context, TrainConfig(precision="float32"), CPU) == "float32"


def test_other_processes_wait_for_the_format_that_the_main_one_measures(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(precision, "SETTLED_WITHIN_S", 0.05)
    with pytest.raises(EnvironmentProblem, match="has not settled"):
        settle_precision(context, TrainConfig(), CPU)


def test_scale_of_float16_losses_halves_at_an_overflow_and_doubles_after_a_long_time() -> None:
    scale = LossScale()
    scale.learn(False)
    assert scale.value == 32768
    for _ in range(precision.GROWS_AFTER):
        scale.learn(True)
    assert (scale.value, scale.finite_in_a_row) == (65536, 0)
    for _ in range(100):
        scale.learn(False)
    assert scale.value == 1


def test_float8_layers_are_near_the_plain_ones_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(256, 512)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 8))
    model[0].load_state_dict(plain.state_dict())
    assert use_float8(model) == 1  # the small one stays as it is
    assert type(model[0]) is Float8Linear
    inputs = torch.randn(2, 16, 256)
    one, other = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    expected, got = plain(one), model[0](other)
    expected.square().sum().backward()
    got.float().square().sum().backward()
    for a, b in ((expected, got.float()), (one.grad, other.grad), (plain.weight.grad, model[0].weight.grad)):
        assert a is not None
        assert b is not None
        assert torch.linalg.vector_norm(a - b) < 0.08 * torch.linalg.vector_norm(a)
    without_float8(model)
    assert type(model[0]) is torch.nn.Linear


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_trains_in_float8_and_compiled() -> None:
    if torch.cuda.get_device_capability() < precision.FLOAT8_CAPABILITY:
        pytest.skip("the GPU has no float8")
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 256)).cuda()
    prepare(model, TrainConfig(precision="float8"), torch.device("cuda"), 10)
    loss = model(torch.randn(32, 256, device="cuda")).float().square().mean()
    loss.backward()
    assert math.isfinite(float(loss))


def test_operations_of_a_step_are_six_for_each_weight_and_four_for_a_frozen_one() -> None:
    model = build("llama-nano", 300, 0)
    weights = sum(parameter.numel() for parameter in model.parameters())  # the head shares the embedding's
    cost, attention = flops_per_token(model)
    assert cost == 6 * weights
    assert attention == 6 * model.config.num_hidden_layers * model.config.hidden_size
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert flops_per_token(model)[0] == 4 * weights


def test_speed_has_no_share_of_a_peak_that_is_not_known() -> None:
    assert peak_flops("float32", "cpu") > 1e8
    assert set(Speed(build("llama-nano", 300, 0), 0.0).read()) == {"tokens_per_s"}
    assert set(Speed(build("llama-nano", 300, 0), 1e9).read()) == {"tokens_per_s", "mfu"}
