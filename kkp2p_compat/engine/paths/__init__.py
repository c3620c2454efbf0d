"""How a path to a peer is found.  Knows no call, no channel and no cloud.

network.py          the underlay, made when it is wanted for the first time
underlay.py         the network below all links: sockets, own addresses
searches.py         the searches for paths, and what they share
own_addresses.py    where this engine can be reached, and what its NAT does
ipv6_only.py        on a host without IPv4: the network's NAT64
stun_servers.py     which STUN servers are asked
questions.py        asks them
lifetime.py         how long the NAT keeps an idle binding
meeting.py          both sides have spoken: look for a path between them
path_finder.py      runs the connectivity checks
puncher.py          does what a plan wants beyond checks
birthdays.py        which birthday punches an engine may make
relay_paths.py      the ways over relays, for one connection
relay_meter.py      how far relays are
lanes.py            our places on the lanes of relays
path_kind.py        the kinds of paths, the best first
udp_use.py          whether UDP is used in the network that this host is in
framed.py           a TCP connection as one more address of the endpoint
tcp_meeting.py      a direct path by TCP, where UDP is blocked
turn_meeting.py     where the two sides meet through a TURN server
turn_allocation.py  an address at a TURN server, and the socket that uses it
driver.py           drives a sans-IO core that sends STUN messages
"""
