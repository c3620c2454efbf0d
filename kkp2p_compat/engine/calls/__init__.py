"""How a connection to a peer comes to be: called or answered, by the cloud or on the LAN.

dialer.py      ``connect``: by the LAN, by p2p, by the relay, or by p2p and else the relay
remote.py      what is known of a peer that we call: its link, the attempts, how earlier ones went
asking.py      a channel is asked for on a live link
attempts.py    one attempt to reach a peer, which several wait for
caller.py      our call over the cloud, and another one when the path is dead
callee.py      the answer to a call, whoever carries it
pace.py        one call after the other is answered
incoming.py    who we are for the cloud, and the calls that it hands over
lan.py         calls that a LAN search carries, made and answered
turn_place.py  the TURN server that a track names for a call
cloud_call.py  a call on the tracks where the peer may be; relayed calls
metrics.py     what Prometheus is told of an engine
"""
