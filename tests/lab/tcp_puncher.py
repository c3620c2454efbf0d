"""``python tcp_puncher.py caller|callee KEY [IP PORT]...``: one side of a TCP punch, for the lab.

The servers are asked how they see us.  Prints what the peer is to be told as one line of JSON,
reads the same of the peer, and prints what came of it: how long it took, whom it is connected with
and what that said.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import gevent

from kkp2p_compat._errors import NoPath
from kkp2p_compat.traversal.tcp_punch import TcpPunch

LIMIT_S = 20.0


def main() -> None:
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    side, key, *places = sys.argv[1:]
    servers = [(ip, int(port)) for ip, port in zip(places[::2], places[1::2], strict=True)]
    punch = TcpPunch(bytes.fromhex(key), side == "caller", logging.getLogger())
    print(json.dumps(punch.find(servers)), flush=True)
    line = gevent.get_hub().threadpool.apply(sys.stdin.readline)
    punch.handle_peer_untrusted(json.loads(line))
    began = time.monotonic()
    try:
        sock = punch.run(LIMIT_S)
    except NoPath:
        print(json.dumps({"peer": None}))
    else:
        took_s = time.monotonic() - began
        sock.sendall(side.encode())
        said = sock.recv(100).decode()
        peer = sock.getpeername()[:2]
        print(json.dumps({"took_s": took_s, "peer": peer, "said": said}), flush=True)
        sys.stdin.readline()  # until both have said it
        sock.close()
    punch.close()


main()
