"""Partition assignor of the default worker: one member gets everything. Knows no state but claims.

A model is one snapshot lineage over all partitions, so a group has one owner; others stand by.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)

_VERSION = 0
_MAX_CLAIM_BYTES = 4096


class OneOwnerAssignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """Gives all partitions of all topics to one member.

    The owner is the member that claims the highest epoch; without claims the one that was given
    them last time, and may be taking over; else the one that started first; at equal times the
    lowest member id. aiokafka wants classmethods, so a worker's claim
    lives on a class of its own: see `assignor_for`.
    """

    name = "millrace-one-owner"
    started_ms: ClassVar[int] = 0
    epoch: ClassVar[int] = 0
    holds: ClassVar[bool] = False

    @classmethod
    def assign(
        cls, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Assignment by member id; topics that the cluster does not know are left out."""
        owner = min(members, key=lambda member: (*_rank(members[member].user_data), member))
        topics = {topic for metadata in members.values() for topic in metadata.subscription}
        everything = [
            (topic, sorted(partitions))
            for topic in sorted(topics)
            if (partitions := cluster.partitions_for_topic(topic))
        ]
        return {
            member: ConsumerProtocolMemberAssignment(
                _VERSION, everything if member == owner else [], b""
            )
            for member in members
        }

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """What this member tells the group: its topics, its claim and its start."""
        claim = {"epoch": cls.epoch, "holds": cls.holds, "started_ms": cls.started_ms}
        return ConsumerProtocolMemberMetadata(_VERSION, list(topics), json.dumps(claim).encode())

    @classmethod
    def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Whether this member holds the partitions, until the next assignment.

        To take over takes a while, and only then is there an epoch to claim: a member that joins
        meanwhile must not get what another one has half taken over.
        """
        cls.holds = any(partitions for _, partitions in assignment.assignment)

    @classmethod
    def claim(cls, epoch: int) -> None:
        """Claim ownership with a snapshot epoch, 1 or more; it is told at the next rebalance."""
        cls.epoch = epoch


def assignor_for(started_ms: int) -> type[OneOwnerAssignor]:
    """An assignor class for one worker, which started at `started_ms`."""
    return type(
        "WorkerAssignor",
        (OneOwnerAssignor,),
        {"started_ms": started_ms, "epoch": 0, "holds": False},
    )


def _rank(user_data: bytes | None) -> tuple[int, bool, int]:
    """(−epoch, holds nothing, start): smallest owns. An unreadable claim ranks last."""
    last = (0, True, 1 << 62)
    if not user_data or len(user_data) > _MAX_CLAIM_BYTES:
        return last
    try:
        claim: Any = json.loads(user_data)
        return -int(claim["epoch"]), not claim.get("holds"), int(claim["started_ms"])
    except (ValueError, KeyError, TypeError):
        return last
