"""The control plane, as a peer sees it; and what both of its ends share.

The peer's side:

client.py    staying logged in, and the way to whom we want to call
tracks.py    where a peer is, and which links are good enough to call by
links.py     the open connections to the cloud's servers
link.py      one of them: logging in, heartbeats, calls
outgoing.py  the calls that we make on one
scram.py     our half of a login
trust.py     which certificates are believed
way_out.py   directly, or through an HTTP proxy
nearness.py  where a server may send us
resolver.py  names to addresses
backoff.py   how long to wait before the next try
invitation.py  where a cloud is, in one line

Shared with the cloud:

wire.py      messages as lines, and the protocol's limits
refusals.py  the reasons for which calls and logins are refused
callers.py   who may call a peer
binding.py   ties a login to the certificate that TLS has shown
"""
