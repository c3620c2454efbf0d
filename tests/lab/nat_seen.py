"""``python nat_seen.py IP PORT``: what OwnAddresses finds out on this host, as one line of JSON."""

from __future__ import annotations

import json
import logging
import sys

import gevent
from gevent.event import Event

from kkp2p_compat.engine.paths.own_addresses import OwnAddresses
from kkp2p_compat.transport.udp.endpoint import Endpoint


def main() -> None:
    log = logging.getLogger()
    endpoint = Endpoint(log)
    changed = Event()
    servers = [(sys.argv[1], int(sys.argv[2]))]
    own = OwnAddresses(endpoint, servers, log, gevent.spawn, changed.set)
    endpoint.on_stun = own.questions.handle_stun
    own.start()
    own.ready.wait()
    while not (own.found and all(found.done for found in own.found.values())):
        if own.udp_blocked:
            break
        changed.wait()
        changed.clear()
    listed = [[candidate.kind, candidate.address] for candidate in own.candidates()]
    print(json.dumps({"nat": own.nat.fields(), "candidates": listed}))
    own.close()
    gevent.sleep(0)
    endpoint.close()


main()
