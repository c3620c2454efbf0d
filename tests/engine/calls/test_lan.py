"""Being found and connecting on the LAN, without a cloud or beside one; on loopback only."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import (
    LONG,
    MakeEngine,
    accept,
    check_carries,
    close,
    links,
    log_of,
    settled,
    until,
)
from helpers.support import PATIENCE_S, SECRET, in_thread, read_all, write_all
from kkp2p_compat.engine.paths import own_addresses
from kkp2p_compat.engine.signalling.identity import Identity
from kkp2p_compat.engine.signalling.own_side import OwnSide
from kkp2p_compat.traversal import lan as lan_module
from kkp2p_compat.traversal.candidates import Candidate, host_candidates
from kkp2p_compat.traversal.lan import Responder
from kkp2p_compat.traversal.lan_wire import ANSWER, Message, encode

pytestmark = pytest.mark.usefixtures("on_loopback")

Engines = tuple[kkp2p.engine_t, kkp2p.engine_t]
Call = Callable[[kkp2p.engine_t, kkp2p.connect_ctx_t, "kkp2p.channel_t | None"], int]


def ctx_to(peer_id: str = "lan-peer", timeout: int = LONG, **fields: Any) -> kkp2p.connect_ctx_t:
    return kkp2p.connect_ctx_t(peer_id, connect_mode=1, timeout=timeout, **fields)


def find(engine: kkp2p.engine_t, peer_id: str = "lan-peer", desc: int = 0) -> kkp2p.channel_t:
    channel = kkp2p.channel_t()
    assert kkp2p.lan_search(engine, ctx_to(peer_id, connect_desc=desc), channel) == 0
    return channel


@pytest.mark.parametrize(
    ("call", "mode"), [(kkp2p.lan_search, 1), (kkp2p.connect, 1), (kkp2p.connect, 0)]
)
def test_fields(lan_pair: Engines, call: Call, mode: int) -> None:
    """connect without a login_domain searches too, and takes mode 0 as well."""
    caller, callee = lan_pair
    ctx = ctx_to(encrypt_data=1, connect_desc=-9)
    ctx.connect_mode = mode
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    assert call(caller, ctx, mine) == 0
    assert kkp2p.accept(callee, LONG, theirs) == 1
    for channel in (mine, theirs):
        assert (channel.peer_id, channel.connect_desc) == ("lan-peer", -9)
        assert (channel.transmit_mode, channel.encrypt_data) == (1, 1)
        assert (channel.channel_type, channel.is_ipv6_p2p) == (0, 0)
    assert mine.channel_id != theirs.channel_id
    check_carries(mine, theirs)


def test_what_comes_before_the_callee_has_a_link_is_kept(lan_pair: Engines) -> None:
    """The caller has the path first; its OPEN must not have to come twice."""
    caller, callee = lan_pair
    check_carries(find(caller), accept(callee))
    assert not callee.network.underlay().endpoint.dropped["unknown connection"]


def test_the_answer_goes_out_before_the_callee_looks_for_a_path(
    monkeypatch: pytest.MonkeyPatch, lan_pair: Engines
) -> None:
    """What the caller then has to do, and what the callee has, takes the time of one of them."""
    caller, callee = lan_pair
    searches: list[int] = []
    send = Responder._send

    def watch(self: Responder, *args: Any) -> None:
        searches.append(len(callee.network.underlay().searches.finder))
        send(self, *args)

    monkeypatch.setattr(Responder, "_send", watch)
    check_carries(find(caller), accept(callee))
    assert searches[0] == 0


def test_relay_without_a_cloud(lan_pair: Engines) -> None:
    ctx = kkp2p.connect_ctx_t("lan-peer", connect_mode=2, timeout=LONG)
    assert kkp2p.connect(lan_pair[0], ctx, kkp2p.channel_t()) == -112


def test_beside_a_cloud(lan_port: int, make_engine: MakeEngine) -> None:
    """Engines that have both; the search does not need the login, nor the cloud's word."""
    callee, caller = (make_engine(lan_search_port=lan_port) for _ in range(2))
    assert kkp2p.join_lan(callee, "nearby") == 0
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    mine, theirs = find(caller, "nearby"), accept(callee)
    assert theirs.peer_id == "nearby"
    check_carries(mine, theirs)
    mine = kkp2p.channel_t()
    assert kkp2p.connect(caller, ctx_to("peer"), mine) == 0
    theirs = accept(callee)
    assert theirs.peer_id == "peer"
    check_carries(mine, theirs)
    assert len(links(caller)) == 2  # under another name, with keys of another call


