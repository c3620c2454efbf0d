"""What carries bytes to a peer.  Knows no application.

peer_link.py       a live connection with a peer: its life and its path
link_channels.py   the channels on it
link_table.py      all links of an engine
roaming.py         what is done when the path of a link dies
streams.py         an open stream, on a link or through the relay, with one face
link_paths.py      the paths of a link, and which one it takes
background.py      what goes on for streams by itself
"""
