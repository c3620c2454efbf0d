"""The cloud: what peers log in at, call through, and are relayed by.

It stands on control (the messages), transport (TCP and the splice) and traversal (the STUN codec,
this host's addresses); nothing imports it but the command line.  One process, one thread:

- ``server``: the listening port, and which service a connection gets; ``settings``: all that can be
  set, ``certificate``: what TLS shows, ``prober``: which other servers of the cloud are alive.
- The control plane: ``control_connection`` (one TLS connection), and behind it either ``route``
  (which track a peer belongs to) or ``track`` (who is online).  The track has ``members`` (who is
  connected, and the calls between them), ``calls`` (offers, answers and what follows), ``turns``
  (whose call a callee is handed next), ``correspondents`` (who is told that a peer is gone),
  ``login`` and ``accounts`` (SCRAM), ``login_limits`` (how often secrets may be tried).
- The data plane: ``relay`` pairs two TCP connections of a call.
- By UDP: ``stun`` tells who asks where it is seen, ``outside`` what the cloud vouches for of that.
- For all of them: ``limits`` (who may come in, how often, for how long), ``counting`` (by which
  addresses and networks limits count).
"""
