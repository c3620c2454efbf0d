"""``python lied_to.py LOGIN STUN PEER SECRET``: an engine that asks this STUN server (HOST:PORT).

It joins, prints what it takes its NAT for when it knows, and stays until its input ends.
"""

from __future__ import annotations

import os
import sys

import gevent

import kkp2p_compat as kkp2p

PATIENCE_MS = 20_000


def nat_of(engine: kkp2p.engine_t) -> str:
    own = engine.network.underlay().own
    with gevent.Timeout(PATIENCE_MS / 1000):
        while not (own.found and all(found.done for found in own.found.values())):
            gevent.sleep(0.01)
    return str(own.nat.text)


def main() -> None:
    login, stun, peer, secret = sys.argv[1:]
    conf = kkp2p.engine_conf_t(
        login, 3080, log_path=os.environ["TMPDIR"], stun_servers=stun, disable_upnp=1
    )
    engine = kkp2p.engine_init(conf, PATIENCE_MS)
    assert engine is not None
    print("joined", kkp2p.join_net(engine, peer, secret), flush=True)
    print("NAT:", engine.thread.call(lambda: nat_of(engine)), flush=True)
    sys.stdin.read()
    kkp2p.engine_destroy(engine)


if __name__ == "__main__":
    main()
