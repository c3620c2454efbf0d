"""What the tests of the cloud and the relay share: sockets, a cloud in process, a plain client."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent import ssl as gssl
from scramp import ScramClient

from helpers.ports import free_port
from helpers.support import ENVIRONMENT
from kkp2p_compat.cloud.directory import Directory
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.cloud.settings import CloudSettings, Limits
from kkp2p_compat.control.binding import end_point_binding
from kkp2p_compat.transport import relay_wire

__all__ = [
    "SEEN",
    "Address",
    "Client",
    "Scene",
    "StartProcess",
    "cloud_process",
    "end_process",
    "open_relay",
    "running_admin",
    "running_cloud",
    "running_scene",
    "tcp_pair",
    "time_passes",
    "until",
]

Address = tuple[str, int]
SEEN = ["127.0.0.1"]  # where a cloud of a test sees those that do not say otherwise
LIMIT_S = 60  # nothing here takes as long


def tcp_pair() -> tuple[gsocket.socket, gsocket.socket]:
    """Two ends of one TCP connection on loopback, as gevent sockets."""
    with gsocket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = gsocket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def until(condition: Any) -> None:
    """Let the hub run until the condition holds; the test's time limit bounds it."""
    with gevent.Timeout(LIMIT_S, AssertionError(f"{condition} never held")):
        while not condition():
            gevent.sleep(0.005)


def time_passes(cloud: Cloud, seconds: float) -> None:
    """What the cloud's next sweep would do so much later."""
    now = time.monotonic() + seconds
    cloud.gate.sweep(now)
    if cloud.track is not None:
        cloud.track.sweep(now)
    if cloud.relay is not None:
        cloud.relay.sweep(now)


@contextmanager
def running_cloud(
    accounts: dict[str, str] | None = None,
    limits: dict[str, Any] | None = None,
    directory: Directory | None = None,
    directory_url: str | None = None,
    **settings: Any,
) -> Iterator[Cloud]:
    """A cloud on a free port of loopback that holds its limits against loopback, too."""
    limits = {"limit_loopback": True, **(limits or {})}
    settings = {"host": "127.0.0.1", "port": free_port(), "drain_s": 0.0, **settings}
    settings |= {"directory": directory_url or (directory and "the test's own")}
    made = CloudSettings(accounts=accounts or {}, limits=Limits(**limits), **settings)
    cloud = Cloud(made, directory)
    cloud.start()
    try:
        with gevent.Timeout(LIMIT_S, AssertionError("the test takes too long")):
            yield cloud
    finally:
        cloud.stop()


@contextmanager
def running_admin(cloud: Cloud) -> Iterator[Any]:
    """Its Admin, on a free port of loopback."""
    from kkp2p_compat.cloud.admin import Admin  # what it needs, other tests do not

    admin = Admin(cloud, ("127.0.0.1", 0))
    admin.start()
    try:
        yield admin
    finally:
        admin.stop()


StartProcess = Callable[..., tuple[subprocess.Popen[str], Address]]


