"""A network laboratory: hosts, NATs and bad links on one Linux machine, for tests of real programs.

``docs/testing.rst`` says how to use it.  Nothing else in the package imports this one.

lab.py            hosts in network namespaces, on a switch or on an internet
internet.py       an internet as a test sees it
world.py          its networks, NATs and access lines
world_process.py  the process that carries its packets
access.py         what an access line drops; sans-IO
nat.py            what a NAT remembers and decides; sans-IO
packet.py         an IP packet that is rewritten
link.py           a link with a rate, a delay, losses and a queue
hosts.py          a host, in which programs run
flow.py           numbered records, and what has become of them; sans-IO
programs.py       starts programs and waits for their output
miniupnpd.py      a router that maps ports
plugin.py         the pytest fixtures
"""
