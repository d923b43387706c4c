"""Facts about presets: known sizes, weights decided by the seed alone, unknown names answered with the closest."""

import pytest
import torch

from catena.core.errors import ConfigError
from catena.models.presets import build, preset, presets


def test_llama_4m_has_between_4_and_5_million_parameters() -> None:
    model = build("llama-4m", 4096, 0)
    assert 4.0e6 < sum(parameter.numel() for parameter in model.parameters()) < 5.0e6
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == 512


def test_every_preset_is_consistent() -> None:
    for name, shape in presets().items():
        assert shape.hidden % shape.heads == 0, name
        assert shape.heads % shape.key_value_heads == 0, name
        assert shape.parameters, name


def test_weights_depend_on_the_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    one = build("llama-nano", 300, 5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two, three = build("llama-nano", 300, 5), build("llama-nano", 300, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, three.lm_head.weight)


def test_unknown_preset_is_answered_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="llama-4n") as caught:
        preset("llama-4n")
    assert "Did you mean" in caught.value.hint
