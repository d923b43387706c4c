"""What `data.dedup` knows of each text instead of the text: length, a key of equal texts, shingles, keys of its bands.

    rows of a shard -> folded texts -> facts.npy  shingles.u64  bands.u64   (a folder for each shard, see `shards`)

Texts are read once. Afterwards a band is read from all folders as one array, and the shingles of one text at a time,
when a pair is verified: memory is some tens of bytes a text. The folders take 1.3 bytes of disk a byte of text, and go
with the step's work folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from catena.core.config import Config
from catena.data.minhash import band_keys, signatures
from catena.data.shards import Shard
from catena.data.shingles import Hashes, fold, jaccard, shingle_sets

FACTS = np.dtype([("length", "<i8"), ("key_high", "<u8"), ("key_low", "<u8"), ("words", "?"), ("shingles", "<i8")])
Facts = npt.NDArray[np.void]
# Bytes of shingles that stay in memory while pairs are verified.
HELD_BYTES = 64 << 20


class SignConfig(Config):
    ngram: int = Field(default=5, ge=1)
    """Words in a shingle."""
    bands: int = Field(default=32, ge=0)
    """Bands of the signature; 0 for none, where only equal texts are looked for."""
    rows: int = Field(default=8, ge=1)
    """Hashes in a band."""


def sign(texts: Sequence[str], cfg: SignConfig) -> tuple[Facts, Hashes, Hashes]:
    """Return the facts of each text, all shingles end to end, and the keys [texts, bands]."""
    facts = np.zeros(len(texts), dtype=FACTS)
    folded = [fold(text) for text in texts]
    for place, text in enumerate(folded):
        plain = " ".join(text.split())
        high_low = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        facts[place] = (len(texts[place]), *np.frombuffer(high_low, "<u8").tolist(), bool(plain), 0)
    if not cfg.bands:
        return facts, np.empty(0, np.uint64), np.empty((len(texts), 0), np.uint64)
    sets = shingle_sets(folded, cfg.ngram)
    facts["shingles"] = sets.sizes
    return facts, sets.values, band_keys(signatures(sets, cfg.bands * cfg.rows), cfg.bands, cfg.rows)


def sign_shard(shard: Shard, cfg: Config, folder: Path) -> None:
    """Sign the texts of a shard's rows: the operation behind `data.dedup`."""
    assert isinstance(cfg, SignConfig)
    facts, keys = [], []
    with (folder / "shingles.u64").open("wb") as stream:
        for texts in shard.texts():
            found = sign(texts, cfg)
            facts.append(found[0])
            keys.append(found[2])
            stream.write(found[1].tobytes())
    np.save(folder / "facts.npy", np.concatenate(facts), allow_pickle=False)
    (folder / "bands.u64").write_bytes(np.ascontiguousarray(np.concatenate(keys).T).tobytes())


class Signed:
    """Signed texts, numbered from 0: what is compared. Where bands and shingles are is up to the classes below."""

    facts: Facts

    def __len__(self) -> int:
        return len(self.facts)

    def band(self, number: int) -> Hashes:
        """Return the keys of all texts in one band."""
        raise NotImplementedError

    def shingles(self, text: int) -> Hashes:
        """Return the sorted distinct shingles of one text."""
        raise NotImplementedError

    def similarity(self, first: int, second: int, least: float = 0.0) -> float:
        """Return the exact Jaccard similarity of two texts; 0 without a look if their sizes rule `least` out."""
        sizes = sorted((int(self.facts["shingles"][first]), int(self.facts["shingles"][second])))
        if sizes[0] < least * sizes[1]:
            return 0.0
        return jaccard(self.shingles(first), self.shingles(second))

    def similar(self, pairs: npt.NDArray[np.int64], threshold: float) -> npt.NDArray[np.bool_]:
        """Tell which of the pairs [pairs, 2] are at least `threshold` alike."""
        found = (self.similarity(first, second, threshold) >= threshold for first, second in pairs.tolist())
        return np.fromiter(found, dtype=np.bool_, count=len(pairs))


class SignedTexts(Signed):
    """Texts in memory."""

    def __init__(self, texts: Sequence[str], cfg: SignConfig) -> None:
        self.facts, self._values, self._keys = sign(texts, cfg)
        self._begins = np.cumsum(np.append(0, self.facts["shingles"]))

    def band(self, number: int) -> Hashes:
        """Return the keys of all texts in one band."""
        found: Hashes = self._keys[:, number]
        return found

    def shingles(self, text: int) -> Hashes:
        """Return the sorted distinct shingles of one text."""
        found: Hashes = self._values[self._begins[text] : self._begins[text + 1]]
        return found


class SignedShards(Signed):
    """The rows of one or more datasets, one after another, from the folders of their shards."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """`folders` are those of the shards, in order."""
        self._folders = folders
        parts = [np.load(folder / "facts.npy", allow_pickle=False) for folder in folders]
        self.facts = np.concatenate(parts) if parts else np.zeros(0, dtype=FACTS)
        self._first = np.cumsum([0, *map(len, parts)])
        begins = [np.cumsum(np.append(0, part["shingles"]))[:-1] for part in parts]
        self._begins = np.concatenate(begins) if begins else np.zeros(0, dtype=np.int64)
        self._held: dict[int, Hashes] = {}
        self._held_bytes = 0

    def band(self, number: int) -> Hashes:
        """Return the keys of all texts in one band."""
        result = np.empty(len(self), dtype=np.uint64)
        for folder, start, stop in zip(self._folders, self._first[:-1], self._first[1:], strict=True):
            rows = int(stop - start)
            result[start:stop] = np.fromfile(folder / "bands.u64", np.uint64, rows, offset=number * rows * 8)
        return result

    def shingles(self, text: int) -> Hashes:
        """Return the sorted distinct shingles of one text."""
        found = self._held.get(text)
        if found is None:
            shard = int(np.searchsorted(self._first, text, side="right")) - 1
            count, begin = int(self.facts["shingles"][text]), int(self._begins[text])
            found = np.fromfile(self._folders[shard] / "shingles.u64", np.uint64, count, offset=begin * 8)
            if self._held_bytes > HELD_BYTES:
                self._held, self._held_bytes = {}, 0
            self._held[text] = found
            self._held_bytes += found.nbytes + 200
        return found
