"""The cloud's certificate: the names in it, and its files being replaced while the cloud runs."""

from __future__ import annotations

import errno
import hashlib
import shutil
import signal
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

import kkp2p_compat as kkp2p
from helpers.cloud_client import (
    Client,
    StartProcess,
    cloud_process,
    end_process,
    running_cloud,
    until,
)
from helpers.shared_directory import running_node
from helpers.support import PATIENCE_S, SECRET, CloudProcess
from kkp2p_compat.cloud import certificate as certificate_module
from kkp2p_compat.cloud.certificate import host_addresses, load_identity
from kkp2p_compat.cloud.server import Cloud
from kkp2p_compat.cloud.settings import CloudSettings
from kkp2p_compat.control.binding import end_point_binding
from kkp2p_compat.control.trust import fingerprint

__all__ = ["cloud_process"]

ACCOUNTS = {"alice": "s3cret", "bob": "b"}


def names(data: Path) -> set[str]:
    return certificate_module._names_in(data / "cloud.crt")


def key_of(data: Path) -> Any:
    certificate = x509.load_pem_x509_certificate((data / "cloud.crt").read_bytes())
    return certificate.public_key().public_numbers()  # type: ignore[union-attr]


def test_names_that_are_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where peers know the cloud by an address or a name that the host itself has not."""
    given = ["203.0.113.1", "cloud.example.net", "2001:db8::1"]
    first = load_identity(tmp_path, names=given[:1])
    assert {"203.0.113.1", "localhost", "127.0.0.1"} <= names(tmp_path)
    key = key_of(tmp_path)
    assert load_identity(tmp_path).fingerprint == first.fingerprint
    assert caplog.text == ""
    second = load_identity(tmp_path, names=given)
    assert {*given, "localhost"} <= names(tmp_path)
    assert second.fingerprint != first.fingerprint
    assert key_of(tmp_path) == key
    assert "was made anew, with 2001:db8::1, cloud.example.net" in caplog.text
    assert load_identity(tmp_path, names=given[1:]).fingerprint == second.fingerprint
    assert load_identity(tmp_path).fingerprint == second.fingerprint


def test_names_are_taken_in_one_form() -> None:
    assert CloudSettings(names=["Cloud.Example.NET", "2001:DB8:0::1"]).names == [
        "cloud.example.net",
        "2001:db8::1",
    ]
    for name in ("", "a b", "-x.example", "x" * 64, "a..b", "http://x", "a" * 254, "caf\u00e9.fr"):
        with pytest.raises(ValueError, match="neither a DNS name nor an IP address"):
            CloudSettings(names=[name])
    for fields in ({"tls_cert": Path("a"), "tls_key": Path("b")}, {"role": "relay"}):
        with pytest.raises(ValueError, match="that the cloud makes itself"):
            CloudSettings(names=["a.example"], **fields)  # type: ignore[arg-type]


class Files:
    """A certificate and key that a cloud was given, and others to put in their place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.identities = [load_identity(folder / str(number)) for number in range(2)]
        self.put(0)

    def put(self, number: int, key_number: int | None = None) -> None:
        """As certbot and its like do: one after the other, each whole."""
        for name, target, of in (
            ("cloud.crt", self.certificate, number),
            ("cloud.key", self.key, number if key_number is None else key_number),
        ):
            new = target.with_suffix(".new")
            shutil.copy(self.folder / str(of) / name, new)
            new.replace(target)

    def fingerprint(self, number: int) -> str:
        return self.identities[number].fingerprint


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def shown(address: tuple[str, int]) -> str:
    with Client(address) as client:
        return f"sha256:{fingerprint(client.sock.getpeercert(binary_form=True)).hex()}"


def wait_until_shown(address: tuple[str, int], wanted: str) -> None:
    until(lambda: shown(address) == wanted)


def test_files_that_are_replaced_are_shown_to_new_connections(files: Files) -> None:
    with running_cloud(ACCOUNTS, tls_cert=files.certificate, tls_key=files.key) as cloud:
        address = cloud.address
        with Client(address) as alice, Client(address) as bob:
            assert alice.login("alice", "s3cret")["op"] == "welcome"
            assert shown(address) == files.fingerprint(0)
            files.put(1)
            until(lambda: cloud.fingerprint == files.fingerprint(1))  # by the sweep
            assert shown(address) == files.fingerprint(1)
            assert alice.ask("beat") == {"op": "beat"}
            # A login is bound to what its own connection was shown.
            assert bob.login("bob", "b")["op"] == "welcome"
        with Client(address) as bob:
            assert bob.login("bob", "b")["op"] == "welcome"
            assert bob.ask("beat") == {"op": "beat"}


