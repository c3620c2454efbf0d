"""Channels between engines of this process: what they tell, whatever calls, what they leave.

The streams themselves are test_streams.py's.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

import kkp2p_compat as kkp2p
from helpers.support import ENVIRONMENT, PATIENCE_S, SECRET, CloudProcess, in_thread, read_all
from kkp2p_compat.engine.channels import accept_queue, kinds

LONG = PATIENCE_S * 1000
Pair = tuple[kkp2p.channel_t, kkp2p.channel_t]
MakePair = Callable[..., Pair]
all_kinds = pytest.mark.parametrize(
    ("mode", "encrypt"),
    [(1, 0), (1, 1), (2, 0), (2, 1)],
    ids=["direct", "direct, encrypted", "plain", "encrypted"],
)


def ctx_to(peer_id: str, mode: int = 2, encrypt: int = 0) -> kkp2p.connect_ctx_t:
    return kkp2p.connect_ctx_t(peer_id, connect_mode=mode, encrypt_data=encrypt, timeout=LONG)


@all_kinds
def test_what_both_sides_are_told(make_pair: MakePair, mode: int, encrypt: int) -> None:
    for channel in make_pair(mode=mode, encrypt=encrypt, desc=-7):
        assert channel.channel_type == kkp2p.KKP2P_TCP_CHANNEL
        assert channel.transmit_mode == mode
        assert channel.encrypt_data == encrypt
        assert channel.is_ipv6_p2p == 0
        assert channel.connect_desc == -7


def test_close_before_the_engine_has_read(make_pair: MakePair, engine: kkp2p.engine_t) -> None:
    """Write and close within one turn of the engine's hub: its reader still waits, and must not
    be failed by the close."""
    caller, callee = make_pair(encrypt=1)
    channel = engine.channels[caller.channel_id]

    def write_and_close() -> None:
        os.write(caller.fd, b"last")
        channel.finish(None)

    engine.thread.call(write_and_close)
    assert read_all(callee.fd) == b"last"


def test_whole_program_in_native_threads(cloud: CloudProcess, tmp_path: Path) -> None:
    """init, join, accept, connect, read, write, close, destroy, without any hub."""

    def program() -> bytes:
        conf = kkp2p.engine_conf_t("127.0.0.1", cloud.port, log_path=str(tmp_path))
        engine = kkp2p.engine_init(conf, LONG)
        assert kkp2p.join_net(engine, "other", SECRET) == 0
        mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
        assert kkp2p.connect(engine, ctx_to("other"), mine) == 0  # to itself
        assert kkp2p.accept(engine, LONG, theirs) == 1
        assert kkp2p.write(mine.fd, b"alone", 5, LONG) == 5
        kkp2p.close_fd(mine.fd)
        data = read_all(theirs.fd)
        kkp2p.close_fd(theirs.fd)
        kkp2p.engine_destroy(engine)
        return data

    assert in_thread(program) == b"alone"


PROGRAM = """
import sys
if sys.argv[3] == "patched":
    from gevent import monkey
    monkey.patch_all()
import kkp2p_compat as kkp2p, threading
def run(engine, name):
    mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
    ctx = kkp2p.connect_ctx_t("other", connect_mode=int(name) % 3, timeout=20000)
    ctx.encrypt_data = int(name) % 2
    assert kkp2p.connect(engine, ctx, mine) == 0, kkp2p.error_no()
    assert kkp2p.accept(engine, 20000, theirs) == 1
    buff = bytearray(10)
    assert kkp2p.write(mine.fd, b"x", 1, 1000) == 1
    kkp2p.close_fd(mine.fd), kkp2p.close_channel(engine, mine.channel_id)
    # whose the accepted one is, is open: calls of several threads cross
    assert kkp2p.read(theirs.fd, buff, 10, 20000) == 1
    assert kkp2p.read(theirs.fd, buff, 10, 20000) == -1
    kkp2p.close_fd(theirs.fd)
