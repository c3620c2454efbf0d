"""error_text: why a call failed, in the words of the log, where error_no has the code."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
from helpers.cloud_fixtures import LONG
from helpers.line_server import wait_for
from helpers.support import in_thread

PEER = kkp2p.connect_ctx_t("peer", timeout=LONG)


def log_of(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("kkp2p_engine.log"))


CALLS: dict[str, tuple[int, Callable[[kkp2p.engine_t], int], str]] = {
    "join_net": (-111, lambda e: kkp2p.join_net(e, "peer", "wrong"), "the cloud refuses"),
    "join_lan": (-110, lambda e: kkp2p.join_lan(e, "a b"), "'a b' is not 1 to 32 printable"),
    "connect": (-109, lambda e: kkp2p.connect(e, PEER, kkp2p.channel_t()), "peer: "),
    "accept": (-106, lambda e: kkp2p.accept(e, -1, kkp2p.channel_t()), "timeout is -1, not 0 to"),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_is_what_the_log_says(engine: kkp2p.engine_t, tmp_path: Path, name: str) -> None:
    code, call, text = CALLS[name]
    assert call(engine) == kkp2p.error_no() == code
    assert text in kkp2p.error_text()
    (code_name,) = (each for each in kkp2p.__all__ if getattr(kkp2p, each) == code)
    assert f"{name}: {code_name}: {kkp2p.error_text()}\n" in log_of(tmp_path)
    assert kkp2p.accept(engine, 0, kkp2p.channel_t()) == 0
    assert kkp2p.error_text() == "", "that call went well"


def test_an_engine_that_does_not_start(engine_conf: Callable[..., Any]) -> None:
    assert kkp2p.engine_init(engine_conf(login_domain="a..b", login_port=1), 0) is None
    assert kkp2p.error_no() == -101
    assert "a..b" in kkp2p.error_text()


def test_each_greenlet_and_thread_has_its_own() -> None:
    def both() -> tuple[int, str]:
        return kkp2p.error_no(), kkp2p.error_text()

    assert kkp2p.read(-1, bytearray(1), 1, 0) == -1
    ours = both()
    assert ours == (-1, "fd is -1, not 0 to 2147483647")
    assert gevent.spawn(both).get() == in_thread(both) == (0, "")
    assert both() == ours


def in_greenlet(function: Callable[[], Any]) -> Any:
    return gevent.spawn(function).get()


@pytest.mark.parametrize("where", [in_greenlet, in_thread])
@pytest.mark.usefixtures("peer")
def test_a_callback_has_the_reason(
    engine: kkp2p.engine_t, tmp_path: Path, where: Callable[..., Any]
) -> None:
    """Also where the next one, on the same thread, has none."""
    found: list[tuple[str, int, int, str]] = []

    def callback(result: int, channel: kkp2p.channel_t, _: object) -> None:
        found.append((channel.peer_id, result, kkp2p.error_no(), kkp2p.error_text()))
        kkp2p.close_fd(channel.fd)

    for number, peer_id in enumerate(("nobody", "peer"), 1):
        ctx = kkp2p.connect_ctx_t(peer_id, timeout=LONG, connect_mode=2, func=callback)
        assert where(lambda ctx=ctx: kkp2p.connect(engine, ctx, None)) == 0
        wait_for(lambda number=number: len(found) == number)
    (*failure, text), success = found
    assert failure == ["nobody", -1, -109]
    assert text.startswith("nobody: ")
    assert f"asynchronous connect: {text}\n" in log_of(tmp_path)
    assert success == ("peer", 0, 0, "")


@pytest.mark.parametrize("mode", [1, 2])
def test_the_ends_of_a_channel(make_pair: Callable[..., Any], mode: int) -> None:
    buff = bytearray(1)

    def read(fd: int) -> tuple[int, int, str]:
        return kkp2p.read(fd, buff, 1, LONG), kkp2p.error_no(), kkp2p.error_text()

    ours, theirs = make_pair(mode=mode)
    kkp2p.close_fd(theirs.fd)
    assert read(ours.fd) == (-1, -108, "the peer has sent all")
    ours, theirs = make_pair(mode=mode)
    kkp2p.abort_fd(theirs.fd)
    result, code, text = read(ours.fd)
    assert (result, code) == (-1, -107)
    assert text.startswith("the channel was cut: ")
    assert "None" not in text


def test_a_number_that_is_no_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = os.dup(ours.fileno())
        os.close(number)
        for call in (kkp2p.read, kkp2p.write):
            assert call(number, bytearray(1), 1, 0) == -1
            assert kkp2p.error_no() == -1
            assert kkp2p.error_text() == f"descriptor {number}: Bad file descriptor"
        theirs.close()
        with contextlib.suppress(OSError):
            ours.send(b"x")
        assert kkp2p.write(ours.fileno(), b"x", 1, LONG) == -1
        assert (kkp2p.error_no(), kkp2p.error_text()) == (-108, "the peer has closed")