def sweeps(cloud: Cloud) -> None:
    for _ in range(2):
        cloud._on_sweep()


@pytest.mark.parametrize("how", ["no pair", "no PEM", "missing"])
def test_files_that_do_not_fit_together_change_nothing(
    files: Files, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    with running_cloud(ACCOUNTS, tls_cert=files.certificate, tls_key=files.key) as cloud:
        if how == "no pair":
            files.put(1, key_number=0)
        elif how == "no PEM":
            files.certificate.write_text("half a file")
        else:
            files.certificate.unlink()
        for _ in range(3):
            sweeps(cloud)
        assert shown(cloud.address) == files.fingerprint(0)
        assert caplog.text.count("the certificate is not replaced by ") == 1
        files.put(1)
        sweeps(cloud)
        assert shown(cloud.address) == files.fingerprint(1)
        assert caplog.text.count(files.fingerprint(1)) == 1


def test_files_that_may_not_be_read_at_first(
    files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever mends that changes neither what is in them nor when they were written."""

    def refuse(*_: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    with running_cloud(ACCOUNTS, tls_cert=files.certificate, tls_key=files.key) as cloud:
        files.put(1)
        with monkeypatch.context() as patched:
            patched.setattr(certificate_module, "_identity", refuse)  # root may read everything
            sweeps(cloud)
        assert f"not replaced by {files.certificate} and {files.key}: [Errno 13]" in caplog.text
        before = files.key.stat().st_ctime_ns
        while files.key.stat().st_ctime_ns == before:  # the kernel's clock is a coarse one
            files.key.chmod(0o600)
        sweeps(cloud)
        assert shown(cloud.address) == files.fingerprint(1)


def test_a_pair_is_not_loaded_while_it_is_being_replaced(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    with running_cloud(ACCOUNTS, tls_cert=files.certificate, tls_key=files.key) as cloud:
        files.put(1, key_number=0)
        assert cloud._certificate is not None
        cloud._certificate.sweep(0.0)
        files.put(1)
        cloud._certificate.sweep(0.0)
        cloud._certificate.sweep(0.0)
        assert cloud.fingerprint == files.fingerprint(1)
    assert "not replaced" not in caplog.text


def test_hangup_loads_the_files_and_ends_nothing(cloud_process: StartProcess, files: Files) -> None:
    process, address = cloud_process(
        *("--tls-cert", str(files.certificate), "--tls-key", str(files.key)),
        *("--data", str(files.folder / "data"), "--account", "alice:s3cret"),
    )
    with Client(address) as alice:
        assert alice.login("alice", "s3cret")["op"] == "welcome"
        for number in (1, 0):
            files.put(number)
            process.send_signal(signal.SIGHUP)
            wait_until_shown(address, files.fingerprint(number))
        files.put(1, key_number=0)
        process.send_signal(signal.SIGHUP)
        assert alice.ask("beat") == {"op": "beat"}
        assert shown(address) == files.fingerprint(0)
        with Client(address) as again:
            assert again.login("alice", "s3cret")["op"] == "welcome"
    status, log = end_process(process)
    assert status == 0
    assert "certificate is not replaced" in log
    assert "Traceback" not in log


def test_hangup_of_a_cloud_whose_certificate_cannot_change() -> None:
    with running_cloud(ACCOUNTS) as cloud:
        before = cloud.fingerprint
        cloud.reload()
        assert cloud.fingerprint == before
    with running_node("relay") as relay:
        relay.reload()
        assert relay.fingerprint == ""


def test_login_ca_may_be_the_certificate_whatever_its_names(
    tmp_path: Path, make_engine: Callable[..., kkp2p.engine_t], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a port forward: peers know an address that the cloud does not."""
    monkeypatch.setattr(certificate_module, "host_addresses", list)
    for name in ("cloud", "other"):
        load_identity(tmp_path / name)
    assert "127.0.0.1" not in names(tmp_path / "cloud")
    cloud = CloudProcess(tmp_path / "cloud", "--account", f"peer:{SECRET}")
    try:
        for name, verdict in (("cloud", 0), ("other", -109)):
            ca = str(tmp_path / name / "cloud.crt")
            engine = make_engine(login_port=cloud.port, login_ca=ca)
            ctx = kkp2p.connect_ctx_t("peer", connect_mode=2, timeout=PATIENCE_S * 1000)
            mine = kkp2p.channel_t()
            if verdict == 0:
                assert kkp2p.join_net(engine, "peer", SECRET) == 0
            assert kkp2p.connect(engine, ctx, mine) == verdict
            kkp2p.close_fd(mine.fd)
    finally:
        cloud.end()


def test_names_on_the_command_line(tmp_path: Path) -> None:
    cloud = CloudProcess(tmp_path, "--name", "203.0.113.1", "--name", "cloud.example.net")
    assert cloud.end() == 0
    assert {"203.0.113.1", "cloud.example.net"} <= names(tmp_path)


def test_the_certificate_is_made_once_and_kept(tmp_path: Path) -> None:
    first = load_identity(tmp_path / "data")
    again = load_identity(tmp_path / "data")
    assert (first.binding, first.fingerprint) == (again.binding, again.fingerprint)
    key, pem = tmp_path / "data" / "cloud.key", tmp_path / "data" / "cloud.crt"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate(pem.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert addresses == set(host_addresses())
    assert "127.0.0.1" in addresses
    assert first.fingerprint == f"sha256:{certificate.fingerprint(hashes.SHA256()).hex()}"
    # It may stand for itself and for nothing else.
    assert ssl.create_default_context(cafile=str(pem)).cert_store_stats()["x509_ca"] == 1


def test_a_certificate_whose_key_is_lost_is_not_replaced(tmp_path: Path) -> None:
    """As by a restore that left it out: peers that know the certificate would refuse another."""
    load_identity(tmp_path)
    certificate, key = tmp_path / "cloud.crt", tmp_path / "cloud.key"
    pem = certificate.read_bytes()
    key.unlink()
    with pytest.raises(ValueError, match=f"its key, {key}, is missing"):
        load_identity(tmp_path)
    assert certificate.read_bytes() == pem
    assert not key.exists()


def test_a_key_whose_certificate_is_lost_gets_another_one(tmp_path: Path) -> None:
    """The key may be all that a crash has left of the first start."""
    load_identity(tmp_path)
    key = key_of(tmp_path)
    (tmp_path / "cloud.crt").unlink()
    load_identity(tmp_path)
    assert key_of(tmp_path) == key


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    load_identity(tmp_path)
    key = tmp_path / "cloud.key"
    key.unlink()
    with pytest.raises(OSError, match=str(key)):
        load_identity(None, tmp_path / "cloud.crt", key)


def test_without_a_folder_the_certificate_is_another_each_time() -> None:
    assert load_identity(None).fingerprint != load_identity(None).fingerprint


def test_a_certificate_of_the_users_own(tmp_path: Path) -> None:
    load_identity(tmp_path)
    crt, key = tmp_path / "cloud.crt", tmp_path / "cloud.key"
    other = tmp_path / "other"
    load_identity(other)
    chain = tmp_path / "chain.pem"
    chain.write_text("a comment\n" + crt.read_text() + (other / "cloud.crt").read_text())
    assert load_identity(None, chain, key).fingerprint == load_identity(tmp_path).fingerprint
    with pytest.raises(ValueError, match="not a pair"):
        load_identity(None, crt, other / "cloud.key")
    with pytest.raises(ValueError, match="no PEM certificate"):
        load_identity(None, key, key)
    with pytest.raises(OSError, match="missing"):
        load_identity(None, tmp_path / "missing", key)


def test_binding_of_our_certificate_is_sha256_of_it(tmp_path: Path) -> None:
    identity = load_identity(tmp_path)
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "cloud.crt").read_text())
    assert identity.binding == end_point_binding(der) == hashlib.sha256(der).digest()
    with pytest.raises(ValueError, match="pars"):
        end_point_binding(b"garbage")
