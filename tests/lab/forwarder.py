"""``python forwarder.py HOST PORT PEER SECRET TARGET``: a peer behind which is a server.

Each channel that it accepts is joined to a TCP connection to 127.0.0.1:TARGET, both ways, each way
to its own end.  The server may start later, and may take one connection only: it is asked again
until it takes one, and never beforehand.
"""

from __future__ import annotations

import os
import sys

import gevent
from gevent import socket

import kkp2p_compat as kkp2p

LISTENS_S = 60.0  # within this time after the channel came
AGAIN_S = 0.1  # nothing tells that another program listens


def reach(port: int) -> socket.socket:
    with gevent.Timeout(LISTENS_S):
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port))
            except ConnectionRefusedError:
                gevent.sleep(AGAIN_S)


def copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError as error:
        print("broken", error, flush=True)


def forward(channel: kkp2p.channel_t, port: int) -> None:
    with socket.socket(fileno=os.dup(channel.fd)) as inside, reach(port) as outside:
        gevent.joinall([gevent.spawn(copy, inside, outside), gevent.spawn(copy, outside, inside)])
    kkp2p.close_fd(channel.fd)
    print("done", flush=True)


def main(host: str, port: str, peer: str, secret: str, target: str) -> None:
    conf = kkp2p.engine_conf_t(host, int(port), log_path=os.environ["TMPDIR"])
    engine = kkp2p.engine_init(conf, 5000)
    assert engine is not None
    print("joined", kkp2p.join_net(engine, peer, secret), flush=True)
    while kkp2p.accept(engine, 3_600_000, channel := kkp2p.channel_t()) > 0:
        print("mode", channel.transmit_mode, flush=True)
        gevent.spawn(forward, channel, int(target))


if __name__ == "__main__":
    main(*sys.argv[1:])
