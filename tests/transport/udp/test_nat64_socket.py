"""IPv4 addresses through a NAT64: here one that translates 0.0.0.1 to ::1, the loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from gevent.queue import Queue

from helpers.direct_support import until
from helpers.endpoint_support import IPS, make, place
from helpers.support import PATIENCE_S
from kkp2p_compat._address import Address
from kkp2p_compat._errors import EngineClosed, OutOfDescriptors
from kkp2p_compat._nat64 import Nat64
from kkp2p_compat.transport.udp import doors
from kkp2p_compat.transport.udp.endpoint import Endpoint

__all__ = ["make"]

HERE = Nat64(bytes(12))
ELSEWHERE = Nat64(bytes.fromhex("0064ff9b").ljust(12, b"\0"))
STUN = b"\x00\x01".ljust(28, b"s")


def heard(endpoint: Endpoint) -> Queue[Address]:
    """From whom STUN messages come."""
    sources: Queue[Address] = Queue()
    endpoint.on_stun = lambda data, address: sources.put(address)
    return sources


@pytest.mark.parametrize("is_extra", [False, True], ids=["main", "extra"])
def test_there_and_back(make: Callable[[], Endpoint], is_extra: bool) -> None:
    ours, theirs = make(), make()
    at_ours, at_theirs = heard(ours), heard(theirs)
    native = ours.ports()
    ours.translate_ipv4(HERE)
    assert ours.nat64 == HERE
    assert ours.ports()[socket.AF_INET] != native[socket.AF_INET]
    numbers = ours.open_sockets(socket.AF_INET, 1) if is_extra else []
    port = ours.port_of(numbers[0]) if is_extra else ours.ports()[socket.AF_INET]
    peer = ("0.0.0.1", theirs.ports()[socket.AF_INET6])
    ours.send_check(STUN, (*peer, *numbers))
    assert at_theirs.get(timeout=PATIENCE_S) == ("::1", port)
    theirs.send_check(STUN, ("::1", port))
    assert at_ours.get(timeout=PATIENCE_S) == (*peer, *numbers)


def test_this_host_itself_is_reached_without_it(make: Callable[[], Endpoint]) -> None:
    ours, theirs = make(), make()
    at_theirs = heard(theirs)
    port = ours.ports()[socket.AF_INET]
    ours.translate_ipv4(HERE)
    ours.send_check(STUN, place(theirs, socket.AF_INET))
    assert at_theirs.get(timeout=PATIENCE_S) == (IPS[socket.AF_INET], port)


def test_without_it_again(make: Callable[[], Endpoint]) -> None:
    ours = make()
    native = ours.ports()
    for _ in range(2):
        ours.translate_ipv4(HERE)
        ours.translate_ipv4(None)
        assert (ours.ports(), ours.nat64) == (native, None)
    ours.send_check(STUN, ("192.0.2.1", 9))  # by the native socket: whatever the kernel says to it


def test_what_does_not_come_by_it_is_dropped(make: Callable[[], Endpoint]) -> None:
    ours, theirs = make(), make()
    at_ours = heard(ours)
    ours.translate_ipv4(ELSEWHERE)
    theirs.send_check(STUN, ("::1", ours.ports()[socket.AF_INET]))
    until(lambda: ours.failures()["EADDRNOTAVAIL"])
    assert at_ours.empty()
    ours.translate_ipv4(None)
    assert ours.failures()["EADDRNOTAVAIL"] == 1  # it is still known what happened


def test_an_address_of_another_kind_is_not_sent_to(make: Callable[[], Endpoint]) -> None:
    ours = make()
    ours.translate_ipv4(HERE)
    (number,) = ours.open_sockets(socket.AF_INET, 1)
    ours.send_check(STUN, ("::1", 9, number))
    assert ours.failures()["EAFNOSUPPORT"] == 1


def test_nothing_changes_without_descriptors(
    make: Callable[[], Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make()
    ours.translate_ipv4(HERE)
    before = ours.ports()

    def out_of_them(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(doors, "Nat64Socket", out_of_them)
    with pytest.raises(OutOfDescriptors):
        ours.translate_ipv4(ELSEWHERE)
    assert (ours.ports(), ours.nat64) == (before, HERE)
    ours.close()
    with pytest.raises(EngineClosed):
        ours.translate_ipv4(None)
