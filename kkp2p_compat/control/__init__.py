"""The control plane, as a peer sees it; and what both of its ends share.

- ``client``: staying logged in, and finding the track of a callee; ``links``: the open connections
  to the cloud's servers, ``link``: one of them, ``outgoing``: a call that we make on one.
- Whom to believe: ``trust`` (which certificates), ``scram`` (our half of a login), ``nearness``
  (where a server may send us).
- Where servers are: ``resolver`` (names to addresses), ``nat64`` (IPv4 where there is IPv6 only),
  ``backoff`` (how long to wait before the next try).
- Shared with the cloud: ``wire`` (messages as lines, and the protocol's limits), ``refusals`` (the
  reasons for which calls and logins are refused), ``callers`` (who may call a peer), ``binding``
  (ties a login to the certificate that TLS has shown).
"""
