"""Block accounting for the paged key-value cache: which blocks are free. It holds numbers, no tensor.

A sequence of `n` tokens owns `ceil(n / block_size)` blocks, in any order; its block table lists them.
"""

from __future__ import annotations


class BlockPool:
    """A fixed number of equal blocks, each `block_size` tokens long."""

    def __init__(self, total: int, block_size: int) -> None:
        assert total > 0
        assert block_size > 0
        self.total = total
        self.block_size = block_size
        # Last freed is first used: its memory is the most likely to be in the processor's cache.
        self._free = list(range(total - 1, -1, -1))

    @property
    def free(self) -> int:
        """Number of blocks that nobody owns."""
        return len(self._free)

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
        if missing > len(self._free):
            return False
        for _ in range(missing):
            table.append(self._free.pop())
        return True

    def release(self, table: list[int]) -> None:
        """Take back every block of `table` and empty it."""
        self._free.extend(reversed(table))
        table.clear()
        assert len(self._free) <= self.total, "a block was freed twice"
