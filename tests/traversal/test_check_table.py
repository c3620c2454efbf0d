"""Checks that are not the peer's: forged, replayed, reflected or wrong, they change nothing."""

from __future__ import annotations

import binascii
import hmac
import struct
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.check_network import Host, Network, fresh_request, lan
from kkp2p_compat._address import HostPort
from kkp2p_compat._errors import BadPacket
from kkp2p_compat.traversal.check_table import CheckTable
from kkp2p_compat.traversal.checks import Credentials
from kkp2p_compat.traversal.stun import Kind, Message, parse_untrusted

CALLER, CALLEE = ("2001:db8::1", 4000), ("2001:db8::2", 4000)
STRANGER = ("203.0.113.5", 666)


def state(host: Host) -> object:
    """What its checks came to, and what they do next."""
    checks = host.checks
    return checks.selected, checks.settled, checks.next_timer()


def refuse(network: Network, host: Host, data: bytes, source: HostPort) -> str:
    """Why it was dropped, without an answer or any other effect."""
    before, drops, sent = state(host), host.table.drops.copy(), len(network.sent)
    assert network.receive(host, data, source) is None
    assert host.checks.poll_transmit() is None
    assert state(host) == before
    assert len(network.sent) == sent
    (reason,) = host.table.drops - drops
    return reason


def first_request() -> tuple[Network, bytes]:
    """The caller's, before the callee has seen it."""
    network = lan()
    network.start(network.callee, [])
    network.start(network.caller)
    return network, network.sent_by(network.caller)[0][1]


def test_every_flipped_bit_of_a_check_and_of_its_answer() -> None:
    network, request = first_request()
    for bit in range(8 * len(request)):
        refuse(network, network.callee, flipped(request, bit), CALLER)
    assert network.receive(network.callee, request, CALLER)
    answer = network.sent_by(network.callee)[0][1]
    assert parse_untrusted(answer).kind is Kind.RESPONSE
    for bit in range(8 * len(answer)):
        refuse(network, network.caller, flipped(answer, bit), CALLEE)
    assert network.receive(network.caller, answer, CALLEE)
    assert network.caller.checks.selected == CALLEE


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")


def test_every_cut() -> None:
    network, request = first_request()
    for size in range(len(request)):
        refuse(network, network.callee, request[:size], CALLER)


def test_a_wrong_key() -> None:
    network, request = first_request()
    message = parse_untrusted(request)
    for key in (b"", b"guess", network.caller.credentials.key):
        assert refuse(network, network.callee, message.encode(key), CALLER) == "a wrong key"
    assert refuse(network, network.callee, message.encode(None), CALLER) == "a wrong key"
    answer = Message(Kind.RESPONSE, message.transaction_id, mapped=CALLER)
    for key in (b"", b"guess", network.caller.credentials.key):
        assert refuse(network, network.caller, answer.encode(key), CALLEE) == "a wrong key"


def test_no_fingerprint() -> None:
    network, request = first_request()
    bare = request[:2] + struct.pack(">H", len(request) - 28) + request[4:-8]
    assert parse_untrusted(bare).verify(network.callee.credentials.key)
    assert refuse(network, network.callee, bare, CALLER) == "no fingerprint"


def test_names_of_others() -> None:
    network, _ = first_request()
    mine = network.callee.credentials.ufrag
    for username, reason in (
        (None, "a request to no call"),
        ("", "a request to no call"),
        ("x:y", "a request to no call"),
        (mine, "a request from another peer"),
        (f"{mine}:", "a request from another peer"),
        (f"{mine}:other", "a request from another peer"),
    ):
        request = Message(Kind.REQUEST, bytes(12), username=username, priority=1, controlling=1)
        wire = request.encode(network.callee.credentials.key)
        assert refuse(network, network.callee, wire, CALLER) == reason


def test_a_replayed_request() -> None:
    """From elsewhere: nothing.  From the same address, once more the same answer and no more."""
    network, request = first_request()
    network.receive(network.callee, request, CALLER)
    answers = network.sent_by(network.callee)
    assert len(answers) == 2, "an answer and a check"
    assert refuse(network, network.callee, request, STRANGER) == "a replayed request"
    before = state(network.callee)
    assert network.receive(network.callee, request, CALLER)
    assert network.sent_by(network.callee) == [*answers, answers[0]]
    assert state(network.callee) == before


