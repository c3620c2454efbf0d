"""Ask one router for a UDP port by UPnP-IGD: a search of our own, then miniupnpc.

miniupnpc is written in C and blocks, so its calls run in a thread pool of one thread.  It also
trusts what it talks to: it follows any address in a device's description and reads without a bound
in size or time.  So it never talks to the router itself.  A ``Guard`` on loopback stands between:
it carries each HTTP exchange to the router, and to nobody else, at most MAX_BYTES and EXCHANGE_S
long; when it closes, a call in progress ends too, and with it the thread.  The XML that arrives is
parsed by miniupnpc; its results are checked here.

The search (SSDP, UPnP Device Architecture 1.1 section 1.3) goes to the router and to the multicast
group, as not every router answers a unicast; only the router's answer counts, and only with a
description that is on the router.

miniupnpc has no wheels for every Python: without it ``available`` is False.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent import select, socket

from .._errors import BadPacket, KKP2PError, TimedOut, from_os_error
from .._io import time_limit
from .gateway import Mapping, Refused, Session, checked

try:
    import miniupnpc
except ImportError:
    miniupnpc = None

__all__ = ["Guard", "UpnpSession", "available", "parse_answer_untrusted", "search"]

T = TypeVar("T")

# UPnP Device Architecture 1.1 section 1.3.2.
SSDP_PORT = 1900
SSDP_GROUP = "239.255.255.250"
SSDP_TTL = 2
SSDP_MX_S = 1  # devices spread their answers over as many seconds
DEVICE = "urn:schemas-upnp-org:device:InternetGatewayDevice:"  # and its version, 1 or 2

# Our choices.
SEARCHES = 3  # datagrams are lost
SEARCH_EVERY_S = 1.0
MAX_ANSWER_BYTES = 2048  # of the search; the largest seen have 500
MAX_BYTES = 65536  # of an HTTP answer; descriptions have 3,000 to 10,000
MAX_REQUEST_BYTES = 16384  # miniupnpc's own requests have about 1,000
EXCHANGE_S = 4.0  # of one HTTP exchange; under the 5 s for which miniupnpc waits for a byte
CALL_S = 20.0  # of what one method makes of several exchanges
PORT_TRIES = 4  # external ports asked for when others have them
FIRST_FREE_PORT, PORTS = 20000, 40000  # where random external ports are
DESCRIPTION = "kkp2p"  # what the router's list of mappings shows

_HOST = re.compile(rb"\r\nHost:[^\r\n]*", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\nContent-Length: *(\d{1,6})\r\n", re.IGNORECASE)
_LOCATION = re.compile(r"http://([0-9.]{7,15})(?::(\d{1,5}))?(/[!-~]{0,500})")


def available() -> bool:
    return miniupnpc is not None


def parse_answer_untrusted(data: bytes, gateway: str) -> tuple[int, str]:
    """The port and path of the description that an answer to a search names, at ``gateway``."""
    if len(data) > MAX_ANSWER_BYTES or not data.isascii():
        raise BadPacket("an SSDP answer that is too long, or not ASCII")
    first, *lines = data.decode().split("\r\n")
    if not re.fullmatch(r"HTTP/1\.[01] 200 .*", first):
        raise BadPacket("not an SSDP answer")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    if not headers.get("st", "").startswith(DEVICE):
        raise BadPacket("an SSDP answer of another device")
    found = _LOCATION.fullmatch(headers.get("location", ""))
    if found is None or found[1] != gateway:
        raise BadPacket("a description that is not at the router")
    port = int(found[2] or 80)
    if not 0 < port < 65536:
        raise BadPacket("an SSDP answer with a bad port")
    return port, found[3]


def search(gateway: str, port: int = SSDP_PORT) -> tuple[int, str]:
    """Find the router's description: its port and path.  Raises TimedOut after some seconds."""
    not_found = TimedOut(f"{gateway} does not answer the UPnP search")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            own = source_address(gateway)
            sock.bind((own, 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, SSDP_TTL)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
            for _ in range(SEARCHES):
                _send_search(sock, gateway, port)
                found = None
                with gevent.Timeout(SEARCH_EVERY_S, False):
                    found = _wait_for_answer(sock, gateway)
                if found is not None:
                    return found
    except OSError as error:
        raise from_os_error(error, f"the UPnP search at {gateway}") from error
    raise not_found


def source_address(gateway: str) -> str:
    """Our address on the way to the router.  Connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((gateway, SSDP_PORT))
        return str(sock.getsockname()[0])


def _send_search(sock: Any, gateway: str, port: int) -> None:
    problems = []
    for host in (gateway, SSDP_GROUP):
        for version in (1, 2):
            text = (
                f"M-SEARCH * HTTP/1.1\r\nHOST: {SSDP_GROUP}:{SSDP_PORT}\r\n"
                f'MAN: "ssdp:discover"\r\nMX: {SSDP_MX_S}\r\nST: {DEVICE}{version}\r\n\r\n'
            )
            try:
                sock.sendto(text.encode(), (host, port))
            except OSError as error:  # a host may have no multicast
                problems.append(error)
    if len(problems) == 4:
        raise problems[0]


def _wait_for_answer(sock: Any, gateway: str) -> tuple[int, str]:
    while True:
        data, source = sock.recvfrom(MAX_ANSWER_BYTES + 1)
        if source[0] == gateway:
            try:
                return parse_answer_untrusted(data, gateway)
            except BadPacket:
                data = b""  # of another device of the router; ours may still answer
        gevent.sleep(0)  # a flood must not keep timers and others from running


class Guard:
    """Carries miniupnpc's requests to one port of one router, bounded in size and time.

    Asks as HTTP/1.0, so that the end of an answer is the end of its connection.  Addresses of the
    router in an answer are made relative, and a base address is hidden, so that what miniupnpc
    asks next comes here, too.
    """

    def __init__(self, gateway: str, port: int) -> None:
        self._target = gateway, port
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._listener.bind(("127.0.0.1", 0))
            self._listener.listen(4)
        except OSError:
            self._listener.close()
            raise
        self.base = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """May wait for a moment, never for the router."""
        self._greenlet.kill()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # out of descriptors; miniupnpc waits in the meantime, and gives up
                gevent.sleep(EXCHANGE_S / 4)
                continue
            try:
                self._serve(client)
            finally:
                client.close()

    def _serve(self, client: Any) -> None:
        request = b""
        answer = bytearray()
        try:
            with gevent.Timeout(EXCHANGE_S, False):
                request = self._read_request(client)
                self._ask(request, client, answer)
            client.sendall(self._made_relative(bytes(answer)))  # into the buffers of loopback
        except OSError:
            return  # miniupnpc gets an answer that is cut short, and reports that

    def _read_request(self, client: Any) -> bytes:
        data = b""
        while len(data) < MAX_REQUEST_BYTES and (more := client.recv(4096)):
            data += more
            head, end, body = data.partition(b"\r\n\r\n")
            length = _LENGTH.search(head + b"\r\n")
            if end and len(body) >= (int(length[1]) if length else 0):
                break
        host, port = self._target
        data = data.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
        return _HOST.sub(f"\r\nHost: {host}:{port}".encode(), data, count=1)

    def _ask(self, request: bytes, client: Any, answer: bytearray) -> None:
        with socket.create_connection(self._target) as upstream:
            upstream.sendall(request)
            while len(answer) < MAX_BYTES:
                ready, _, _ = select.select([upstream, client], [], [])
                if client in ready:  # the client has closed its end: it has given up
                    return
                data = upstream.recv(MAX_BYTES - len(answer))
                if not data:
                    return
                answer += data

    def _made_relative(self, answer: bytes) -> bytes:
        host, port = self._target
        answer = answer.replace(b"<URLBase>", b"<URLbase>")
        answer = answer.replace(f"http://{host}:{port}/".encode(), b"/")
        # The length has changed, and the end of the connection says it as well.
        return _LENGTH.sub(b"\r\n", answer, count=1)


class UpnpSession(Session):
    """``make`` gives an object like miniupnpc.UPnP()."""

    method = "upnp"

    def __init__(
        self, gateway: str, port: int = SSDP_PORT, make: Callable[[], Any] | None = None
    ) -> None:
        super().__init__(gateway)
        self._port = port
        self._make = make or miniupnpc.UPnP
        self._pool: Any = None
        self._guard: Guard | None = None
        self._igd: Any = None  # used in the pool's thread only
        self._asked: tuple[str, int] | None = None  # our address, and the external port asked for

    def probe(self) -> None:
        port, path = search(self.gateway, self._port)
        try:
            self._guard = Guard(self.gateway, port)
        except OSError as error:
            raise from_os_error(error, "a socket on loopback") from error
        # Imported here, as it brings concurrent.futures, and most hosts find no such router.
        from gevent.threadpool import ThreadPool

        self._pool = ThreadPool(1)
        self._igd = self._make()
        control = self._call(self._igd.selectigd, self._guard.base + path)
        if not str(control).startswith(self._guard.base + "/"):
            raise Refused(f"{self.gateway} names a control address that is not its own")
        if control == self._guard.base + "/":  # what miniupnpc returns when it has found none
            raise Refused(f"{self.gateway} describes no connection to the internet")

    def map(self, internal_port: int, external_port: int, lease_s: int) -> Mapping:
        try:
            own = source_address(self.gateway)
        except OSError as error:
            raise from_os_error(error, f"no way to {self.gateway}") from error
        with time_limit(CALL_S, TimedOut(f"{self.gateway} is too slow with UPnP")):
            ip = str(self._call(self._igd.externalipaddress))
            for _ in range(PORT_TRIES):
                if self._is_free(external_port, own, internal_port):
                    self._asked = own, external_port
                    try:
                        return checked(
                            ip, external_port, self._add(external_port, own, internal_port, lease_s)
                        )
                    except Refused as error:
                        if "Conflict" not in str(error):
                            raise
                        self._asked = None
                external_port = FIRST_FREE_PORT + secrets.randbelow(PORTS)
        raise Refused(f"{self.gateway} has other mappings for each port that was tried")

    def _is_free(self, external_port: int, own: str, internal_port: int) -> bool:
        """Some routers would give us a port that another host has, which must not lose it."""
        entry = self._call(self._igd.getspecificportmapping, external_port, "UDP")
        return entry is None or tuple(entry[:2]) == (own, internal_port)

    def _add(self, external_port: int, own: str, internal_port: int, lease_s: int) -> int:
        """The lease in seconds; an endless one counts as what was asked for, and is renewed too."""
        arguments = external_port, "UDP", own, internal_port, DESCRIPTION, ""
        try:
            self._call(self._igd.addportmapping, *arguments, lease_s)
        except Refused as error:
            if "OnlyPermanentLeasesSupported" not in str(error):
                raise
            self._call(self._igd.addportmapping, *arguments, 0)
        return lease_s

    def unmap(self) -> None:
        if self._asked is not None:
            # Runs after an ``add`` in progress, as the pool has one thread.
            self._call(self._igd.deleteportmapping, self._asked[1], "UDP")
            self._asked = None

    def close(self) -> None:
        """The thread ends, a call in progress included.  May wait for a moment."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.kill()

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        def in_thread() -> T | KKP2PError:
            try:
                return function(*arguments)
            except Exception as error:  # noqa: BLE001 - miniupnpc raises nothing more special
                return Refused(f"{self.gateway} refuses by UPnP: {str(error)[:200]}")

        try:
            result: T | KKP2PError = self._pool.spawn(in_thread).get()
        except RuntimeError as error:
            raise Refused(f"no thread for UPnP: {error}") from error
        if isinstance(result, KKP2PError):
            raise result
        return result
