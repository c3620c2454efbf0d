"""Bytes between two peers: streams over TCP and the relay; udp/ is the transport over UDP.

udp/             packets, recovery and streams over UDP
dial.py          connects to one of several addresses, staggered
http_connect.py  a tunnel through an HTTP proxy
lane_wire.py     the datagrams by which a peer and a relay set up a lane
pair.py          the engine's end of a socket pair, whose other end is the application's
relay.py         a peer's way to the pairing on a relay
relay_wire.py    the bytes that a peer and a relay exchange before the stream begins
splice.py        joins two stream sockets in the kernel
tcp.py           TCP sockets: set up, found dead, closed without loss
tcp_stats.py     what the kernel knows of a TCP connection
"""
