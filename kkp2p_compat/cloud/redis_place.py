"""Where Redis is, and connections to it that wait in the hub.

A connection is redis-py's, over a socket of gevent's: nothing is patched.  redis-py locks nothing
in it, but it must be used by one greenlet at a time.

``redis://[USER:PASSWORD@]HOST[:PORT][/DB]``; ``rediss://`` the same over TLS; ``unix:///PATH``;
``redis+sentinel://HOST[:PORT],HOST[:PORT].../NAME[/DB]``, or ``rediss+sentinel://``: the master of
that name, of which the sentinels tell where it is.  Behind a ``?``: OPTIONS below.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import gevent
from gevent import socket, ssl
from redis import exceptions
from redis.connection import Connection

from .._address import HostPort, parse_host_port, text_of
from .._errors import KKP2PError
from ..control.resolver import addresses_of
from ..transport import dial

__all__ = ["FAULTS", "REDIS_TIMEOUT_S", "RedisPlace"]

# Our choices.
REDIS_TIMEOUT_S = 2.0  # for anything that Redis is asked
SENTINEL_TIMEOUT_S = 1.0  # for one of several sentinels: a dead one must not use up the time

REDIS_PORT = 6379
SENTINEL_PORT = 26379

_SCHEMES = [("unix", ""), *itertools.product(("redis", "rediss"), ("", "sentinel"))]

# What a connection may raise because of the other side, or the way there.
FAULTS = (exceptions.RedisError, OSError, KKP2PError)

OPTIONS = {
    "prefix": "what all keys begin with (kkp2p:)",
    "ssl_ca_certs": "a file with the certificates to trust, instead of the system's",
    "ssl_certfile": "a certificate to show, and",
    "ssl_keyfile": "its key",
    "ssl_check_hostname": "false: a certificate for another name is good, too",
    "sentinel_username": "for the sentinels, which have accounts of their own",
    "sentinel_password": "the same",
}


class _HubConnection(Connection):  # type: ignore[misc]
    def __init__(self, place: RedisPlace, **settings: Any) -> None:
        # The second version of Redis' protocol: one answer for each command, and nothing besides.
        super().__init__(protocol=2, **settings)
        self._place = place

    def _connect(self) -> Any:
        sock = self._place.open_socket((self.host, self.port))
        sock.settimeout(self.socket_timeout)
        return sock


@dataclass(frozen=True)
class RedisPlace:
    """Where it is: ``hosts`` are Redis, or the sentinels that know which is the master ``name``."""

    hosts: list[HostPort]
    path: str = ""  # of a Unix socket, instead
    name: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    tls: Any = None  # an SSLContext, or None

    @classmethod
    def parse(cls, url: str) -> RedisPlace:
        """Raises ValueError, or OSError for a file that cannot be used; neither tells secrets."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise ValueError(f"a directory has no option {', '.join(unknown)}")
        scheme, _, kind = parts.scheme.partition("+")
        if (scheme, kind) not in _SCHEMES:
            raise ValueError("a directory is redis://HOST, or another URL of the manual's")
        credentials, _, hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        accounts: dict[str, Any] = {
            "username": unquote(user) or None,
            "password": unquote(password) or None,
        }
        tls = _tls(options) if scheme == "rediss" else None
        if scheme == "unix":
            return cls([], unquote(parts.path), options=options, **accounts)
        *name, database = [*parts.path.strip("/").split("/"), ""][: 2 if kind else 1]
        if kind and not name[0]:
            raise ValueError("behind the sentinels stands the name of the master")
        if database and not database.isdecimal():
            raise ValueError(f"{database[:32]!r} is not the number of a database")
        port = SENTINEL_PORT if kind else REDIS_PORT
        found = [parse_host_port(host, default=port) for host in hosts.split(",")]
        if len(found) > 1 and not kind:
            raise ValueError("several hosts are for sentinels: redis+sentinel://")
        return cls(
            found, "", "".join(name), int(database or 0), options=options, tls=tls, **accounts
        )

    def __str__(self) -> str:
        """For people: without secrets."""
        if self.path:
            return f"unix://{self.path}"
        scheme = ("rediss" if self.tls else "redis") + ("+sentinel" if self.name else "")
        words = [",".join(map(text_of, self.hosts)), self.name, str(self.database or "")]
        return f"{scheme}://{'/'.join(filter(None, words))}"

    @property
    def prefix(self) -> str:
        return self.options.get("prefix", "kkp2p:")

    def connect(self, silence_s: float = REDIS_TIMEOUT_S) -> Connection:
        """A connection to the master; raises one of FAULTS.

        ``silence_s``: how long an answer may take.
        """
        with gevent.Timeout(REDIS_TIMEOUT_S, TimeoutError("Redis does not answer")):
            where = self.find_master() if self.name else (*self.hosts, ("", 0))[0]
            connection = self._open(
                where, silence_s, db=self.database, username=self.username, password=self.password
            )
            try:
                connection.connect()
                if self.name:
                    self._check_role(connection, where)
            except BaseException:
                connection.disconnect()
                raise
            return connection

    def open_socket(self, where: HostPort) -> Any:
        if self.path:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(self.path)
            except BaseException:
                sock.close()
                raise
            return sock
        host, port = where
        sock, _ = dial.connect(addresses_of(host, REDIS_TIMEOUT_S), port)
        if self.tls is None:
            return sock
        try:
            return self.tls.wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise

    def _open(self, where: HostPort, silence_s: float, **settings: Any) -> Connection:
        host, port = where
        return _HubConnection(
            self,
            host=host,
            port=port,
            socket_timeout=silence_s,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            **settings,
        )

    def find_master(self) -> HostPort:
        """As the first sentinel says that answers; raises one of FAULTS."""
        problems = []
        for sentinel in self.hosts:
            try:
                return self._ask(sentinel)
            except FAULTS as error:
                problems.append(f"{text_of(sentinel)}: {error}")
        raise OSError(f"no sentinel knows where {self.name} is: {'; '.join(problems)}")

    def _ask(self, sentinel: HostPort) -> HostPort:
        connection = self._open(
            sentinel,
            SENTINEL_TIMEOUT_S,
            username=self.options.get("sentinel_username"),
            password=self.options.get("sentinel_password"),
        )
        try:
            with gevent.Timeout(SENTINEL_TIMEOUT_S, TimeoutError("it does not answer")):
                connection.connect()
                connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
                answer = connection.read_response()
        finally:
            connection.disconnect()
        if answer is None:
            raise OSError("it knows no such master")
        try:
            host, port = (part.decode() for part in answer)
            return parse_host_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except (ValueError, TypeError, AttributeError) as error:
            raise OSError("it does not say where the master is") from error

    def _check_role(self, connection: Connection, where: HostPort) -> None:
        """A master that was replaced, and has come back, may not know it yet; sentinels do soon."""
        connection.send_command("ROLE")
        role = connection.read_response()[0]
        if role != b"master":
            raise OSError(f"{text_of(where)} is no master now, but a {role.decode()}")


def _tls(options: dict[str, str]) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if "ssl_ca_certs" in options:
        context.load_verify_locations(options["ssl_ca_certs"])
    else:
        context.load_default_certs()
    if options.get("ssl_check_hostname", "true").lower() in ("false", "no", "0"):
        context.check_hostname = False
    if "ssl_certfile" in options:
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context
