"""SIGPIPE at its default: a program whose connections break under the engine's hands lives on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.support import ENVIRONMENT, PATIENCE_S, SECRET, CloudProcess

# Peer, caller and local program in one process.  The peer floods; the local program ends its own
# direction first, so that a broken connection is EPIPE to the kernel and not ECONNRESET.
PROGRAM = """
import ctypes, os, signal, socket, sys, threading
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
import kkp2p_compat as kkp2p
port, mode, encrypt, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def make():
    engine = kkp2p.engine_init(
        kkp2p.engine_conf_t("127.0.0.1", port, disable_upnp=1, log_path=folder), 20000)
    assert engine
    return engine

peer, caller = make(), make()
assert kkp2p.join_net(peer, "peer", {secret!r}) == 0
ctx = kkp2p.connect_ctx_t("peer", 0, mode, encrypt, 20000)
ended = threading.Semaphore(0)

def flood():
    while kkp2p.accept(peer, 20000, channel := kkp2p.channel_t()) == 1:
        while kkp2p.write(channel.fd, bytes(65536), 65536, 20000) > 0:
            pass
        kkp2p.close_fd(channel.fd)
        ended.release()

threading.Thread(target=flood, daemon=True).start()
proxy_id = ctypes.c_uint32()
assert kkp2p.start_proxy(caller, "127.0.0.1", 0, ctx, proxy_id) == 0
for _ in range(3):
    with socket.create_connection(kkp2p.proxy_address(caller, proxy_id)) as program:
        program.shutdown(socket.SHUT_WR)
        assert program.recv(1000)
    assert ended.acquire(timeout=20)  # and its connection had more to send
for _ in range(3):
    channel = kkp2p.channel_t()
    assert kkp2p.connect(caller, ctx, channel) == 0
    assert kkp2p.read(channel.fd, bytearray(1000), 1000, 20000) > 0
    os.close(channel.fd)  # which our own end of its pair is not told of
    assert ended.acquire(timeout=20)
kkp2p.engine_destroy(caller)
kkp2p.engine_destroy(peer)
print("alive")
""".replace("{secret!r}", repr(SECRET))


@pytest.mark.parametrize(("mode", "encrypt"), [(1, 0), (2, 0), (2, 1)])
def test_broken_connections_do_not_end_the_program(
    cloud: CloudProcess, tmp_path: Path, mode: int, encrypt: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(cloud.port), str(mode), str(encrypt), str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
