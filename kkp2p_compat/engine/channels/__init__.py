"""What the application holds: channels, and the queue that ``accept`` takes them from.

descriptors.py   the channels of the process by their descriptors
table.py         the channels of an engine by their ids
kinds.py         a channel: raw (its descriptor is the socket to the relay), or a socket pair
stats.py         what is known of a channel, as ``channel_stats`` returns it
acceptor.py      the one way of what peers open into the queue: places, and who is refused
accept_queue.py  the queue, and the descriptor that polls readable while it holds something
"""