conf = kkp2p.engine_conf_t("127.0.0.1", int(sys.argv[1]), log_path=sys.argv[2])
engine = kkp2p.engine_init(conf, 5000)
second = kkp2p.engine_init(conf, 5000)
assert kkp2p.join_net(engine, "other", "correct horse") == 0
threads = [threading.Thread(target=run, args=(engine, str(n))) for n in range(20)]
for t in threads: t.start()
for t in threads: t.join()
called = threading.Event()
ctx = kkp2p.connect_ctx_t("nobody", connect_mode=2, timeout=20000, func=lambda *a: called.set())
assert kkp2p.connect(second, ctx, None) == 0
assert called.wait(20)
if sys.argv[3] == "forgetful":  # no engine_destroy: what was written still arrives
    sys.exit(0)
kkp2p.engine_destroy(engine)
kkp2p.engine_destroy(second)
print("ended", "gevent" in dir(), flush=True)
"""


@pytest.mark.parametrize("style", ["plain", "patched", "forgetful"])
def test_program_styles(cloud: CloudProcess, tmp_path: Path, style: str) -> None:
    """A program with threads that never imports gevent; the same monkey-patched."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(cloud.port), str(tmp_path), style],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    log = (tmp_path / "kkp2p_engine.log").read_text()
    assert "bug" not in log
    assert "Traceback" not in log


def test_several_engines_at_once(make_engine: Callable[..., kkp2p.engine_t]) -> None:
    """Two that are logged in, two that call, all crosswise."""
    callees = {name: make_engine() for name in ("peer", "other")}
    for name, engine in callees.items():
        assert kkp2p.join_net(engine, name, SECRET) == 0
    for caller in (make_engine(), make_engine(), *callees.values()):
        for name, engine in callees.items():
            mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
            assert kkp2p.connect(caller, ctx_to(name, 2, 1), mine) == 0
            assert kkp2p.accept(engine, LONG, theirs) == 1
            assert theirs.peer_id == name
            kkp2p.close_fd(mine.fd)
            kkp2p.close_fd(theirs.fd)


@pytest.mark.tuned(accept_queue_places=2)
def test_full_accept_queue(make_engine: Callable[..., kkp2p.engine_t]) -> None:
    """Beyond the queue's places a call is refused and the caller told; then there is room again."""
    callee, caller = make_engine(), make_engine()
    assert kkp2p.join_net(callee, "peer", SECRET) == 0
    mine = [kkp2p.channel_t() for _ in range(4)]
    for channel in mine[:2]:
        assert kkp2p.connect(caller, ctx_to("peer"), channel) == 0
    assert kkp2p.connect(caller, ctx_to("peer"), mine[2]) == kkp2p.KKP2P_ERROR_OTHER_DISCONNECT
    theirs = [kkp2p.channel_t() for _ in range(3)]
    assert kkp2p.accept(callee, LONG, theirs[0]) == 1
    assert kkp2p.connect(caller, ctx_to("peer"), mine[3]) == 0
    for channel in theirs[1:]:
        assert kkp2p.accept(callee, LONG, channel) == 1
    for channel in [*mine, *theirs]:
        kkp2p.close_fd(channel.fd)


@pytest.mark.parametrize(("soft", "places"), [(12, 3), (1, 1), (65536, 1024), (-1, 1024)])
def test_accept_queue_leaves_descriptors(
    monkeypatch: pytest.MonkeyPatch,
    make_engine: Callable[..., kkp2p.engine_t],
    soft: int,
    places: int,
) -> None:
    """It takes a quarter of the process's descriptors at most; -1: there is no limit."""
    monkeypatch.setattr(accept_queue.resource, "getrlimit", lambda _: (soft, soft))
    queue = make_engine(login_domain=None).acceptor.queue
    taken = 0
    while queue.reserve(has_account=True):
        taken += 1
    assert taken == places


@pytest.mark.usefixtures("on_loopback")
def test_time_out_of_the_caller_itself(
    make_engine: Callable[..., kkp2p.engine_t], lan_port: int
) -> None:
    """A gevent.Timeout of the application passes through every call that waits."""
    engine = make_engine(login_domain=None, lan_search_port=lan_port)
    ctx = kkp2p.connect_ctx_t("peer", timeout=3_600_000)
    for call in (
        lambda: kkp2p.accept(engine, 3_600_000, kkp2p.channel_t()),
        lambda: kkp2p.connect(engine, ctx, kkp2p.channel_t()),
    ):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            call()


