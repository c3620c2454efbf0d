"""A peer: six rooms, of which each imports only those below it, and what stands on them.

docs/architecture.rst tells of them, and follows a call through them.

engine.py    builds the parts, is the application's door to them, ends them in order
switchboard.py  those of the parts that serve calls: made for the first one
proxy/       local ports that forward to a peer
calls/       how a connection to a peer comes to be
channels/    what the application holds
links/       what carries bytes to a peer
paths/       how a path is found
signalling/  what two peers tell each other
runtime/     what an engine lives in
"""
