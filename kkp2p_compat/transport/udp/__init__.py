"""The UDP transport between two peers: packets, recovery, streams; see docs/protocol.rst."""
