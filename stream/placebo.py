"""Placebo of item content: vectors permuted among items, so that they say nothing of their item.

What a model gains by the real vectors over permuted ones is content; the rest is capacity. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embeddings.vector_cache import BatchRows
from stream.codec_spec import Source
from stream.config import CODES_PATH
from stream.items import ItemFeatures, ItemTable

I64 = NDArray[np.int64]


class PermutedContent(ItemTable):
    """An item table that answers with the vector of another item, always the same one.

    Codes go with the vector; all other attributes, and whether an item is known at all, stay its
    own. An item whose donor has not come yet has no vector until it has; items outside of `keys`
    keep theirs.
    """

    def __init__(self, keys: I64, seed: int, *table: Any) -> None:
        """Permutes the distinct item `keys` by `seed`; `table` as for ItemTable."""
        super().__init__(*table)
        self._keys = np.unique(keys[keys != 0])
        self._donors = np.random.default_rng(seed).permutation(self._keys)

    def lookup(
        self, target_B: I64, bags_BL: Sequence[I64] = (), *, compact: bool = False
    ) -> BatchRows:
        """Vectors of the donors of a batch's items; see ItemTable.lookup."""
        bags = [self.donors(bag_BL) for bag_BL in bags_BL]
        return super().lookup(self.donors(target_B), bags, compact=compact)

    def attribute_columns(self, item_keys: I64) -> ItemFeatures:
        """Attributes of items, those of codes from the donors; see ItemTable.attribute_columns."""
        own = super().attribute_columns(item_keys)
        given = super().attribute_columns(self.donors(item_keys))

        def of_codes(sources: Sequence[Source]) -> NDArray[np.bool_]:
            return np.array([s.path.startswith(CODES_PATH) for s in sources], np.bool_)

        multis = of_codes(self._fields.multis).tolist()
        return ItemFeatures(
            np.where(of_codes(self._fields.ids), given.ids_nA, own.ids_nA),
            tuple((given if code else own).multi_nM[m] for m, code in enumerate(multis)),
            np.where(of_codes(self._fields.dense), given.dense_nX, own.dense_nX),
        )

    def first_of(self, keys_BL: I64, multis: Sequence[int]) -> list[I64]:
        """Codes of the donors of a bag's items, own other attributes; see ItemTable.first_of."""
        own = super().first_of(keys_BL, multis)
        given = super().first_of(self.donors(keys_BL), multis)
        codes = [self._fields.multis[m].path.startswith(CODES_PATH) for m in multis]
        return [g if code else o for g, o, code in zip(given, own, codes, strict=True)]

    def donors(self, keys: I64) -> I64:
        """Whose vectors stand in for those of `keys`, of the same shape."""
        if not len(self._keys):
            return keys
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._donors[place], keys)