def test_a_replayed_answer() -> None:
    network, request = first_request()
    network.receive(network.callee, request, CALLER)
    answer = network.sent_by(network.callee)[0][1]
    assert network.receive(network.caller, answer, CALLEE)
    for source in (CALLEE, STRANGER):
        assert refuse(network, network.caller, answer, source) == "an answer to no check of ours"


def test_reflected_messages() -> None:
    network, request = first_request()
    assert refuse(network, network.caller, request, CALLEE) == "a request to no call"
    network.receive(network.callee, request, CALLER)
    for _, data in network.sent_by(network.callee):
        refuse(network, network.callee, data, CALLER)


def test_everything_replayed_when_all_is_over() -> None:
    network = lan()
    network.start_both()
    network.run_to_the_end()
    for _, _, _, data in list(network.sent):
        for host in network.hosts:
            for source in (STRANGER, CALLER, CALLEE):
                before = state(host)
                network.receive(host, data, source)
                assert state(host) == before
    network.check_agreement()


def test_an_answer_from_another_address_verifies_nothing() -> None:
    """What it came from is probed; it is not believed."""
    network, request = first_request()
    network.receive(network.callee, request, CALLER)
    answer = network.sent_by(network.callee)[0][1]
    assert network.receive(network.caller, answer, STRANGER)
    assert network.caller.checks.selected is None
    assert [target for target, _ in network.sent_by(network.caller)].count(STRANGER) == 1


@pytest.mark.parametrize(
    "fields", [{"controlling": None, "controlled": 1}, {"controlling": None}, {"controlled": 1}]
)
def test_a_request_with_the_wrong_role(fields: dict[str, int | None]) -> None:
    network, _ = first_request()
    wire = fresh_request(network, **fields)
    assert refuse(network, network.callee, wire, CALLER) == "a request with the wrong role"


def test_two_that_both_think_they_called() -> None:
    network = lan()
    for host in network.hosts:
        network.start(host, controlling=True)
    network.run(20)
    for host in network.hosts:
        assert host.checks.selected is None
        assert set(host.table.drops) == {"a request with the wrong role"}


def test_other_requests_that_are_not_taken() -> None:
    network, _ = first_request()
    wire = fresh_request(network, priority=None)
    assert refuse(network, network.callee, wire, CALLER) == "a request without a priority"
    for source in (("224.0.0.1", 5), ("fe80::1", 5), ("fe80::1%eth0", 5), ("192.0.2.1", 0)):
        wire = fresh_request(network)
        reason = refuse(network, network.callee, wire, source)
        assert reason == "a request from an address that no peer has"


def test_a_nomination_by_the_callee_is_none() -> None:
    """The caller goes on waiting for a better address."""
    network = lan()
    network.start_both()
    four = "192.0.2.2", 4000
    request = Message(
        Kind.REQUEST,
        bytes(12),
        username=f"{network.caller.credentials.ufrag}:{network.callee.credentials.ufrag}",
        priority=1,
        use_candidate=True,
        controlled=1,
    )
    assert network.receive(network.caller, request.encode(network.caller.credentials.key), four)
    check = next(data for target, data in network.sent_by(network.caller) if target == four)
    answer = Message(Kind.RESPONSE, parse_untrusted(check).transaction_id)
    assert network.receive(network.caller, answer.encode(network.callee.credentials.key), four)
    assert network.caller.checks.selected is None


def test_a_nomination_before_the_callees_own_check_is_answered() -> None:
    network, _ = first_request()
    assert network.receive(network.callee, fresh_request(network, use_candidate=True), CALLER)
    assert network.callee.checks.selected is None


def test_attributes_that_we_do_not_know() -> None:
    """Answered by an error that names them; nothing is taken from the request."""
    network, request = first_request()
    message = parse_untrusted(request)
    key = network.callee.credentials.key
    # An attribute of our own, renamed to an unknown one, and sealed anew.
    head = message.encode(None)[:-8].replace(struct.pack(">HH", 0x24, 4), b"\x7f\x01\0\4", 1)
    wire = with_priority_and_integrity(head, key)
    before = state(network.callee)
    assert network.receive(network.callee, wire, CALLER)
    (answer,) = [parse_untrusted(data) for _, data in network.sent_by(network.callee)]
    assert (answer.kind, answer.error) == (Kind.ERROR, 420)
    assert answer.not_understood == (0x7F01,)
    assert answer.verify(key)
    assert state(network.callee) == before
    wire = answer.encode(key)
    assert refuse(network, network.caller, wire, CALLEE) == "a refusal"


