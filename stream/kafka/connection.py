"""How to reach the broker: its address, names and errors. Sends and reads no record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, KafkaTimeoutError

from infra.errors import FaultError, InputError

_ADDRESS = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})$")


class BrokerUnreachableError(FaultError):
    """No broker answered at the configured address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """Where the broker is and how the group of workers is called.

    `broker` is `host:port`, several separated by commas; empty means that none is configured.
    Standbys take over `session_timeout_s` after an owner died without a word; a worker's last
    batch and snapshot must fit in `rebalance_timeout_s`.
    """

    broker: str = ""
    group: str = "millrace"
    connect_timeout_s: float = 15.0
    session_timeout_s: float = 10.0
    rebalance_timeout_s: float = 60.0
    request_timeout_s: float = 90.0

    def __post_init__(self) -> None:
        """Raise ValueError where a value cannot work."""
        for address in filter(None, self.broker.split(",")):
            match = _ADDRESS.match(address.strip())
            if match is None or not 0 < int(match.group(2)) < 65536:
                raise ValueError(f"kafka.broker: expected host:port, got '{address}'")
        if not self.group:
            raise ValueError("kafka.group: a consumer group needs a name, got an empty one")
        if not 6.0 <= self.session_timeout_s <= 1800.0:
            # A broker refuses other values by default, and Faust then runs on without partitions.
            raise ValueError(
                f"kafka.session_timeout_s: expected 6 to 1800, got {self.session_timeout_s}"
            )
        if self.session_timeout_s >= self.request_timeout_s:
            raise ValueError(
                f"kafka.session_timeout_s: must be below request_timeout_s "
                f"({self.request_timeout_s}), got {self.session_timeout_s}"
            )
        if self.connect_timeout_s <= 0 or self.rebalance_timeout_s <= 0:
            raise ValueError("kafka: connect_timeout_s and rebalance_timeout_s must be above 0")

    @property
    def servers(self) -> list[str]:
        """Addresses as clients take them; raises InputError when no broker is configured."""
        servers = [address.strip() for address in self.broker.split(",") if address.strip()]
        if not servers:
            raise InputError(
                "no broker is configured: give --broker HOST:PORT or set kafka.broker "
                "(`millrace broker` starts one for trying out)"
            )
        return servers


@contextmanager
def admin_client(config: KafkaConfig) -> Iterator[KafkaAdminClient]:
    """An administration client; raises BrokerUnreachableError within `connect_timeout_s`."""
    servers = config.servers
    try:
        client = KafkaAdminClient(
            bootstrap_servers=servers,
            client_id="millrace",
            bootstrap_timeout_ms=int(config.connect_timeout_s * 1000),
            request_timeout_ms=int(config.connect_timeout_s * 1000),
        )
        # Asked for here, so that a broker that is away shows as that and not as its consequence.
        client.describe_cluster()
    except KafkaTimeoutError as error:
        raise unreachable(config) from error
    except (KafkaError, OSError, ValueError) as error:
        raise BrokerUnreachableError(f"broker {config.broker}: {error}") from error
    try:
        yield client
    finally:
        client.close()


def unreachable(config: KafkaConfig) -> BrokerUnreachableError:
    """The error for a broker that does not answer."""
    return BrokerUnreachableError(
        f"broker {config.broker} does not answer within {config.connect_timeout_s:g} s: "
        "is it running, and is the address right?"
    )
