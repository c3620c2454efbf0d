"""What carries bytes to a peer.  Knows no application.

peer_link.py       a live connection with a peer: its life and its path
pins.py            who we are for our peers, and whom we know by their keys
proving.py         who is at the other end of a link
link_channels.py   the channels on it
link_table.py      all links of an engine
traffic.py         what they have carried, by path
path_choice.py     which of its paths a connection takes
path_move.py       that it has taken another one, and why
path_option.py     one of these paths, and what its use has taught
path_meter.py      how much the path in use carries
path_trial.py      which other path is worth a trial, and what it has shown
roaming.py         what is done when the path of a link dies
streams.py         an open stream, on a link or through the relay, with one face
link_paths.py      the paths of a link, and which one it takes
background.py      what goes on for streams by itself
"""
