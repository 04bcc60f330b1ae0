"""The forward pass of a small BERT in plain torch, from its weights by name. Trains nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_NORM_EPSILON: Final = 1e-12


class Bert:
    """Post-norm transformer (Vaswani et al. 2017; Devlin et al. 2019) with exact GELU."""

    def __init__(self, weights: Mapping[str, Tensor], heads: int, device: torch.device) -> None:
        """`weights` as the BERT checkpoint names them; raises KeyError where one is missing."""
        self._weights = {
            name: tensor.to(device, torch.float32)
            for name, tensor in weights.items()
            if tensor.is_floating_point()
        }
        self._heads = heads
        self._device = device
        numbers = {
            name.split(".")[2] for name in self._weights if name.startswith("encoder.layer.")
        }
        self.layers = len(numbers)

    def states(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The last layer's states [B, T, D]; none attends to places masked False."""
        return self.through(self.embedded(ids_BT), mask_BT, range(self.layers))

    def embedded(self, ids_BT: Tensor) -> Tensor:
        """What the first layer reads, [B, T, D]."""
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][ids_BT]
        x = x + w["embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
        x = x + w["embeddings.token_type_embeddings.weight"][0]
        return self._norm(x, "embeddings.LayerNorm")

    def through(self, x: Tensor, mask_BT: Tensor, layers: range) -> Tensor:
        """What these layers, from 0 on, make of the states before them: [B, T, D]."""
        for layer in layers:
            at = f"encoder.layer.{layer}."
            attended = self._linear(
                self._attention(x, mask_BT, f"{at}attention.self."), f"{at}attention.output.dense"
            )
            x = self._norm(x + attended, f"{at}attention.output.LayerNorm")
            inner = functional.gelu(self._linear(x, f"{at}intermediate.dense"))
            outer = self._linear(inner, f"{at}output.dense")
            x = self._norm(x + outer, f"{at}output.LayerNorm")
        return x

    def _attention(self, x: Tensor, mask_BT: Tensor, at: str) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            self._linear(x, at + name).view(batch, tokens, self._heads, -1).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None])
        return mixed.transpose(1, 2).reshape(batch, tokens, width)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, _NORM_EPSILON)
