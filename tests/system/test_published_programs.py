"""Programs as people have them, through ``kkp2p publish`` and ``kkp2p proxy``, byte for byte.

All services are behind one peer id, by their connect_desc.  A program that is not installed is
skipped, or in the full suite a failure.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket as _socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from helpers.support import ENVIRONMENT, PATIENCE_S, SECRET, CloudProcess
from kkp2p_compat.testing.plugin import absent, need

SIZE = 2_000_000
KKP2P = [sys.executable, "-m", "kkp2p_compat"]
MODES: dict[str, dict[str, Any]] = {
    "p2p": {"mode": "p2p"},
    "relay": {"mode": "relay"},
    "sealed": {"mode": "relay", "encrypt": True},
}
DESCS = {"http": 1, "redis": 2, "ssh": 3, "git": 4, "rsync": 5}
DATA = os.urandom(SIZE)


def run(*command: object, **options: Any) -> bytes:
    """What a program prints; it must succeed."""
    words = [str(word) for word in command]
    options.setdefault("stdin", subprocess.DEVNULL)
    started = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, **options
    )
    try:
        output, errors = gevent.get_hub().threadpool.apply(started.communicate)
    finally:
        started.kill()
        started.wait()
    assert started.returncode == 0, (words, output[-500:], errors[-2000:])
    return bytes(output)


def free_port() -> int:
    """One that was free a moment ago."""
    with _socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Services:
    """What listens, a publisher of all of it, and a proxy for each service and mode."""

    def __init__(self, folder: Path, login: str) -> None:
        self.folder, self.login = folder, login
        self.served = folder / "served"
        self.served.mkdir()
        (self.served / "data").write_bytes(DATA)
        self.ports: dict[tuple[str, str], int] = {}  # by service and mode
        self.targets: dict[str, str] = {}
        self._started: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        self._serve("http", "-m", "http.server", "--bind", "127.0.0.1", "--directory", self.served)
        if shutil.which("redis-server"):
            path = self.folder / "redis.sock"
            options = ("--save", "", "--dir", self.folder, "--port", 0, "--unixsocket", path)
            self._run("redis-server", *options)
            self.targets["redis"] = f"unix:{path}"
        if sshd := shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            self._start_sshd(sshd)
        if shutil.which("git"):
            run("git", "init", "-q", "--bare", "-b", "main", self.served / "repo.git")
            options = ("--export-all", "--enable=receive-pack", f"--base-path={self.served}")
            port = free_port()
            self._run("git", "daemon", "--listen=127.0.0.1", f"--port={port}", *options)
            self.targets["git"] = str(port)
        if shutil.which("rsync"):
            port, conf = free_port(), self.folder / "rsyncd.conf"
            conf.write_text(
                f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\n"
                f"[all]\npath = {self.served}\nread only = no\n"
                + (f"uid = {os.getuid()}\n" * (os.getuid() == 0))
            )
            self._run("rsync", "--daemon", "--no-detach", f"--config={conf}")
            self.targets["rsync"] = str(port)
        self._wait_for_targets()
        self._forward()

    def _run(self, *command: object, **options: Any) -> subprocess.Popen[str]:
        self._started.append(
            subprocess.Popen(
                [str(word) for word in command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=options.get("stdout", subprocess.DEVNULL),
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT | {"KKP2P_SECRET": SECRET},
                text=True,
            )
        )
        return self._started[-1]

    def _serve(self, name: str, *arguments: object) -> None:
        port = free_port()
        self._run(sys.executable, *arguments, port)
        self.targets[name] = str(port)

    def _start_sshd(self, sshd: str) -> None:
        port = free_port()
        for key in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key)
        conf = self.folder / "sshd_config"
        conf.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/user.pub\nStrictModes no\nPidFile none\n"
            "PermitRootLogin yes\nSubsystem sftp internal-sftp\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self._run(sshd, "-D", "-f", conf)
        self.targets["ssh"] = str(port)

    def _wait_for_targets(self) -> None:
        """Nothing tells that they listen."""
        deadline = time.monotonic() + PATIENCE_S
        for target in self.targets.values():
            unix = target.startswith("unix:")
            address: Any = target[len("unix:") :] if unix else ("127.0.0.1", int(target))
            family = _socket.AF_UNIX if unix else _socket.AF_INET
            while True:
                with _socket.socket(family) as sock:
                    if sock.connect_ex(address) == 0:
                        break
                assert time.monotonic() < deadline, target
                time.sleep(0.02)

    def _forward(self) -> None:
        named = [f"--target={DESCS[name]}={place}" for name, place in self.targets.items()]
        options = ("--login", self.login, "--json")
        publisher = self._run(
            *KKP2P, "publish", *named, "--as", "peer", *options, stdout=subprocess.PIPE
        )
        conf, rows = self.folder / "proxies.toml", []
        for name in self.targets:
            for mode, fields in MODES.items():
                rows.append((name, mode))
                fields = {"listen": "127.0.0.1:0", "peer": "peer", "desc": DESCS[name], **fields}
                lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
                with conf.open("a") as file:
                    file.write("\n".join(["[[proxy]]", *lines, ""]))
        proxy = self._run(*KKP2P, "proxy", "--config", conf, *options, stdout=subprocess.PIPE)
        assert publisher.stdout is not None
        assert proxy.stdout is not None
        for wanted in ("publishing", "online"):
            assert json.loads(publisher.stdout.readline())["event"] == wanted
        for row in rows:
            self.ports[row] = json.loads(proxy.stdout.readline())["address"][1]

    def close(self) -> None:
        for started in reversed(self._started):
            started.send_signal(signal.SIGTERM)
        for started in self._started:
            started.wait()
            if started.stdout is not None:
                started.stdout.close()

    def ssh(self, **options: object) -> list[str]:
        """The options for ssh and scp."""
        if "ssh" not in self.targets:
            absent("not installed: sshd")
        options |= {
            "IdentityFile": f"{self.folder}/user",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "BatchMode": "yes",
            "User": getpass.getuser(),
        }
        return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, cloud: CloudProcess) -> Iterator[Services]:
    made = Services(tmp_path_factory.mktemp("published"), f"127.0.0.1:{cloud.port}")
    try:
        made.start()
        yield made
    finally:
        made.close()


all_modes = pytest.mark.parametrize("mode", MODES)


@all_modes
def test_curl(services: Services, mode: str) -> None:
    need("curl")
    url = f"http://127.0.0.1:{services.ports['http', mode]}/data"
    assert run("curl", "-sS", "--noproxy", "*", "--http1.0", url) == DATA


@all_modes
def test_http_1_0_with_a_half_close(services: Services, mode: str) -> None:
    with _socket.create_connection(("127.0.0.1", services.ports["http", mode])) as sock:
        sock.sendall(b"GET /data HTTP/1.0\r\n\r\n")
        sock.shutdown(_socket.SHUT_WR)
        read = gevent.get_hub().threadpool.apply(sock.makefile("rb").read)
    assert read.partition(b"\r\n\r\n")[2] == DATA


@all_modes
def test_redis(services: Services, mode: str) -> None:
    need("redis-server", "redis-cli")
    cli = ("redis-cli", "-p", services.ports["redis", mode])
    with (services.served / "data").open("rb") as file:
        assert run(*cli, "-x", "set", mode, stdin=file) == b"OK\n"
    assert run(*cli, "--raw", "get", mode) == DATA + b"\n"
    assert run(*cli, "-r", "100", "incr", f"{mode}-n").split()[-1] == b"100"


@all_modes
def test_ssh_and_scp(services: Services, mode: str, tmp_path: Path) -> None:
    need("ssh", "scp")
    options = services.ssh(Hostname="127.0.0.1", Port=services.ports["ssh", mode])
    sent = services.served / "data"
    with sent.open("rb") as file:
        digest = run("ssh", *options, "a.peer", "sha256sum; echo over", stdin=file)
    assert digest.split() == [hashlib.sha256(DATA).hexdigest().encode(), b"-", b"over"]
    run("scp", "-q", *options, f"a.peer:{sent}", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


def make_repository(folder: Path) -> str:
    """Returns its commit."""
    git = ("git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b")
    run("git", "init", "-q", "-b", "main", folder)
    (folder / "data").write_bytes(DATA)
    run(*git, "add", ".")
    run(*git, "commit", "-q", "-m", "data")
    return run(*git, "rev-parse", "HEAD").decode().strip()


@all_modes
def test_git(services: Services, mode: str, tmp_path: Path) -> None:
    need("git")
    commit = make_repository(tmp_path / "mine")
    url = f"git://127.0.0.1:{services.ports['git', mode]}/repo.git"
    run("git", "-C", tmp_path / "mine", "push", "-q", url, f"HEAD:refs/heads/{mode}")
    run("git", "clone", "-q", "-b", mode, url, tmp_path / "theirs")
    assert (tmp_path / "theirs" / "data").read_bytes() == DATA
    assert run("git", "-C", tmp_path / "theirs", "rev-parse", "HEAD").decode().strip() == commit


def test_git_over_ssh_with_a_proxy_command(services: Services, tmp_path: Path) -> None:
    need("git", "ssh")
    proxy = [*KKP2P, "proxy", "-", "peer", "--desc", str(DESCS["ssh"]), "--login", services.login]
    commit = make_repository(tmp_path / "mine")
    ssh = shlex.join(["ssh", *services.ssh(ProxyCommand=shlex.join(proxy))])
    url = f"ssh://a.peer{tmp_path}/mine"
    run("git", "-c", f"core.sshCommand={ssh}", "clone", "-q", url, tmp_path / "theirs")
    assert run("git", "-C", tmp_path / "theirs", "rev-parse", "HEAD").decode().strip() == commit


@all_modes
def test_rsync(services: Services, mode: str, tmp_path: Path) -> None:
    need("rsync")
    url = f"rsync://127.0.0.1:{services.ports['rsync', mode]}/all"
    run("rsync", "-a", f"{url}/data", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    changed = DATA[:1000] + b"changed" + DATA[1000:]
    (tmp_path / "copy").write_bytes(changed)
    run("rsync", "-a", "--ignore-times", tmp_path / "copy", f"{url}/back-{mode}")
    assert (services.served / f"back-{mode}").read_bytes() == changed
