"""What carries bytes to a peer."""
