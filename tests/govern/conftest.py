"""What the tests of governance share: an index with keys, and a way to take the index away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from catena.core.errors import EnvironmentProblem
from catena.govern.access import Access
from catena.govern.config import AuthConfig
from catena.govern.crypto import open_signer
from catena.govern.keys import KeyRecord, Keys
from catena.hub.store import Store


class Switch:
    """The index as `Access` asks it; `away` says that it cannot be reached."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.away = False

    def __call__(self) -> Sequence[KeyRecord]:
        if self.away:
            raise EnvironmentProblem("the index is away")
        return self._keys.all()


@pytest.fixture
def keys(store: Store) -> Keys:
    """The keys of an empty workspace."""
    return Keys(store.index)


@pytest.fixture
def switch(keys: Keys) -> Switch:
    """The way to the index."""
    return Switch(keys)


@pytest.fixture
def access_of(store: Store, switch: Switch) -> Iterator[Callable[..., Access]]:
    """Return a function that opens an `Access` over the workspace."""
    opened: list[Access] = []

    def make(**options: object) -> Access:
        config = AuthConfig.model_validate({"refresh_s": 3600, **options})
        opened.append(Access(switch, store.root, open_signer(store.root), config).open())
        return opened[-1]

    yield make
    for access in opened:
        access.close()
