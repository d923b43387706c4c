"""What a test needs of the machine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def cannot_be_had(reason: str) -> NoReturn:
    """Skip the test; where CI is set, nothing may be missing, and it fails."""
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
