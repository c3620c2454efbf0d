"""What several test files use: a real cloud process, peers, and native threads."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
from gevent import monkey, socket

import kkp2p_compat as kkp2p

ROOT = Path(__file__).parents[2]
WITHOUT_NETLINK = (sys.executable, str(Path(__file__).with_name("without_netlink.py")))
SECRET = "correct horse"
PATIENCE_S = 20  # a bound for what must happen; never a measurement
# More than any kernel buffers between two sockets (some were seen to hold 64 MiB), and less than
# fills this machine: a writer that is still not refused then never will be.
ENDLESS_BYTES = 1 << 30
# The developer's own language and login are not the tests'.
os.environ["LC_ALL"] = "C"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "error",
    "XDG_CONFIG_HOME": os.devnull,
}


class CloudProcess:
    """``python -m kkp2p_compat cloud``, a real process, on a free port of 127.0.0.1."""

    def __init__(
        self,
        data: Path,
        *options: str,
        listen: str = "127.0.0.1:0",
        python: Sequence[str] = (sys.executable,),
    ) -> None:
        command = [*python, "-m", "kkp2p_compat", "cloud", "--listen", listen]
        command += ["--data", str(data), *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
        )
        self.output: list[str] = []
        self.port = self._read_port()
        self._reader = gevent.get_hub().threadpool.spawn(self._read_rest)

    def _read_port(self) -> int:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            match = re.fullmatch(r" *at 127\.0\.0\.1:(\d+)\n", line)
            if match:
                return int(match[1])
        self.process.wait()
        self.process.stdout.close()
        raise RuntimeError(f"no cloud: {''.join(self.output)}")

    def pinned(self) -> str:
        """HOST:PORT#sha256:HEX, as it prints it at its start."""
        while not (lines := [line for line in self.output if "#sha256:" in line]):
            gevent.sleep(0.001)
        return lines[0].split()[1]

    def _read_rest(self) -> None:
        assert self.process.stdout is not None
        self.output.extend(self.process.stdout)

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()  # if it has not ended
            self._reader.get()
            self.process.stdout.close()
            self.process.wait()


class Program:
    """An echo_peer.py process."""

    def __init__(
        self, folder: Path, *arguments: str, python: Sequence[str] = (sys.executable,)
    ) -> None:
        self.process = subprocess.Popen(
            [*python, str(Path(__file__).with_name("echo_peer.py")), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "TMPDIR": str(folder)},
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline().strip()

    def peak_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        with self.process:
            try:
                self.process.communicate(timeout=PATIENCE_S)
            finally:
                self.process.kill()  # if it has not ended


@contextlib.contextmanager
def forked_child() -> Iterator[None]:
    """A child of this process that has copies of every descriptor, and does nothing with them."""
    hold, release = os.pipe()
    ready, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.write(begin, b"x")
        os.read(hold, 1)
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(begin)
    try:
        yield
    finally:
        os.close(release)
        os.close(hold)
        os.waitpid(child, 0)


def listen() -> socket.socket:
    """A listener of greenlets: gevent.socket.create_server makes a blocking one."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def in_thread(function: Callable[[], Any]) -> Any:
    """Run in a native thread without a hub, and wait for it on ours; returns or raises its end."""
    from kkp2p_compat._io import Signal

    done = Signal()
    ends: list[Any] = []

    def run() -> None:
        try:
            ends.append((function(), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the test
            ends.append((None, error))
        done.set()

    monkey.get_original("_thread", "start_new_thread")(run, ())
    try:
        with gevent.Timeout(PATIENCE_S):
            done.wait()
    finally:
        done.close()
    value, error = ends[0]
    if error is not None:
        raise error
    return value


def read_all(fd: int, timeout: int = PATIENCE_S * 1000) -> bytes:
    """What arrives until the peer's end of stream; fails when that does not come."""
    data, buff = bytearray(), bytearray(65536)
    while (count := kkp2p.read(fd, buff, len(buff), timeout)) > 0:
        data += buff[:count]
    assert count < 0, "no end of stream"
    return bytes(data)


def write_all(fd: int, data: bytes, timeout: int = PATIENCE_S * 1000) -> None:
    view = memoryview(data)
    while view:
        count = kkp2p.write(fd, view, len(view), timeout)
        assert count > 0, (count, len(view))
        view = view[count:]