def test_several_peers_on_one_host(lan_port: int, make_engine: MakeEngine) -> None:
    callees = {}
    for name in ("one", "two", "three", "four"):
        callees[name] = make_engine(login_domain=None, lan_search_port=lan_port)
        assert kkp2p.join_lan(callees[name], name) == 0
    for caller in (make_engine(login_domain=None, lan_search_port=lan_port), callees["two"]):
        for name, callee in callees.items():
            mine, theirs = find(caller, name), accept(callee)
            assert theirs.peer_id == name
            check_carries(mine, theirs)


def test_join_lan_twice(lan_pair: Engines) -> None:
    """The second id takes the place of the first; channels that are open stay."""
    caller, callee = lan_pair
    mine, theirs = find(caller), accept(callee)
    assert kkp2p.join_lan(callee, "renamed") == 0
    renamed = find(caller, "renamed"), accept(callee)
    assert renamed[1].peer_id == "renamed"
    check_carries(*renamed)
    check_carries(mine, theirs)
    assert links(caller)  # the live link to "lan-peer" is no way to it
    assert kkp2p.lan_search(caller, ctx_to(timeout=150), kkp2p.channel_t()) == -109
    assert "not connected within 150 ms, by a LAN search on port" in kkp2p.error_text()


def test_no_search_port(make_engine: MakeEngine) -> None:
    """An error at once, and not after the time-out: nobody can be found, nor find us."""
    engine, proxy_id = make_engine(login_domain=None), ctypes.c_uint32()
    ctx = ctx_to("peer", timeout=2**31 - 1)
    assert kkp2p.join_lan(engine, "peer") == -106
    for call in (kkp2p.lan_search, kkp2p.connect):
        assert call(engine, ctx, kkp2p.channel_t()) == -106
        assert "lan_search_port is 0" in kkp2p.error_text()
    for start in (kkp2p.start_proxy, kkp2p.start_proxy_udp):
        assert start(engine, "127.0.0.1", 0, ctx, proxy_id) == -106
        assert "lan_search_port is 0" in kkp2p.error_text()
    assert kkp2p.proxy_address(engine, 1) is None


