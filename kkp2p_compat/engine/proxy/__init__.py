"""Local ports that forward to a peer, each dialing as an application does; and what peers open,
forwarded to local ports.

table.py       the proxies of one engine, by their ids
base.py        what a TCP and a UDP proxy share
tcp_proxy.py   a TCP port, or a Unix socket: a channel for each connection
listening.py   what that listens on
udp_proxy.py   a UDP port: a channel for each client address
udp_socket.py  its socket: answers leave by the address that was asked
dialing.py     how one channel is opened, without a greenlet on a live link
published.py   what peers open, forwarded to local targets
targets.py     ports, and other things, that it is forwarded to
proxied.py     what whoever watches either is told
"""
