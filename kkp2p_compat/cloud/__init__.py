"""The cloud: the servers that peers log in at, call through, and are relayed by.

It stands on control (the messages), transport (TCP and the splice) and traversal (the STUN codec,
this host's addresses); nothing imports it but the command line.  One process, one thread:

server.py              the listening port, and which service a connection gets
stranger.py            a connection that has said nothing yet
door.py                a listening port
handshakes.py          whose TLS handshake is begun next
settings.py            everything that can be set
certificate.py         what TLS shows
changed_files.py       notices that files were replaced

The control plane:

control_connection.py  one TLS connection
route.py               where peers log in, told by a node that does nothing else
track.py               lets peers log in
presences.py           who is online, and that the directory knows it
members.py             who is connected to a track, and the calls between them
messages.py            what the messages of peers must hold
calls.py               offers, answers and what follows
relays.py              which relays a call is given
relay_news.py          who is online hears of new relays
turn_credentials.py    what both sides of a call are told of a TURN server
turns.py               whose call a callee is handed next
correspondents.py      who is told that a peer is gone
outcomes.py            how calls come out
login.py               the server's half of a login (SCRAM)
directory.py           what the nodes of a cloud know together: accounts, who is where
records.py             what it keeps
open_directory.py      which directory a cloud has
directory_local.py     a directory in this process, and in SQLite
account_file.py        accounts as lines of text, to move them
accounts.py            who may log in, in SQLite
directory_redis.py     a directory in Redis
redis_scripts.py       what Redis does in one step
redis_records.py       what stands in Redis, and what it is read as
redis_link.py          what is said to Redis and heard of it
redis_place.py         where Redis is, and connections to it
account_limits.py      what accounts with limits of their own may use
login_limits.py        how often secrets may be tried

Several processes that are one cloud:

nodes.py               this node among the others: its lease, and their messages
abroad.py              calls between peers of two nodes
guests.py              the callers of other nodes, and how many there may be
remote_member.py       who is at another node, for these calls

The relay, what is served by UDP, and STUN:

relay.py               pairs two TCP connections of a call, and splices them
lane.py                forwards packets between the two sides of a call
lane_table.py          which packets go where
usage.py               how many bytes of the relays each account uses
udp_port.py            the UDP port: tells packets, lanes and STUN apart
stun.py                tells a peer at which address it is seen
stun_tcp.py            the same over TCP
outside.py             what the cloud vouches for of that

For those who run it:

admin.py               the HTTP port: health, metrics, and the status page, which is in page/
metrics.py             what Prometheus is told
status.py              what the page is told
stats.py               the numbers of a node that the others get

Limits and numbers, for all of them:

limits.py              who may come in, how often, for how long
counting.py            by which addresses and networks is counted
audit.py               who has logged in, and who was refused what
counts.py              what was done, for the metrics and the status page
"""
