"""Contrastive losses, the queue of past keys, and the momentum copy. Knows no items and no files.

Shapes: B pairs, D dimensions, K keys in the queue. All vectors are of unit length.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu


def info_nce(
    query_BD: Tensor, key_BD: Tensor, queue_KD: Tensor, masked_BK: Tensor, temperature: float
) -> Tensor:
    """-ln of the positive key's softmax among the queue's, float32 [B].

    `masked_BK` True leaves a key out: what stands for the positive, or the query, is no negative
    (van den Oord et al. 2018, equation 4; with a queue: He et al. 2020, equation 1).
    """
    positive_B1 = (query_BD * key_BD).sum(dim=1, keepdim=True)
    negative_BK = (query_BD @ queue_KD.T).masked_fill(masked_BK, -torch.inf)
    logits = torch.cat((positive_B1, negative_BK), dim=1) / temperature
    first_B = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return cross_entropy(logits, first_B, reduction="none")


def in_batch_nce(
    left_BD: Tensor, right_BD: Tensor, left_group_B: Tensor, right_group_B: Tensor,
    temperature: float,
) -> Tensor:  # fmt: skip
    """The mean of both directions' contrast among the batch's own pairs, float32 [B].

    An item that occurs again in the batch is no negative of itself (QARM, item alignment loss).
    """
    logits_BB = left_BD @ right_BD.T / temperature
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    losses = []
    for logits, group_B in ((logits_BB, right_group_B), (logits_BB.T, left_group_B)):
        repeated = group_B[None, :] == group_B[:, None]
        repeated[own_B, own_B] = False
        losses.append(
            cross_entropy(logits.masked_fill(repeated, -torch.inf), own_B, reduction="none")
        )
    return (losses[0] + losses[1]) / 2


def triplet(query_BD: Tensor, key_BD: Tensor, hard_BD: Tensor, margin: float) -> Tensor:
    """max(0, margin - q.k + q.h), float32 [B]; its gradient is 0 once q.k exceeds q.h by more."""
    return relu(margin - (query_BD * key_BD).sum(dim=1) + (query_BD * hard_BD).sum(dim=1))


class KeyQueue:
    """The last K keys and the groups of their items; keys of one group are equal content."""

    def __init__(self, keys_KD: Tensor, group_K: Tensor) -> None:
        """Takes the first K keys, the oldest one in front."""
        self.keys_KD, self.group_K = keys_KD.clone(), group_K.clone()
        self.head = 0
        """The place that is overwritten next: the oldest key's."""

    def __len__(self) -> int:
        """Number of keys."""
        return len(self.keys_KD)

    def push(self, keys_BD: Tensor, group_B: Tensor) -> None:
        """The batch's keys in the places of the oldest ones; of a longer batch only its end."""
        size = len(self)
        keys_BD, group_B = keys_BD.detach()[-size:], group_B[-size:]
        at = (self.head + torch.arange(len(keys_BD), device=self.keys_KD.device)) % size
        self.keys_KD[at] = keys_BD
        self.group_K[at] = group_B
        self.head = (self.head + len(keys_BD)) % size

    def masked(self, groups: Sequence[Tensor]) -> Tensor:
        """True [B, K] where a key belongs to one of the row's `groups`, int64 [B] each."""
        masked_BK = torch.zeros(len(groups[0]), len(self), dtype=torch.bool,
                                device=self.keys_KD.device)  # fmt: skip
        for group_B in groups:
            masked_BK |= group_B[:, None] == self.group_K[None, :]
        return masked_BK


def momentum_copy(module: nn.Module) -> nn.Module:
    """A copy without gradients, to follow `module`."""
    follower = copy.deepcopy(module)
    for parameter in follower.parameters():
        parameter.requires_grad_(False)
    return follower


@torch.no_grad()
def follow(follower: nn.Module, module: nn.Module, momentum: float) -> None:
    """theta_k <- momentum theta_k + (1 - momentum) theta_q (He et al. 2020, equation 2)."""
    for theirs, own in zip(follower.parameters(), module.parameters(), strict=True):
        theirs.mul_(momentum).add_(own, alpha=1 - momentum)
