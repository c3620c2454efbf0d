"""``kkp2p demo``: the document's demonstration in one command, as real processes.

A cloud, the https server of samples/, a proxy client for each row of MODES and each of PROTOCOLS,
and curl and ``openssl s_client`` as the clients (Python's own where one is missing).  The output
must be what the document shows: the answer's headers from the client, and from the server the line
about the connection and its mode.

Rules: it waits for lines that the programs print and for their ends, never for a time to pass.
Whatever happens, every process that was started has ended when the command ends, and its folder is
gone.  Each program runs in a folder of its own, where its kkp2p_engine.log is.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gevent import socket, ssl

from .._codes import CONNECT_AUTO, CONNECT_RELAY, TRANSMIT_P2P, TRANSMIT_RELAY
from ._programs import Failure, Programs
from ._signals import throwing

__all__ = ["CLIENTS", "MODES", "PROTOCOLS", "add_parser", "make_certificate"]

PEER_ID = "demo-server"
LIMIT_S = 60  # our choice: for everything; it takes some seconds, more on a busy machine
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Mode(NamedTuple):
    """A row of the demonstration."""

    name: str
    connect_mode: int
    transmit_mode: int  # what the server must print


class Protocol(NamedTuple):
    name: str
    connect_desc: int  # as the document's two programs have agreed


MODES = (
    Mode("auto", CONNECT_AUTO, TRANSMIT_P2P),  # all of it is on one host
    Mode("relay only", CONNECT_RELAY, TRANSMIT_RELAY),
)
PROTOCOLS = (Protocol("http", 1), Protocol("https", 2))
CLIENTS = {"http": ("curl",), "https": ("curl", "openssl")}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="show everything: a cloud, an https server, proxies, curl and openssl",
        description="Runs the document's demonstration on this host, step by step.  The exit "
        "status is 0 only if each step gave what the document shows.",
    )
    parser.add_argument(
        "--keep",
        metavar="DIR",
        type=Path,
        help="put the programs' files and logs here, and keep them",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show every line that the programs print"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        stack.enter_context(throwing(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        try:
            if options.keep is None:
                made = tempfile.TemporaryDirectory(prefix="kkp2p-demo-")
                folder = Path(stack.enter_context(made))
            else:
                folder = options.keep.resolve()
                folder.mkdir(parents=True, exist_ok=True)
            return _demonstrate(stack.enter_context(Programs(folder, options.verbose)))
        except OSError as error:
            print(f"kkp2p demo: {error}", file=sys.stderr)
            return 1


def _demonstrate(programs: Programs) -> int:
    began = time.monotonic()
    try:
        with gevent.Timeout(LIMIT_S, Failure(f"not done in {LIMIT_S} s")):
            count = _show(programs)
    except Failure as failure:
        programs.end()
        programs.print_tails()
        print(f"kkp2p demo: FAILED: {failure}", flush=True)
        return 1
    print(f"Passed: {count} connections, {time.monotonic() - began:.1f} s.", flush=True)
    return 0


def _show(programs: Programs) -> int:
    """The demonstration; returns how many connections were made, or raises Failure."""
    kkp2p = [sys.executable, "-m", "kkp2p_compat"]
    data = str(programs.folder / "data")
    steps = iter(range(1, 100))

    _say(next(steps), "An account for the server")
    account = programs.run("account", [*kkp2p, "account", "add", PEER_ID, "--data", data])
    secret = programs.wait_for_line(account, "secret.*: (.+)")[1]

    _say(next(steps), "A cloud")
    cloud = programs.start("cloud", [*kkp2p, "cloud", "--listen", "127.0.0.1:0", "--data", data])
    login = programs.wait_for_line(cloud, r"127\.0\.0\.1:\d+")[0]
    print(f"   it serves at {login}")

    _say(next(steps), "A key and a certificate, as openssl req -x509 makes them")
    key, certificate = make_certificate(programs.folder)
    print(f"   {key}\n   {certificate}")

    _say(next(steps), "The https server")
    arguments = [PEER_ID, secret, key, certificate, "--login", login]
    server = programs.start("server", [*_sample("https_server"), *arguments])
    programs.wait_for_line(cloud, rf"\({PEER_ID}\): online")
    print(f"   {PEER_ID} is online")

    _say(next(steps), "A proxy client for each mode and protocol")
    rows = [(mode, protocol) for mode in MODES for protocol in PROTOCOLS]
    proxies = []
    for mode, protocol in rows:
        wanted = [str(mode.connect_mode), str(protocol.connect_desc)]
        arguments = ["127.0.0.1", "0", PEER_ID, *wanted, "--login", login]
        name = f"proxy {mode.name} {protocol.name}"
        proxies.append(programs.start(name, [*_sample("proxy_client"), *arguments]))
    addresses = []
    for proxy in proxies:
        match = programs.wait_for_line(proxy, rf"create proxy\((.+)\) to peer {PEER_ID} success\.")
        print(f"   {match[0]}")
        addresses.append(match[1])

    count = 0
    for (mode, protocol), address in zip(rows, addresses, strict=True):
        for client in CLIENTS[protocol.name]:
            count += 1
            name = f"{protocol.name} with {client}, mode {mode.name}"
            _say(next(steps), name)
            _check_answer(_fetch(programs, name, client, protocol.name, address), protocol.name)
            line = programs.wait_for_line(server, "", count).string  # any: it must print no other
            print(f"   the server: {line}")
            accepted = re.match(r"accept new connection,fd:\d+, mode is (\d),channel id:", line)
            if accepted is None or int(accepted[1]) != mode.transmit_mode:
                raise Failure(
                    f"the server did not print that it accepted mode {mode.transmit_mode}"
                )

    _say(
        next(steps), "The end: SIGUSR1 for the server and the proxy clients, SIGTERM for the cloud"
    )
    for program in (samples := [server, *proxies]):
        program.signal(signal.SIGUSR1)
    programs.wait_for_end(samples)
    cloud.signal(signal.SIGTERM)
    programs.wait_for_end([cloud])
    if len(server.lines) != count:
        raise Failure(f"the server printed {len(server.lines)} lines instead of {count}")
    print("   all have ended with exit status 0")
    return count


def _say(number: int, text: str) -> None:
    print(f"{number}. {text}", flush=True)


def _sample(name: str) -> list[str]:
    """How to run a sample: as installed, else from the source tree."""
    if importlib.util.find_spec("kkp2p_compat.samples") is not None:
        return [sys.executable, "-m", f"kkp2p_compat.samples.{name}"]
    return [sys.executable, str(Path(__file__).parents[2] / "samples" / f"{name}.py")]


def _fetch(programs: Programs, name: str, client: str, protocol: str, address: str) -> list[str]:
    """Get the page; returns the lines of the answer, and shows them."""
    if shutil.which(client) is None:
        print(f"   there is no {client} here: Python's own client")
        lines = _fetch_by_python(protocol, address)
    elif client == "curl":
        command = [client, "-sS", "--insecure", "-i", f"{protocol}://{address}/"]
        lines = programs.run(name, command, apart=True).lines
    else:
        command = [client, "s_client", "-quiet", "-connect", address]
        lines = programs.run(name, command, REQUEST, apart=True).lines
    for line in lines:
        print(f"   | {line}")
    return lines


def _fetch_by_python(protocol: str, address: str) -> list[str]:
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # as curl --insecure: the certificate is our own
    context.verify_mode = ssl.CERT_NONE
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection((host, int(port))))
            if protocol == "https":
                sock = stack.enter_context(context.wrap_socket(sock))
            sock.sendall(REQUEST)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
    except OSError as error:
        raise Failure(f"{protocol}://{address}/: {error}") from error
    return answer.decode("latin-1").splitlines()


def _check_answer(lines: list[str], protocol: str) -> None:
    for wanted in ("HTTP/1.1 200 OK", f"X-Powered-By: kkp2p {protocol}"):
        if wanted not in lines:
            raise Failure(f"the answer does not have the line {wanted!r}")
    if not lines[-1].isdecimal():
        raise Failure("the answer does not end with the time")


def make_certificate(folder: Path) -> tuple[str, str]:
    """A key and a self-signed certificate for a day: the paths of the two PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key_file, certificate_file = folder / "key.pem", folder / "cert.pem"
    key_file.touch(mode=0o600)
    key_file.write_bytes(key_pem)
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return str(key_file), str(certificate_file)
