"""Facts about presets: sizes as told, weights decided by the seed alone, unknown names answered with the closest."""

import pytest
import torch

from catena.core.errors import ConfigError
from catena.models.presets import build, preset, presets

UNITS = {"M": 1e6, "B": 1e9}
SMALL = sorted(name for name in presets() if name.endswith("-nano"))


def told(parameters: str) -> float:
    return float(parameters[:-1]) * UNITS[parameters[-1]]


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_has_as_many_parameters_as_it_says(name: str) -> None:
    shape = presets()[name]
    with torch.device("meta"):
        model = build(shape, shape.vocabulary, 0)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == pytest.approx(told(shape.parameters), rel=0.02)


def test_presets_go_from_5_million_to_70_billion() -> None:
    sizes = sorted(told(shape.parameters) for shape in presets().values() if shape.family == "llama")
    assert sizes[0] < 5e6 <= 5.1e6
    assert sizes[-1] > 70e9


def test_llama_4m_has_between_4_and_5_million_parameters() -> None:
    model = build("llama-4m", 4096, 0)
    assert 4.0e6 < sum(parameter.numel() for parameter in model.parameters()) < 5.0e6
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == 512


def test_every_preset_is_consistent() -> None:
    for name, shape in presets().items():
        assert shape.head_dim or shape.hidden % shape.heads == 0, name
        assert shape.heads % (shape.key_value_heads or shape.heads) == 0, name
        assert shape.parameters, name


@pytest.mark.parametrize("name", SMALL)
def test_weights_depend_on_the_seed_and_nothing_else(name: str) -> None:
    torch.manual_seed(1)
    one = build(name, 300, 5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two, three = build(name, 300, 5), build(name, 300, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    embedding, other = (model.get_input_embeddings().weight for model in (one, three))
    assert not torch.equal(embedding, other)


@pytest.mark.parametrize("name", SMALL)
def test_context_replaces_that_of_the_preset(name: str) -> None:
    config = build(name, 300, 5, context=64).config
    assert 64 in (getattr(config, "max_position_embeddings", None), getattr(config, "n_positions", None))


def test_unknown_preset_is_answered_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="llama-4n") as caught:
        preset("llama-4n")
    assert "Did you mean" in caught.value.hint


def test_a_preset_of_another_kind_is_refused_and_the_right_ones_are_named() -> None:
    with pytest.raises(ConfigError, match="is a decoder; this needs an encoder") as caught:
        preset("llama-4m", "encoder")
    assert "bert-base" in caught.value.hint
    assert preset("llama-4m", "decoder") is preset("llama-4m")
