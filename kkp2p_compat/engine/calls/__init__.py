"""How a connection to a peer comes to be."""