@pytest.mark.usefixtures("on_loopback")
def test_destroy_wakes_everybody(make_engine: Callable[..., kkp2p.engine_t], lan_port: int) -> None:
    engine, alone = make_engine(), make_engine(login_domain=None, lan_search_port=lan_port)
    ctx = kkp2p.connect_ctx_t("peer", timeout=3_600_000)
    waiting = [
        gevent.spawn(kkp2p.accept, engine, 3_600_000, kkp2p.channel_t()),
        gevent.spawn(kkp2p.connect, alone, ctx, kkp2p.channel_t()),
        gevent.spawn(in_thread, lambda: kkp2p.accept(engine, 3_600_000, kkp2p.channel_t())),
    ]
    gevent.sleep(0)  # they start
    kkp2p.engine_destroy(engine)
    kkp2p.engine_destroy(alone)
    with gevent.Timeout(PATIENCE_S):
        assert [greenlet.get() for greenlet in waiting] == [-1, -1, -1]


@all_kinds
def test_a_thousand_connects_leave_nothing(
    on_loopback: None, engine: kkp2p.engine_t, peer: kkp2p.engine_t, mode: int, encrypt: int
) -> None:
    """No descriptor, greenlet or table entry; threads are looked at by the fixture of all tests."""
    theirs = kkp2p.channel_t()

    def connect_and_close(count: int) -> None:
        for _ in range(count):
            mine = kkp2p.channel_t()
            assert kkp2p.connect(engine, ctx_to("peer", mode, encrypt), mine) == 0
            assert kkp2p.accept(peer, LONG, theirs) == 1
            for channel, owner in ((mine, engine), (theirs, peer)):
                kkp2p.close_fd(channel.fd)
                kkp2p.close_channel(owner, channel.channel_id)

    def settled() -> tuple[int, int, int]:
        with gevent.Timeout(PATIENCE_S):
            while engine.channels or peer.channels or engine.busy() or peer.busy():
                gevent.sleep(0.05)
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(engine.channels)

    connect_and_close(10)
    before = settled()
    with gevent.Timeout(6 * PATIENCE_S):
        connect_and_close(250)  # four kinds
    with gevent.Timeout(PATIENCE_S, False):  # an engine may just be asking where it is seen
        while settled() != before:
            gevent.sleep(0.05)
    assert settled() == before


@pytest.mark.usefixtures("on_loopback")
def test_an_ended_channel_leaves_nothing_to_the_collector(
    engine: kkp2p.engine_t, peer: kkp2p.engine_t
) -> None:
    """Circles are found by a search through all objects: a tenth of the time of short channels."""
    gc.collect()
    gc.disable()
    try:
        mine, theirs = kkp2p.channel_t(), kkp2p.channel_t()
        assert kkp2p.connect(engine, ctx_to("peer", 1), mine) == 0
        assert kkp2p.accept(peer, LONG, theirs) == 1
        left = [
            weakref.ref(one.channels[channel.channel_id])
            for one, channel in ((engine, mine), (peer, theirs))
        ]
        assert all(one() is not None for one in left)
        for channel in (mine, theirs):
            kkp2p.close_fd(channel.fd)
        with gevent.Timeout(PATIENCE_S):
            while any(one() is not None for one in left):
                gevent.sleep(0.01)
    finally:
        gc.enable()


@pytest.mark.parametrize("module", [socket, gevent.socket], ids=["plain", "monkey-patched"])
@pytest.mark.parametrize("default", [None, 0.01])
def test_no_end_of_a_pair_waits(
    monkeypatch: pytest.MonkeyPatch, module: Any, default: float | None
) -> None:
    monkeypatch.setattr(kinds, "_socket", module)
    socket.setdefaulttimeout(default)
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            ours, theirs = kinds._make_pair(kind)
            with ours, theirs:
                for end in (ours, theirs):
                    assert end.gettimeout() == 0
                    assert not os.get_blocking(end.fileno())
                    with pytest.raises(BlockingIOError):
                        end.recv(1)
    finally:
        socket.setdefaulttimeout(None)