def test_no_search_port_beside_a_cloud(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert kkp2p.lan_search(engine, ctx_to(timeout=2**31 - 1), kkp2p.channel_t()) == -106
    assert kkp2p.join_lan(engine, "peer") == -106


def test_search_port_of_another_program(make_engine: MakeEngine, lan_port: int) -> None:
    engine = make_engine(login_domain=None, lan_search_port=lan_port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", lan_port))  # without SO_REUSEADDR
        assert kkp2p.join_lan(engine, "peer") == -115
    assert kkp2p.join_lan(engine, "peer") == 0


def test_a_live_link_needs_no_search(lan_pair: Engines) -> None:
    caller, callee = lan_pair
    check_carries(find(caller), accept(callee))
    callee.thread.call(callee.switchboard.lan.leave)
    for desc in range(3):
        mine, theirs = find(caller, desc=desc), accept(callee)
        assert theirs.connect_desc == desc
        check_carries(mine, theirs)
    assert len(links(caller)) == len(links(callee)) == 1


def test_searches_at_once_share_a_link(lan_pair: Engines) -> None:
    caller, callee = lan_pair
    searching = [gevent.spawn(find, caller, desc=number) for number in range(20)]
    theirs = {channel.connect_desc: channel for channel in (accept(callee) for _ in searching)}
    for greenlet in searching:
        mine = greenlet.get(timeout=PATIENCE_S)
        check_carries(mine, theirs[mine.connect_desc])
    assert len(links(caller)) == len(links(callee)) == 1


def test_callbacks(lan_pair: Engines) -> None:
    """Found and not found; in greenlets, and from a thread that has none."""
    caller, callee = lan_pair
    calls: list[tuple[int, kkp2p.channel_t, object]] = []
    for run in (lambda function: function(), in_thread):
        for peer_id, timeout in (("lan-peer", LONG), ("nobody", 50)):
            calls.clear()
            ctx = ctx_to(peer_id, timeout, func=lambda *call: calls.append(call), func_param=run)
            assert run(lambda: kkp2p.lan_search(caller, ctx, None)) == 0  # noqa: B023
            until(lambda: calls)
            result, mine, param = calls[0]
            assert param is run
            if peer_id == "nobody":
                assert (result, mine.fd) == (-1, -1)
            else:
                assert result == 0
                check_carries(mine, accept(callee))


def test_a_proxy(lan_pair: Engines) -> None:
    caller, callee = lan_pair
    proxy_id = ctypes.c_uint32()
    assert kkp2p.start_proxy(caller, "127.0.0.1", 0, ctx_to(), proxy_id) == 0
    address = kkp2p.proxy_address(caller, proxy_id)
    for number in range(5):
        with gevent.socket.create_connection(address) as program:
            program.sendall(b"question %d" % number)
            program.shutdown(socket.SHUT_WR)
            theirs = accept(callee)
            assert read_all(theirs.fd) == b"question %d" % number
            write_all(theirs.fd, b"answer")
            kkp2p.close_fd(theirs.fd)
            assert read_all(program.fileno()) == b"answer"
    kkp2p.stop_proxy(caller, proxy_id)


@pytest.mark.tuned(accept_queue_places=1)
def test_full_accept_queue(lan_port: int, make_engine: MakeEngine) -> None:
    callee, caller = (make_engine(login_domain=None, lan_search_port=lan_port) for _ in range(2))
    assert kkp2p.join_lan(callee, "lan-peer") == 0
    mine = find(caller)
    assert kkp2p.lan_search(caller, ctx_to(), kkp2p.channel_t()) == -108
    check_carries(mine, accept(callee))
    check_carries(find(caller), accept(callee))


def test_a_host_with_many_addresses(monkeypatch: pytest.MonkeyPatch, lan_pair: Engines) -> None:
    """The best ones are told: a search and its answer are one datagram each."""
    (first,) = host_candidates({int(socket.AF_INET): 1}, ["127.0.0.1"])

    def candidates(ports: dict[int, int]) -> list[Candidate]:
        best = first._replace(port=ports[int(socket.AF_INET)])
        others = [best._replace(address=f"127.0.100.{n}", priority=n) for n in range(31, 0, -1)]
        return [best, *others]

    monkeypatch.setattr(own_addresses, "host_candidates", candidates)
    check_carries(find(lan_pair[0]), accept(lan_pair[1]))


@pytest.mark.usefixtures("out_of_reach")
def test_found_but_out_of_reach(lan_pair: Engines, tmp_path: Any) -> None:
    assert kkp2p.lan_search(lan_pair[0], ctx_to(timeout=300), kkp2p.channel_t()) == -109
    assert "found by 127.0.0.1" in log_of(tmp_path, 1)


@pytest.mark.parametrize("known", [False, True], ids=["garbage", "an answer without a proof"])
def test_a_neighbour_that_answers_first(
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    lan_port: int,
    tmp_path: Path,
    known: bool,
) -> None:
    """What it sends leads nowhere: the peer is found all the same."""
    keys = [
        {"identity": str(tmp_path / name), "known_peers": str(tmp_path / f"{name}.known")}
        for name in ("caller", "callee")
    ]
    lan = {"login_domain": None, "lan_search_port": lan_port}
    caller, callee = (make_engine(**lan, **(conf if known else {})) for conf in keys)
    text = "{}"
    if known:
        fingerprint = Identity.kept_in(keys[1]["identity"]).fingerprint
        Path(keys[0]["known_peers"]).write_text(f"lan-peer {fingerprint}\n")
        text = OwnSide([]).answer()
    refused, answer = [], lan_module._take_answer

    def take_answer(sock: Any, question: Message, take: Any, once: Any) -> Any:
        if not refused:
            sock, forged = SimpleNamespace(), encode(question._replace(kind=ANSWER, text=text))
            sock.recvfrom = lambda _: (forged, ("127.0.0.66", 6))
            refused.append(answer(sock, question, take, once))
            return None
        return answer(sock, question, take, once)

    monkeypatch.setattr(lan_module, "_take_answer", take_answer)
    monkeypatch.setattr(lan_module, "UNPROVEN_S", PATIENCE_S)
    assert kkp2p.join_lan(callee, "lan-peer") == 0
    check_carries(find(caller), accept(callee))
    assert refused == [None]
    log = log_of(tmp_path, 0)
    assert log.count("the answer of 127.0.0.66:6 is not taken, the search goes on: ") == 1
    assert ("lan-peer is known by its key, and whoever takes part" in log) == known


def test_nothing_is_left(lan_pair: Engines) -> None:
    caller, callee = lan_pair
    for _ in range(3):
        mine, theirs = find(caller), accept(callee)
        close(mine, theirs)
    until(lambda: settled(caller) and settled(callee))
    kkp2p.engine_destroy(callee)
    until(lambda: not links(caller))
    assert kkp2p.lan_search(caller, ctx_to(timeout=100), kkp2p.channel_t()) == -109


def test_destroyed_while_searching(lan_port: int, make_engine: MakeEngine) -> None:
    caller = make_engine(login_domain=None, lan_search_port=lan_port)
    searching = gevent.spawn(
        kkp2p.lan_search, caller, ctx_to("nobody", 3_600_000), kkp2p.channel_t()
    )
    until(lambda: caller.dialer.busy)
    kkp2p.engine_destroy(caller)
    assert searching.get(timeout=PATIENCE_S) == -1
