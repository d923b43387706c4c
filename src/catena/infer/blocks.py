"""Block accounting for the paged key-value cache: which blocks are free, shared, or worth keeping. Numbers, no tensor.

A sequence of `n` tokens owns `ceil(n / block_size)` blocks, in any order; its block table lists them. A full block
whose keys and values are computed gets a name, the digest of all tokens up to its end; a later prompt that begins
with the same tokens takes it as it is:

    owned (by one or more) --release--> kept (named, nobody's) --evict, oldest first--> free --grow--> owned
             ^----------------- match --------------'

A named block is never written again, so sharing needs no copy: what is written next lies in a block of one's own.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

Name = bytes


def names_of(tokens: Sequence[int], block_size: int, before: Sequence[Name] = (), salt: bytes = b"") -> list[Name]:
    """Return the names of the full blocks of `tokens` that come after those in `before`.

    A name covers everything up to the block's end. `salt` sets apart what gives other keys and values (an adapter).
    """
    names: list[Name] = []
    last = before[-1] if before else salt
    for start in range(len(before) * block_size, len(tokens) - block_size + 1, block_size):
        last = blake2b(last + array("q", tokens[start : start + block_size]).tobytes(), digest_size=16).digest()
        names.append(last)
    return names


class BlockPool:
    """A fixed number of equal blocks, each `block_size` tokens long."""

    def __init__(self, total: int, block_size: int) -> None:
        assert total > 0
        assert block_size > 0
        self.total = total
        self.block_size = block_size
        # Last freed is first used: its memory is the most likely to be in the processor's cache.
        self._free = list(range(total - 1, -1, -1))
        self._owners = [0] * total
        self._names: dict[int, Name] = {}
        self._blocks: dict[Name, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Named blocks that nobody owns, the longest unused first."""

    @property
    def free(self) -> int:
        """Number of blocks that nobody owns."""
        return len(self._free) + len(self._kept)

    @property
    def tokens(self) -> int:
        """Number of tokens that the whole pool holds."""
        return self.total * self.block_size

    def missing(self, table: list[int], tokens: int) -> int:
        """Return how many blocks `table` lacks to hold `tokens` tokens."""
        return max(0, -(-tokens // self.block_size) - len(table))

    def grow(self, table: list[int], tokens: int) -> bool:
        """Append blocks until `table` holds `tokens` tokens; all or nothing. False where too few are free."""
        missing = self.missing(table, tokens)
        if missing > self.free:
            return False
        table += [self._take() for _ in range(missing)]
        return True

    def match(self, table: list[int], names: Iterable[Name]) -> int:
        """Put the blocks that hold the longest run of `names` into the empty `table`; returns how many."""
        assert not table
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                break
            self._kept.pop(block, None)
            self._owners[block] += 1
            table.append(block)
        return len(table)

    def name(self, block: int, name: Name) -> None:
        """Note that a block's keys and values are computed, so that others may find them. The first of two stays."""
        if name not in self._blocks and block not in self._names:
            self._blocks[name] = block
            self._names[block] = name

    def release(self, table: list[int]) -> None:
        """Give up every block of `table` and empty it; named ones are kept until their place is needed."""
        for block in reversed(table):  # the end of a prompt goes before its beginning, which more prompts share
            self._owners[block] -= 1
            assert self._owners[block] >= 0, "a block was freed twice"
            if self._owners[block] == 0:
                if block in self._names:
                    self._kept[block] = None
                else:
                    self._free.append(block)
        table.clear()

    def forget(self) -> None:
        """Drop every name: what the blocks hold is no longer true."""
        self._names.clear()
        self._blocks.clear()
        self._free += self._kept
        self._kept.clear()

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._blocks[self._names.pop(block)]
        self._owners[block] = 1
        return block
