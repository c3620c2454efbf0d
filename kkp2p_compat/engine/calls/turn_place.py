"""What a track's message says of a TURN server: where it is, and with which credentials."""

from __future__ import annotations

from ...control.nearness import permitted
from ...control.resolver import addresses_of
from ...control.wire import Message
from ...traversal.turn_server import TurnServer, parse_untrusted

__all__ = ["turn_servers_untrusted"]

# Our choices.
RESOLVE_TIMEOUT_S = 5
MAX_SERVERS = 4  # addresses of a name


def turn_servers_untrusted(message: Message, cloud_ip: str) -> list[TurnServer]:
    """With numeric hosts; none if the message names none.  May wait for the DNS.

    Raises BadPacket, KKP2PError for a name that has no address, or LinkLost where a cloud at
    ``cloud_ip`` may not send us.
    """
    field = message.get("turn")
    if field is None:
        return []
    server = parse_untrusted(field)
    found = permitted(server.host, addresses_of(server.host, RESOLVE_TIMEOUT_S), cloud_ip)
    return [server._replace(host=address) for address in found[:MAX_SERVERS]]
