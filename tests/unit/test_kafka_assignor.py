"""The assignor gives everything to one member."""

from __future__ import annotations

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from stream.kafka.assignor import OneOwnerAssignor, assignor_for

TOPICS = {"impressions": {0, 1, 2}, "clicks": {0, 1, 2}}


class Cluster:
    def partitions_for_topic(self, topic):
        return TOPICS.get(topic)


def owner_of(members):
    assigned = OneOwnerAssignor.assign(Cluster(), members)
    assert assigned.keys() == members.keys()
    owners = [m for m, a in assigned.items() if a.assignment]
    assert len(owners) == 1
    given = {(topic, p) for topic, ps in assigned[owners[0]].assignment for p in ps}
    assert given == {(t, p) for t, ps in TOPICS.items() for p in ps}
    return owners[0]


def member(started_ms, epoch=0):
    assignor = assignor_for(started_ms)
    if epoch:
        assignor.claim(epoch)
    return assignor.metadata(["impressions", "clicks", "unknown"])


def test_without_claims_the_first_to_start_owns():
    assert owner_of({"a": member(300), "b": member(100), "c": member(200)}) == "b"


def test_equal_starts_are_settled_by_member_id():
    assert owner_of({"b": member(5), "a": member(5)}) == "a"


def test_present_owner_stays_whoever_joins():
    assert owner_of({"older": member(1), "owner": member(900, epoch=3)}) == "owner"


def test_one_that_is_taking_over_keeps_the_partitions_from_an_older_one_that_joins():
    taking_over, older = assignor_for(900), assignor_for(1)
    given = OneOwnerAssignor.assign(Cluster(), {"b": taking_over.metadata(list(TOPICS))})["b"]
    taking_over.on_assignment(given)
    members = {"a": older.metadata(list(TOPICS)), "b": taking_over.metadata(list(TOPICS))}
    assert owner_of(members) == "b"
    assigned = OneOwnerAssignor.assign(Cluster(), members)
    older.on_assignment(assigned["a"])
    assert (older.holds, taking_over.holds, OneOwnerAssignor.holds) == (False, True, False)
    # An epoch is more than that: it was taken over from.
    assert owner_of({**members, "c": member(5, epoch=1)}) == "c"


def test_of_two_claims_the_higher_epoch_wins():
    assert owner_of({"zombie": member(1, epoch=3), "owner": member(9, epoch=4)}) == "owner"


@pytest.mark.parametrize("claim", (b"", b"\xff", b"[]", b'{"epoch": "x"}', b"{" * 5000, None))
def test_unreadable_claims_rank_last(claim):
    bad = ConsumerProtocolMemberMetadata(0, ["impressions", "clicks"], claim)
    assert owner_of({"a": bad, "b": member(100)}) == "b"
    assert owner_of({"a": bad}) == "a"


def test_claims_of_two_workers_in_one_process_are_apart():
    one, other = assignor_for(1), assignor_for(2)
    one.claim(7)
    assert (one.epoch, other.epoch, OneOwnerAssignor.epoch) == (7, 0, 0)
