"""How a path to a peer is found."""
