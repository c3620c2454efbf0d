"""A simulated network on a virtual clock, and the driver that plays the endpoint in it."""
