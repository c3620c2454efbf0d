"""engine_metrics: what a real parser reads of it, in step with what was done."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.direct_support import (
    LONG,
    MakeEngine,
    accept,
    check_carries,
    close,
    connect,
    ctx_to,
    links,
    until,
)
from helpers.support import SECRET, CloudProcess
from kkp2p_compat.engine.calls.metrics import _escaped

parser = pytest.importorskip("prometheus_client.parser")

MANUAL = (Path(__file__).parents[3] / "docs" / "operations.rst").read_text()


def read(engine: kkp2p.engine_t) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """By the name of a sample and its labels."""
    families = parser.text_string_to_metric_families(kkp2p.engine_metrics(engine))
    samples = [sample for family in families for sample in family.samples]
    found = {(each.name, frozenset(each.labels.items())): each.value for each in samples}
    assert len(found) == len(samples)
    return found


def value(engine: kkp2p.engine_t, name: str, **labels: str) -> float:
    return read(engine)[f"kkp2p_engine_{name}", frozenset(labels.items())]


@pytest.mark.usefixtures("on_loopback")
@pytest.mark.parametrize(("mode", "path"), [(1, "p2p"), (2, "relay-tcp")])
def test_calls_channels_and_bytes(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t, mode: int, path: str
) -> None:
    mine = connect(engine, mode)
    theirs = accept(peer)
    assert value(engine, "channels", path=path, side="called") == 1
    assert value(peer, "channels", path=path, side="accepted") == 1
    assert value(engine, "calls_total", outcome="ok", path=path) == 1
    assert value(engine, "call_seconds_count", path=path) == 1
    assert 0 < value(engine, "call_seconds_sum", path=path) < LONG
    assert value(peer, "accepted_total") == 1
    assert value(engine, "connections", path="p2p") == (mode == 1)
    check_carries(mine, theirs)
    until(lambda: value(engine, "channels", path=path, side="called") == 0)
    if mode == 1:
        _check_traffic(engine)


def _check_traffic(engine: kkp2p.engine_t) -> None:
    """It counts once, while a connection lives and when it is gone."""
    link = links(engine)[0]
    labels = {"path": "p2p", "direction": "sent"}

    def counted() -> tuple[float, int]:
        before = link.connection.packer.sent_bytes
        return value(engine, "bytes_total", **labels), before

    until(lambda: counted()[0] == link.connection.packer.sent_bytes)
    engine.thread.call(link.destroy)
    sent = link.connection.packer.sent_bytes
    assert value(engine, "bytes_total", **labels) == sent
    assert value(engine, "packets_total", path="p2p") == link.connection.packer.next_number
    assert value(engine, "packets_lost_total", path="p2p") == link.connection.packer.lost_packets
    assert value(engine, "connections", path="p2p") == 0
    assert value(engine, "bytes_total", path="p2p", direction="received") > 0


def test_calls_that_fail_and_peers_that_find_no_place(
    engine: kkp2p.engine_t, make_engine: MakeEngine
) -> None:
    assert kkp2p.connect(engine, ctx_to("other"), kkp2p.channel_t()) == -109  # it is not online
    assert value(engine, "calls_total", outcome="timeout", path="") == 1
    peer = make_engine()
    peer.acceptor.queue._places = 0
    assert kkp2p.join_net(peer, "peer", SECRET) == 0
    assert kkp2p.connect(engine, ctx_to("peer"), kkp2p.channel_t()) == -108
    assert value(engine, "calls_total", outcome="refused", path="") == 1
    assert value(peer, "refused_total") >= 1


def test_a_login_that_is_lost_and_made_again(
    start_cloud: Callable[..., CloudProcess], make_engine: MakeEngine
) -> None:
    cloud = start_cloud("--account", f"peer:{SECRET}")
    engine = make_engine(login_port=cloud.port)
    assert value(engine, "online") == value(engine, "logins_total") == 0
    assert kkp2p.join_net(engine, "peer", SECRET) == 0
    assert value(engine, "online") == value(engine, "logins_total") == 1
    assert value(engine, "info", version=kkp2p.__version__, peer="peer") == 1
    cloud.end()
    until(lambda: value(engine, "online") == 0)
    assert value(engine, "logins_lost_total") == 1
    start_cloud("--account", f"peer:{SECRET}", port=cloud.port)
    until(lambda: value(engine, "online") == 1)
    assert value(engine, "logins_total") == 2


def test_without_a_cloud(lone_engine: kkp2p.engine_t) -> None:
    names = {name for name, _ in read(lone_engine)}
    assert "kkp2p_engine_channels" in names
    assert "kkp2p_engine_online" not in names


def test_any_peer_id_is_a_label() -> None:
    text = f'a{{peer="{_escaped(chr(34) + chr(92) + "n")}"}} 1\n'
    (family,) = parser.text_string_to_metric_families(text)
    assert family.samples[0].labels == {"peer": '"\\n'}


def test_every_name_is_in_the_manual(engine: kkp2p.engine_t) -> None:
    text = kkp2p.engine_metrics(engine)
    documented = re.findall(r"^``(kkp2p_engine_\w+)``  ", MANUAL, re.MULTILINE)
    assert re.findall("# TYPE ([a-z0-9_]+) ", text) == documented


def test_the_program_of_the_manual_serves_them(engine: kkp2p.engine_t) -> None:
    block = re.search(r"\n\n((?:    .*\n|\n)*?    .*make_server\((?:.*\n|\n)*?)\n\S", MANUAL)
    assert block is not None
    program: dict[str, Any] = {"kkp2p": kkp2p, "engine": engine}
    exec(textwrap.dedent(block[1]).replace("9081", "0"), program)
    server = program["server"]
    try:
        where = f"http://127.0.0.1:{server.server_port}/metrics"
        with gevent.get_hub().threadpool.apply(urlopen, (where,)) as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert answer.read().decode() == kkp2p.engine_metrics(engine)
    finally:
        server.shutdown()
        server.server_close()
        program["thread"].join()


def test_channels_that_are_closed_count_as_closed(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    close(connect(engine, 2), accept(peer))
    until(lambda: value(engine, "channels", path="relay-tcp", side="called") == 0)
