"""Redis for the benchmarks of this host; those of the lab start theirs on a host of it."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from kkp2p_compat.cloud.open_directory import open_directory

PATIENCE_S = 60.0


class Redis:
    """A redis-server of the benchmark's own, which keeps nothing."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.port = free_port()
        command = ("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "")
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        stack.callback(self.process.wait)
        stack.callback(self.process.terminate)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        _wait_for_port(self.port)

    def ask(self, *words: str) -> str:
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.sendall((" ".join(words) + "\r\n").encode())
            return sock.recv(1 << 20).decode()

    def relay_key(self) -> bytes:
        """What the relays of the cloud that has this Redis take tokens by."""
        directory = open_directory(self.url, None)
        directory.start()
        try:
            return directory.secret_key()
        finally:
            directory.close()

    def used_kb(self) -> float:
        for line in self.ask("INFO", "memory").splitlines():
            if line.startswith("used_memory:"):
                return int(line.partition(":")[2]) / 1024
        raise RuntimeError("redis-server tells no memory")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for_port(port: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
