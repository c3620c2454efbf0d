"""``python liar.py IP PORT VICTIM``: a STUN server that sees everybody at the victim's address.

At ports that are drawn anew for each question, as of a symmetric NAT with random ports.  It answers
at PORT and at the next one.
"""

from __future__ import annotations

import random
import selectors
import socket
import sys

from kkp2p_compat._errors import BadPacket
from kkp2p_compat.cloud.stun import respond_untrusted


def main() -> None:
    ip, port, victim = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    selector = selectors.DefaultSelector()
    for number in (port, port + 1):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((ip, number))
        selector.register(sock, selectors.EVENT_READ, (number, 2 * port + 1 - number))
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            mine, other = key.data
            data, source = key.fileobj.recvfrom(2048)  # type: ignore[union-attr]
            lie = victim, random.randrange(1024, 65536)
            try:
                reply = respond_untrusted(data, lie, (ip, mine), (ip, other))
            except BadPacket:
                continue
            key.fileobj.sendto(reply.data, source)  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
