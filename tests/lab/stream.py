"""``python stream.py serve PORT`` or ``send HOST PORT BYTES``: TCP, with what was in it."""

from __future__ import annotations

import hashlib
import random
import socket
import sys


def serve(port: int) -> None:
    listener = socket.create_server(("0.0.0.0", port))
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        with sock:
            count, digest = 0, hashlib.sha256()
            while data := sock.recv(1 << 16):
                count += len(data)
                digest.update(data)
            print(count, digest.hexdigest(), flush=True)


def send(host: str, port: int, count: int) -> None:
    data = random.Random(1).randbytes(count)
    with socket.create_connection((host, port)) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    print(hashlib.sha256(data).hexdigest())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
