"""Where a peer can be reached, and by which address it is reached in the end.

stun.py         the bytes of a check: STUN binding messages
candidates.py   addresses: which of ours to tell the peer, which of the peer's to try
checks.py       one call's checks, and the choice of a path
check_table.py  all calls' checks behind one pair of sockets
lan.py          peers of the local network, without a cloud
"""
