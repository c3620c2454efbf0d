"""The UDP transport between two peers, QUIC by its ideas: docs/protocol.rst, "The UDP transport".

Sans-IO, from the connection down:

peer_connection.py     datagrams and time in, datagrams and events out
lifecycle.py           open, closing, closed
liveness.py            whether the peer is there, and the path carries anything
clock.py               the time, and the names of all timers
path_state.py          the size of datagrams and the rate of one path
paths.py               which path is used, and which others could be
path_validation.py     asks addresses whether the peer is there
left_paths.py          what is on its way over paths that were left
outcomes.py            what becomes of packets that were sent
stream_table.py        the streams of a connection: opening, ending, flow control
duplex_stream.py       one stream, which carries a channel: its two halves and its messages
streams.py             the two halves of a stream
flow_control.py        how much the peer may send
messages.py            messages of UDP channels, cut into DATAGRAM frames and joined again
packing.py             what goes into the next packets
frames.py              the layout of frames
header.py              what a packet has besides its sealed content
protection.py          seals and opens packets
recovery.py            which packets arrived or are lost, and the round trip
acks.py                which of the peer's packets have come, and when to acknowledge them
gathering.py           for how long bulk may be left in the socket, to be read in one go
congestion/            how much may be in flight, and how fast it may leave
mtu.py                 how large a datagram the path carries
ranges.py              sets of integers that come in runs
events.py              what a connection tells its driver
transport_settings.py  what one side may choose

What drives it, with sockets and the clock:

endpoint.py            the sockets, the timer and the clock of all connections
doors.py               the sockets, and which one reaches an address
batch_socket.py        many datagrams in one system call
nat64_socket.py        the same to IPv4 addresses where the network has IPv6 and a NAT64
framed_socket.py       the same over a TCP connection
alarm.py               the one timer
demultiplex.py         which connection a received datagram is for, and what can be joined
driven.py              what the endpoint asks of a connection and of its owner
early.py               what a peer sends on a connection that is still to be made
deadline_queue.py      one timer for many connections
pipe.py                carries a channel to and from a local socket
lane.py                our side of a lane, a way through a relay for packets
first_hop.py           how large a datagram the first hop takes
"""
