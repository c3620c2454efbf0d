"""What the tests share: peers, clouds, servers that lie, and networks on a virtual clock."""
