"""``lan_host.py serve PORT PEER...`` until its input ends; ``find PORT PEER SECONDS``.

The LAN search alone, without an engine.  An answer is the peer's name and how often it was asked.
"""

from __future__ import annotations

import logging
import sys
from itertools import count

import gevent

from kkp2p_compat._errors import TimedOut
from kkp2p_compat.traversal import lan

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
LOG = logging.getLogger()


def serve(port: int, peer_ids: list[str]) -> None:
    responders = []
    for peer_id in peer_ids:
        numbers = count(1)

        def answer(
            offer: str,
            source: tuple[str, int],
            peer_id: str = peer_id,
            numbers: count[int] = numbers,
        ) -> str:
            return f"{peer_id} {next(numbers)} to {offer} at {source[0]}"

        responders.append(lan.Responder(peer_id, port, answer, LOG))
        responders[-1].start()
    print("ready", flush=True)
    gevent.get_hub().threadpool.apply(sys.stdin.read)
    for responder in responders:
        responder.close()
        print("dropped", dict(responder.dropped))


def find(port: int, peer_id: str, seconds: float) -> None:
    try:
        answer, ip = lan.search(peer_id, "an offer", port, seconds, LOG, str)
    except TimedOut as error:
        print("not found:", error.code)
    else:
        print(f"found {ip}: {answer}")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3:])
    else:
        find(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
