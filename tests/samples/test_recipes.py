"""The recipes of docs/recipes.rst, as they stand there, between two engines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer
from typing import Any

import gevent
import pytest

import kkp2p_compat as kkp2p
import with_asyncio
import with_epoll
import with_threads
import with_urllib
from helpers.support import PATIENCE_S, ROOT, SECRET, CloudProcess, in_thread
from peers import as_socket, call, start
from with_http_server import PeerHTTPServer
from with_wsgi import PeerWSGIServer

RECIPES = sorted((ROOT / "samples" / "recipes").glob("*.py"))
PAGE = (ROOT / "docs" / "recipes.rst").read_text()


@pytest.fixture(scope="module")
def engines(
    cloud: CloudProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[kkp2p.engine_t, kkp2p.engine_t]]:
    """A caller, and a callee that is online as "peer"."""
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(tmp_path_factory.mktemp("recipes"))
        made = []
        for _ in range(2):
            made.append(start(cloud.pinned()))
            stack.callback(kkp2p.engine_destroy, made[-1])
        assert kkp2p.join_net(made[1], "peer", SECRET) == 0
        yield made[0], made[1]


@contextlib.contextmanager
def running(function: Callable[..., object], *arguments: object) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    yield thread
    in_thread(lambda: thread.join(PATIENCE_S))
    assert not thread.is_alive()


@contextlib.contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    with server, running(server.serve_forever, 0.05):
        try:
            yield
        finally:
            in_thread(server.shutdown)


Engines = tuple[kkp2p.engine_t, kkp2p.engine_t]


def test_asyncio_with_threads(engines: Engines) -> None:
    caller, callee = engines
    stop = threading.Event()
    with running(with_threads.serve, callee, stop):
        asked = with_asyncio.ask_all(caller, ["peer"] * 5, "hello, 你好")
        try:
            assert in_thread(lambda: asyncio.run(asked)) == ["HELLO, 你好"] * 5
        finally:
            stop.set()


def test_a_peer_that_is_not_there(engines: Engines) -> None:
    with pytest.raises(ConnectionError, match="nobody: the peer is not online"):
        in_thread(lambda: asyncio.run(with_asyncio.ask(engines[0], "nobody", "hello")))
    with pytest.raises(OSError, match="not a domain"):
        start("no host")


@pytest.mark.parametrize("mode", [1, 2])
def test_epoll_of_one_caller_after_the_other(engines: Engines, mode: int) -> None:
    """A descriptor that is closed is not reported again."""
    caller, callee = engines
    collected: list[bytes] = []
    texts = [b"one", b"two", b"three"]

    def say_all() -> None:
        for text in texts:
            channel = kkp2p.channel_t()
            ctx = kkp2p.connect_ctx_t("peer", connect_mode=mode, timeout=PATIENCE_S * 1000)
            assert kkp2p.connect(caller, ctx, channel) == 0, kkp2p.error_text()
            with as_socket(channel) as sock:
                sock.sendall(text)
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""

    with running(lambda: collected.extend(with_epoll.collect(callee, len(texts)))):
        in_thread(say_all)
    assert collected == texts


def test_epoll(engines: Engines) -> None:
    """The first caller ends last, and what one says comes in two pieces."""
    caller, callee = engines
    collected: list[bytes] = []
    with running(lambda: collected.extend(with_epoll.collect(callee, 2))):
        first, second = (in_thread(lambda: call(caller, "peer")) for _ in range(2))
        with first:
            first.sendall(b"one")
            with second:
                second.sendall(b"x" * 100_000)
            first.sendall(b", two")
    assert sorted(collected) == [b"one, two", b"x" * 100_000]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.client_address[0]} wants {self.path}".encode())

    def log_message(self, *_: object) -> None:
        pass


def test_http_server(engines: Engines) -> None:
    with serving(PeerHTTPServer(engines[1], Handler)):
        page = in_thread(lambda: with_urllib.fetch(engines[0], "peer", "/page?a=b"))
    assert page == b"stranger wants /page?a=b"


def test_wsgi(engines: Engines) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode(), b" of ", environ["SERVER_NAME"].encode()]

    with serving(PeerWSGIServer(engines[1], application)):
        page = in_thread(lambda: with_urllib.fetch(engines[0], "peer", "/page"))
    assert page == b"/page of peer"


@pytest.mark.parametrize(("ends", "reason"), [("login", "another login"), ("engine", "destroyed")])
def test_a_server_that_nobody_can_call_any_more_ends(
    cloud: CloudProcess, engines: Engines, ends: str, reason: str
) -> None:
    with contextlib.ExitStack() as stack:
        callee, another = start(cloud.pinned()), start(cloud.pinned())
        for engine in (callee, another):
            stack.callback(kkp2p.engine_destroy, engine)
        assert kkp2p.join_net(callee, "other", SECRET) == 0
        server = stack.enter_context(PeerHTTPServer(callee, Handler))
        served = gevent.get_hub().threadpool.spawn(server.serve_forever, 0.05)
        stack.callback(in_thread, server.shutdown)
        in_thread(lambda: with_urllib.fetch(engines[0], "other", "/"))
        if ends == "login":
            assert kkp2p.join_net(another, "other", SECRET) == 0
        else:
            kkp2p.engine_destroy(callee)
        with pytest.raises(RuntimeError, match=reason):
            served.get(timeout=PATIENCE_S)


def test_a_peer_id_that_is_none(engines: Engines) -> None:
    with pytest.raises(OSError, match="is not 1 to 32 printable"):
        with_urllib.fetch(engines[0], "x" * 40, "/")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_on_the_page(recipe: Path) -> None:
    assert f".. literalinclude:: ../samples/recipes/{recipe.name}\n" in PAGE
    assert len(recipe.read_text().splitlines()) <= 45
