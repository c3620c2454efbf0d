"""How two hosts behind NATs find addresses at which they reach each other.

Where this host can be reached:

interfaces.py     the host's addresses
routes.py         its default routes
address_watch.py  notices when either changes
nat.py            what the NAT does, in the words of RFC 4787
nat_discovery.py  finds it out by asking STUN servers; sans-IO
stun_client.py    questions to STUN servers, and whose answer a datagram is; sans-IO
stun.py           the bytes of STUN messages
stun_values.py    the bytes of their attributes' values
port_mapping.py   keeps a port mapped at the router
gateway.py        asks a router by PCP or NAT-PMP
pcp.py            the bytes of PCP and NAT-PMP
upnp.py           asks a router by UPnP-IGD

Which address reaches the peer; all sans-IO:

candidates.py     addresses: which of ours to tell, which of the peer's to try
credentials.py    the username fragments and passwords of checks
plan.py           what two peers do, judged by their NATs
checks.py         one call's connectivity checks, and the choice of a path
check_pairs.py    what they know of each remote address
check_table.py    the checks of all calls behind the engine's sockets
punch.py          the part of a plan beyond checks: prediction and birthdays
guesses.py        probes of ports that were guessed
courtesy.py       what all calls together may send to addresses that have not answered
tcp_proof.py      how the two sides know each other on a TCP connection
notes.py          what was done and learnt, in words and by kind

An address at a server, where no other reaches the peer:

turn.py           what we tell a TURN server, and hear from it; sans-IO
turn_server.py    where one is, and with which credentials it takes us
turn_socket.py    one more socket of an endpoint, whose datagrams go through such a server
channel_data.py   the bytes of ChannelData, in batches

Where no UDP passes:

tcp_punch.py      a direct TCP connection through both sides' NATs

The local network:

lan.py            finds a peer by broadcast, and answers such searches
lan_wire.py       the bytes of a search, and what was heard already
"""
