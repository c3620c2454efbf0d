"""Where a peer can be reached, and by which address it is reached in the end.

stun.py         the bytes of a check: STUN binding messages
candidates.py   addresses: which of ours to tell the peer, which of the peer's to try
checks.py       one call's checks, and the choice of a path
check_table.py  all calls' checks behind one pair of sockets
lan.py          peers of the local network, without a cloud

port_mapping.py  keeps a port of ours mapped at the router
gateway.py       asks a router by PCP or NAT-PMP; pcp.py has the bytes
upnp.py          asks a router by UPnP-IGD
routes.py        which router that is
address_watch.py tells when our addresses or routes have changed
"""