def with_priority_and_integrity(head: bytes, key: bytes) -> bytes:
    head += struct.pack(">HHI", 0x24, 4, 7)
    head = head[:2] + struct.pack(">H", len(head) + 4) + head[4:]
    head += struct.pack(">HH", 8, 20) + hmac.digest(key, head, "sha1")
    head = head[:2] + struct.pack(">H", len(head) - 12) + head[4:]
    return head + struct.pack(">HHI", 0x8028, 4, binascii.crc32(head) ^ 0x5354554E)


def test_an_indication() -> None:
    network, _ = first_request()
    ours = network.caller.credentials
    message = Message(Kind.INDICATION, ours.tag + bytes(6))
    wire = message.encode(network.callee.credentials.key)
    assert refuse(network, network.caller, wire, CALLEE) == "an indication"


@given(st.binary(max_size=600), st.sampled_from([CALLER, STRANGER, ("", 0), ("x%y", 5)]))
def test_any_bytes(data: bytes, source: HostPort) -> None:
    network, request = first_request()
    refuse(network, network.callee, data, source)
    refuse(network, network.callee, request[:20] + data, source)


def test_reasons_are_few() -> None:
    """They are counted by their text: a stranger must not make new ones."""
    network, request = first_request()
    for size in range(700):
        network.receive(network.callee, request[:20] + bytes(size), CALLER)
        network.receive(network.callee, request[:2] + bytes([0, size % 256]) + request[4:], CALLER)
    assert len(network.callee.table.drops) < 10


def test_answers_are_no_larger_than_the_requests() -> None:
    network, _ = first_request()
    for address in (CALLER, ("192.0.2.1", 4000)):
        network.sent.clear()
        request = fresh_request(network)
        network.receive(network.callee, request, address)
        assert len(network.sent_by(network.callee)[0][1]) <= len(request)


# The table.


def test_many_calls_at_once() -> None:
    """Each datagram finds its call, and a call that is removed gets none."""
    networks = [lan(seed) for seed in range(20)]
    table = networks[0].callee.table
    for network in networks:
        network.callee.table = table
        network.start_both()
    assert len(table) == 20
    for network in networks:
        network.run_to_the_end()
    table.remove(networks[0].callee.checks)
    table.remove(networks[0].callee.checks)
    assert len(table) == 19
    late = fresh_request(networks[0])
    assert table.handle_datagram_untrusted(late, CALLER, 0.0) is None
    assert table.handle_datagram_untrusted(fresh_request(networks[1]), CALLER, 0.0)


def test_the_same_credentials_twice() -> None:
    one, two = lan(), lan()
    one.start(one.caller)
    two.start(two.caller)
    with pytest.raises(ValueError, match="another call"):
        one.caller.table.add(two.caller.checks)
    one.caller.table.add(one.caller.checks)
    one.caller.table.remove(two.caller.checks)
    assert len(one.caller.table) == 1


def test_an_empty_table() -> None:
    table = CheckTable()
    assert table.handle_datagram_untrusted(b"", STRANGER, 0.0) is None
    assert table.drops.total() == 1


# Credentials.


def test_credentials() -> None:
    made = Credentials.make(Random(1))
    assert Credentials.parse_untrusted(made.ufrag, made.password) == made
    assert made != Credentials.make(Random(2))
    assert made.password not in repr(made)
    assert len(made.tag) == 6


@pytest.mark.parametrize("bad", [None, 7, "", "a" * 7, "a" * 9, "abcdefg=", "abcdefg\n", "é" * 8])
def test_bad_credentials(bad: object) -> None:
    good = Credentials.make(Random(1))
    with pytest.raises(BadPacket):
        Credentials.parse_untrusted(bad, good.password)
    with pytest.raises(BadPacket):
        Credentials.parse_untrusted(good.ufrag, bad)
