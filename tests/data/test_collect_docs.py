"""Every example of the page about connectors is a step that a recipe may hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from catena.core.config import parse
from catena.core.stage import stage_of
from catena.flow.table import STAGES

PAGE = Path(__file__).parents[2] / "docs" / "connectors.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_is_a_valid_step(example: str) -> None:
    ((_, step),) = yaml.safe_load(example).items()
    parse(stage_of(STAGES.load(step["stage"])).config, step["with"])


def test_every_connector_has_an_example() -> None:
    shown = {step["stage"] for example in EXAMPLES for step in yaml.safe_load(example).values()}
    ours = {"data.collect_feedback"}  # of answers that were served: docs/feedback.md
    assert shown == {name for name in STAGES if name.startswith("data.collect_")} - ours | {"data.crawl"}
