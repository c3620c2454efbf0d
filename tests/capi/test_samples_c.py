"""samples/c against Python peers, compiled with what ``kkp2p capi`` prints."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from gevent import socket as gsocket

import kkp2p_compat as kkp2p
from helpers.c_programs import STRICT, CProgram, StartC
from helpers.cloud_fixtures import LONG
from helpers.document import need_program
from helpers.sample_process import start_sample
from helpers.support import ENVIRONMENT, ROOT, SECRET, CloudProcess, write_all

__all__ = ["start_sample"]

SAMPLES = ROOT / "samples" / "c"
CAPI = [sys.executable, "-m", "kkp2p_compat", "capi"]

Run = Callable[..., CProgram]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the library and the programs."""
    return tmp_path_factory.mktemp("samples_c")


def capi(folder: Path, *options: str) -> str:
    command = [*CAPI, "--folder", str(folder), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def run(start_c: StartC, cloud: CloudProcess, folder: Path) -> Run:
    def start(name: str, *arguments: str, options: Sequence[str] = ()) -> CProgram:
        program = folder / "".join([name, *options])
        if not program.exists():
            flags = shlex.split(capi(folder / "lib", "--cflags", "--libs"))
            source = str(SAMPLES / f"{name}.c")
            command = [need_program("cc"), "-std=c99", *STRICT, source, *flags, "-pthread"]
            command += options
            ended = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
            assert (ended.returncode, ended.stderr) == (0, "")
        return start_c(program, *arguments, KKP2P_LOGIN=cloud.pinned())

    return start


@pytest.mark.parametrize("name", ["echo_peer", "epoll_server"])
def test_an_echo(run: Run, engine: kkp2p.engine_t, name: str) -> None:
    """Of two callers at once, by either path; what was sent comes back after the end, too."""
    server = run(name, "peer", SECRET)
    assert server.line() == "echoing as peer.\n"
    channels = [kkp2p.channel_t() for _ in range(2)]
    for mode, channel in enumerate(channels, 1):
        ctx = kkp2p.connect_ctx_t("peer", 0, mode, 0, LONG)
        assert kkp2p.connect(engine, ctx, channel) == 0, kkp2p.error_text()
    for channel in channels:
        data, buff = os.urandom(100_000), bytearray(100_000)
        write_all(channel.fd, data)
        got = b""
        while len(got) < len(data):
            count = kkp2p.read(channel.fd, buff, len(buff), LONG)
            assert count > 0
            got += buff[:count]
        assert got == data
    for channel in channels:
        kkp2p.close_fd(channel.fd)
    assert server.end(signal.SIGINT) == (0, "")


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize("name", ["echo_peer", "epoll_server"])
def test_one_caller_after_the_other(run: Run, engine: kkp2p.engine_t, name: str, mode: int) -> None:
    """What belonged to the first is not used again."""
    server = run(name, "peer", SECRET, options=["-g", "-fsanitize=address"])
    assert server.line() == "echoing as peer.\n"
    buff = bytearray(10)
    for _ in range(3):
        channel = kkp2p.channel_t()
        ctx = kkp2p.connect_ctx_t("peer", 0, mode, 0, LONG)
        assert kkp2p.connect(engine, ctx, channel) == 0, kkp2p.error_text()
        assert kkp2p.write(channel.fd, b"x", 1, LONG) == 1
        assert kkp2p.read(channel.fd, buff, len(buff), LONG) == 1
        assert _end(channel.fd) == b""
        kkp2p.close_fd(channel.fd)
    assert server.end(signal.SIGINT) == (0, "")


def _end(fd: int) -> bytes:
    """End our direction, and wait for the other's end."""
    with gsocket.socket(fileno=os.dup(fd)) as sock:
        sock.shutdown(socket.SHUT_WR)
        return bytes(sock.recv(1))


@pytest.mark.parametrize("name", ["echo_peer", "epoll_server"])
def test_a_wrong_secret(run: Run, name: str) -> None:
    assert run(name, "peer", "wrong").end() == (1, "kkp2p_join_net error,ret:-111.\n")
    assert run(name).end()[0] == 2


@pytest.mark.parametrize("mode", [1, 2])
def test_a_file_for_the_python_sample(
    run: Run, start_sample: Callable[..., CProgram], tmp_path: Path, mode: int
) -> None:
    received, file = tmp_path / "received", tmp_path / "some file"
    received.mkdir()
    file.write_bytes(os.urandom(300_001))
    receiver = start_sample("recv_file", "peer", "-", str(received), "--once")
    assert receiver.line() == "waiting for files as peer.\n"
    sent = f"sent 300001 bytes, mode is {mode}.\n"
    assert run("send_file", "peer", str(file), str(mode)).end() == (0, sent)
    assert (received / file.name).read_bytes() == file.read_bytes()


def test_a_file_that_nobody_takes(run: Run, tmp_path: Path) -> None:
    assert run("send_file", "peer", str(tmp_path)).end() == (
        1,
        "not sent: it is no file that can be read.\n",
    )
    assert run("send_file", "peer", __file__).end() == (1, "kkp2p_connect error,ret:-109.\n")


def test_what_the_command_prints(folder: Path) -> None:
    lib = folder / "lib"
    assert capi(lib, "--cflags") == f"-I{lib}/include\n"
    assert capi(lib, "--libs") == f"-L{lib} -Wl,-rpath,{lib} -lkkp2p\n"
    assert capi(lib, "--libs", "--static") == f"{lib}/libkkp2p.a -pthread\n"
    made = (lib / "libkkp2p.so").stat().st_mtime_ns
    assert f"PKG_CONFIG_PATH={lib}/pkgconfig" in capi(lib)
    assert (lib / "libkkp2p.so").stat().st_mtime_ns == made, "it was up to date"
    assert (lib / "include" / "kkp2p_sdk.h").exists()
    package = (lib / "pkgconfig" / "kkp2p.pc").read_text()
    assert f"prefix={lib}\n" in package
    assert f"Version: {kkp2p.__version__}\n" in package


def test_without_a_compiler(tmp_path: Path) -> None:
    command = [*CAPI, "--folder", str(tmp_path), "--libs"]
    environment = ENVIRONMENT | {"CC": "/no/compiler"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "kkp2p capi: /no/compiler: No such file or directory\n"
        "kkp2p capi: a C compiler is needed: $CC, else cc\n"
    )
