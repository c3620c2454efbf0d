"""The document's programs in Python, and more; ``kkp2p demo`` runs them as kkp2p_compat.samples.

https_server.py    answers http and https
proxy_client.py    a local port that forwards to a peer
single_process.py  both in one process
udp_forwarder.py   forwards UDP channels to a service
recv_file.py       receives files
send_file.py       sends a file
chat.py            two people type lines to each other
async_connect.py   connects to many peers at once, with callbacks
"""
