"""How an engine begins and ends, whatever is going on: nothing is left, nobody waits."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event

import kkp2p_compat as kkp2p
from helpers.line_server import LineServer, Visitor
from helpers.support import PATIENCE_S
from kkp2p_compat._errors import KKP2PError

Conf = Callable[..., kkp2p.engine_conf_t]


def test_engine_init_killed_while_the_thread_starts(
    engine_conf: Conf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread comes up when nobody is left to stop it: it must end by itself."""
    gate = monkey.get_original("_thread", "allocate_lock")()
    gate.acquire()
    check = kkp2p.engine.runtime.thread._need_descriptors

    def held_up(count: int) -> None:
        gate.acquire()
        check(count)

    monkeypatch.setattr(kkp2p.engine.runtime.thread, "_need_descriptors", held_up)
    starting = gevent.spawn(kkp2p.engine_init, engine_conf(), 0)
    gevent.sleep(0)
    starting.kill()
    assert isinstance(starting.value, gevent.GreenletExit)
    gate.release()  # the leak check of every test sees whether the thread ends


def test_a_watcher_that_is_left_does_not_keep_the_thread(lone_engine: kkp2p.engine_t) -> None:
    """A bug of ours would be enough, or a program's own watcher in our hub."""
    left, other = socket.socketpair()

    def leave() -> Any:
        watcher = gevent.get_hub().loop.io(left.fileno(), 1)
        watcher.start(int)
        return watcher

    watcher = lone_engine.thread.call(leave)
    with gevent.Timeout(PATIENCE_S):
        kkp2p.engine_destroy(lone_engine)
    del watcher
    left.close()
    other.close()


def test_nobody_logs_in_after_the_end(engine_conf: Conf) -> None:
    conf = engine_conf(login_domain="127.0.0.1", login_port=1)
    engine = kkp2p.engine_init(conf, 0)
    assert engine is not None
    client = engine.client
    kkp2p.engine_destroy(engine)
    assert client is not None
    with pytest.raises(KKP2PError):
        client.login("peer", "secret")


def test_a_connect_that_engine_destroy_cuts_short(
    engine_conf: Conf, serve: Callable[..., LineServer]
) -> None:
    """It is no fault of the network's: -1, as for every other call of an engine that is gone."""
    asked = Event()

    def script(visitor: Visitor) -> None:
        visitor.receive("route")
        asked.set()
        visitor.wait_until_gone()

    port = serve(script).address[1]
    engine = kkp2p.engine_init(engine_conf(login_domain="127.0.0.1", login_port=port), 0)
    assert engine is not None
    ctx = kkp2p.connect_ctx_t("peer", timeout=PATIENCE_S * 1000)
    connecting = gevent.spawn(kkp2p.connect, engine, ctx, kkp2p.channel_t())
    asked.wait()
    kkp2p.engine_destroy(engine)
    assert connecting.get() == kkp2p.KKP2P_ERROR
