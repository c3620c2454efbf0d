"""The UDP transport between two peers, QUIC by its ideas: docs/protocol.rst, "The UDP transport".

Sans-IO, from the connection down:

connection.py     datagrams and time in, datagrams and events out
channel_table.py  the channels of a connection: opening, ending, flow control
channel.py        one channel: its two halves, its messages, its windows
streams.py        the two halves of a stream
messages.py       messages of UDP channels, cut into DATAGRAM frames and joined again
packing.py        what goes into the next packets
frames.py         the layout of frames
protection.py     seals and opens packets
recovery.py       which packets arrived or are lost, and the round trip
acks.py           which of the peer's packets came, and when to acknowledge them
congestion/       how much may be in flight, and how fast it may leave
mtu.py            how large a datagram the path carries
paths.py          follows a peer whose address changes
doubt.py          asks a peer that is said to be gone
ranges.py         sets of integers that come in runs
events.py         what a connection tells its driver

What drives it, with sockets and the clock:

endpoint.py       the sockets, the timer and the clock of all connections
doors.py          the sockets, and which one reaches an address
batch_socket.py   many datagrams in one system call
demultiplex.py    whose a received datagram is
deadlines.py      one timer for many connections
pipe.py           carries a channel to and from a local socket
route.py          how large a datagram the first hop takes
"""
