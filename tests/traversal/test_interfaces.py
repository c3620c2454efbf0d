"""The addresses of this host: all at one look, with netlink or without."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import netifaces
import pytest
from cryptography import x509
from gevent import socket as gsocket

from helpers.support import ENVIRONMENT, PATIENCE_S, SECRET, WITHOUT_NETLINK, CloudProcess, Program
from kkp2p_compat.cloud.certificate import host_addresses
from kkp2p_compat.traversal import interfaces as module
from kkp2p_compat.traversal.address_watch import look
from kkp2p_compat.traversal.interfaces import Interface, interfaces, source_addresses


def test_the_kernel_says_what_netifaces_says() -> None:
    found = interfaces()
    assert Interface("lo", "127.0.0.1", 8) in found
    assert sorted(found) == sorted(module._from_netifaces())
    assert {*source_addresses()} <= {interface.address for interface in found}


def test_no_interface_is_asked_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As netifaces reads all of them for each one: seconds, where there are hundreds."""

    def fail(*_: object) -> list[str]:
        raise AssertionError("netifaces was asked")

    monkeypatch.setattr(netifaces, "interfaces", fail)
    monkeypatch.setattr(netifaces, "ifaddresses", fail)
    monkeypatch.setattr(socket, "if_nameindex", fail)
    made: list[socket.socket] = []
    plain = socket.socket

    def make(*args: int) -> socket.socket:
        made.append(plain(*args))
        return made[-1]

    monkeypatch.setattr(socket, "socket", make)
    look()
    assert len(made) == 3, "one for all of IPv4, and one for each family's default route"


LINES = """\
20010db8000000000000000000000003 03 40 00 80     eth1
20010db8000000000000000000000002 02 40 00 80     eth0
20010db8000000000000000000000004 02 40 00 40     eth0
20010db8000000000000000000000005 02 40 00 44     eth0
20010db8000000000000000000000006 02 40 00 c8     eth0
fe800000000000000000000000000001 02 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""


def test_ipv6_addresses_that_take_no_packets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tentative ones, unless optimistic (RFC 4429), duplicates of others, link-local ones."""
    file = tmp_path / "if_inet6"
    file.write_text(LINES)
    monkeypatch.setattr(module, "IF_INET6", file)
    assert [interface for interface in interfaces() if ":" in interface.address] == [
        ("lo", "::1", 128),
        ("eth0", "2001:db8::2", 64),
        ("eth0", "2001:db8::5", 64),
        ("eth1", "2001:db8::3", 64),
    ]


def test_a_hidden_family_has_no_addresses_but_a_shortage_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IF_INET6", tmp_path / "hidden")
    assert {interface.address for interface in interfaces()} >= {"127.0.0.1"}

    def refuse(number: int) -> None:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(module.socket, "socket", fail)

    refuse(errno.EAFNOSUPPORT)
    assert interfaces() == source_addresses() == []
    for number in (errno.EMFILE, errno.ENFILE):
        refuse(number)
        for function in (interfaces, source_addresses):
            with pytest.raises(OSError, match="Too many open files"):
                function()


# In a sandbox without netlink.


@pytest.fixture
def sandbox() -> tuple[str, ...]:
    tried = subprocess.run(
        [*WITHOUT_NETLINK, "-c", "import socket; socket.socket(socket.AF_NETLINK)"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    if "Address family not supported" not in tried.stderr:
        pytest.skip(f"no seccomp filter here: {tried.stderr[-200:]}")
    return WITHOUT_NETLINK


@pytest.fixture
def cloud(sandbox: tuple[str, ...], tmp_path: Path) -> Iterator[CloudProcess]:
    cloud = CloudProcess(tmp_path, "--account", f"peer:{SECRET}", python=sandbox)
    yield cloud
    cloud.end()


def test_a_cloud_without_netlink(cloud: CloudProcess, tmp_path: Path) -> None:
    """It runs, and its certificate has every name that it would have elsewhere."""
    certificate = x509.load_pem_x509_certificate((tmp_path / "cloud.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    listed = [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    assert sorted(listed) == sorted(host_addresses())
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert "Traceback" not in "".join(cloud.output)


@pytest.mark.parametrize("mode", ["0", "1"])
def test_peers_without_netlink(
    cloud: CloudProcess, sandbox: tuple[str, ...], mode: str, start_program: Callable[..., Program]
) -> None:
    server = start_program("server", str(cloud.port), "peer", SECRET, python=sandbox)
    assert server.first_line == "joined"
    proxy = start_program("proxy", str(cloud.port), "peer", mode, "0", python=sandbox)
    address = "127.0.0.1", int(proxy.first_line)
    with gsocket.create_connection(address, timeout=PATIENCE_S) as client:
        client.sendall(b"no netlink here")
        client.shutdown(gsocket.SHUT_WR)
        assert client.makefile("rb").read() == b"no netlink here"
