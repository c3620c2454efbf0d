"""What is below all direct connections, on hosts that lack something."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from kkp2p_compat.engine.paths import underlay as underlay_module
from kkp2p_compat.engine.paths.udp_use import UdpUse
from kkp2p_compat.engine.paths.underlay import Underlay
from kkp2p_compat.transport.udp import doors
from kkp2p_compat.traversal.nat import ENDPOINT_INDEPENDENT, NatBehaviour

log = logging.getLogger("test")


@pytest.fixture
def changes() -> list[str]:
    return []


@pytest.fixture
def underlay(changes: list[str]) -> Iterator[Underlay]:
    made = Underlay(
        [],
        True,
        UdpUse(False, log),
        log,
        gevent.spawn,
        lambda: changes.append("network"),
        lambda: changes.append("addresses"),
    )
    yield made
    made.close()


@pytest.fixture
def without_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    make = doors.BatchSocket

    def only_ipv6(family: socket.AddressFamily, *args: Any, **options: Any) -> Any:
        if family == socket.AF_INET:
            raise OSError(97, "Address family not supported by protocol")
        return make(family, *args, **options)

    monkeypatch.setattr(doors, "BatchSocket", only_ipv6)


def test_no_port_is_mapped_without_ipv4(
    without_ipv4: None, underlay: Underlay, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What maps ports does so for IPv4; a NAT is seen all the same, one of IPv6."""
    nat = property(lambda own: NatBehaviour(mapping=ENDPOINT_INDEPENDENT))
    monkeypatch.setattr(underlay_module.OwnAddresses, "nat", nat)
    underlay.own.see_changes()
    assert changes == ["addresses"]
    assert underlay.mapper is None