@pytest.fixture
def cloud_process() -> Iterator[StartProcess]:
    """Starts ``kkp2p cloud`` as a process of its own, and says where it listens.

    One that the test has not ended, perhaps as it has failed, is killed after it.
    ``descriptors``: the most that it may have open.
    """
    with ExitStack() as running:

        def start(
            *arguments: str, descriptors: int | None = None, listen: str = "127.0.0.1:0"
        ) -> tuple[subprocess.Popen[str], Address]:
            def limit() -> None:
                if descriptors is not None:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

            process = subprocess.Popen(
                [sys.executable, "-m", "kkp2p_compat", "cloud", "--listen", listen, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT,
                preexec_fn=limit,
            )
            running.enter_context(process)
            running.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            where = process.stdout.readline().strip()
            assert where.startswith("at "), process.communicate()
            host, _, port = where[3:].rpartition(":")
            return process, (host, int(port))

        yield start


def end_process(process: subprocess.Popen[str], signals: int = 1) -> tuple[int, str]:
    """SIGTERM; the exit status and what it wrote to standard error."""
    for _ in range(signals):
        process.terminate()
    _, log = process.communicate(timeout=LIMIT_S)
    return process.returncode, log


class Client:
    """A peer's or caller's control connection, one blocking step at a time."""

    def __init__(
        self,
        address: Address,
        source: str = "127.0.0.1",
        receive_bytes: int | None = None,
        **context_options: Any,
    ) -> None:
        """``receive_bytes``: of the kernel's buffer.  Set before connecting: a receive window that
        shrinks later can make the kernel ignore acknowledgements, and both sides wait for ever.
        """
        context = gssl.SSLContext(gssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = gssl.CERT_NONE
        for name, value in context_options.items():
            setattr(context, name, value)
        self.address = address
        self.raw = gsocket.socket(
            socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM
        )
        if receive_bytes is not None:
            self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            self.raw.bind((source, 0))
            self.raw.connect(address)
        except BaseException:
            self.raw.close()
            raise
        self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.sock = context.wrap_socket(self.raw)
        except BaseException:
            self.raw.close()
            raise
        self._lines = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, op: str, **fields: Any) -> None:
        self.send_raw(json.dumps({"op": op, **fields}).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> dict[str, Any]:
        """The next message; EOFError at the end."""
        with gevent.Timeout(LIMIT_S, AssertionError("no message came")):
            while b"\n" not in self._lines:
                data = self.sock.recv(65536)
                if not data:
                    raise EOFError("closed by the cloud")
                self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        message = json.loads(line)
        assert next(iter(message)) == "op"
        return dict(message)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        self.send(op, **fields)
        return self.receive()

    def ended(self) -> bool:
        """Whether the cloud closes without another message."""
        try:
            message = self.receive()
        except (EOFError, ConnectionError):
            return True
        raise AssertionError(f"instead of the end: {message}")

    def login(
        self, peer_id: str, secret: str, binding: bytes | None = None, **more: Any
    ) -> dict[str, Any]:
        """The last answer: ``welcome`` or ``refused``."""
        if binding is None:
            certificate = self.sock.getpeercert(binary_form=True)
            assert certificate is not None
            binding = end_point_binding(certificate)
        scram = ScramClient(
            ["SCRAM-SHA-256-PLUS"],
            peer_id,
            secret,
            channel_binding=("tls-server-end-point", binding),
        )
        answer = self.ask("login", v=1, peer=peer_id, scram=scram.get_client_first(), **more)
        if answer["op"] != "challenge":
            return answer
        scram.set_server_first(answer["scram"])
        answer = self.ask("proof", scram=scram.get_client_final())
        if answer["op"] == "welcome":
            scram.set_server_final(answer["scram"])  # raises if the server has no verifier
        return answer

    def call(self, to: str, number: int = 1, offer: str = "{}", ms: int = 20_000) -> dict[str, Any]:
        return self.ask("call", call=number, to=to, ms=ms, offer=offer)


def open_relay(place: list[Any], default: Address, wants_receipt: bool = False) -> gsocket.socket:
    """Connect to the relay of a ``relay`` field and say hello; the answer is the next byte."""
    host, port, text = place
    sock = gsocket.create_connection((host or default[0], port or default[1]))
    token = relay_wire.token_from_text_untrusted(text)
    sock.sendall(relay_wire.hello(token, wants_receipt))
    return sock


SCENE_ACCOUNTS = {"callee": "c", "caller": "d"}


class Scene:
    """A cloud, a callee that is online and a caller without login."""

    def __init__(self, cloud: Cloud) -> None:
        assert cloud.track is not None
        self.cloud = cloud
        self.track = cloud.track
        self.callee = Client(cloud.address)
        self.caller = Client(cloud.address)
        assert self.callee.login("callee", "c")["op"] == "welcome"

    def close(self) -> None:
        self.callee.close()
        self.caller.close()


@contextmanager
def running_scene(**limits: Any) -> Iterator[Scene]:
    with running_cloud(SCENE_ACCOUNTS, limits) as cloud:
        made = Scene(cloud)
        try:
            yield made
        finally:
            made.close()
        until(lambda: made.track.calls == 0)
        assert not cloud.gate.open_calls
        assert not cloud.gate.kept_calls
        assert not made.track._calls._turns
