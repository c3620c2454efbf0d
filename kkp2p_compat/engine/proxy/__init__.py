"""Local ports that forward to a peer: each dials as an application does.

table.py       the proxies of one engine, by their ids
base.py        what a TCP and a UDP proxy share
tcp_proxy.py   a TCP port: a channel for each connection
udp_proxy.py   a UDP port: a channel for each client address
udp_socket.py  its socket: answers leave by the address that was asked
dialing.py     how one channel is opened, without a greenlet on a live link
proxied.py     what whoever watches a proxy is told
"""
