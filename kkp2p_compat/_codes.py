"""The constants of the C SDK, under their full C names.

Values: the public header of KKP2P.  The comments say what each code means *here*; where the C
SDK never documented a meaning, it is ours, and docs/porting.rst lists it.
"""

from __future__ import annotations

# Result codes.
KKP2P_SUCCESS = 0  #: all went well
KKP2P_ERROR = -1  #: any failure without a code of its own; also: the peer or descriptor is closed
KKP2P_ERROR_DOMAIN_PARAM_ERROR = -101  #: login_domain is malformed
KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT = -102  #: login_domain did not resolve in time
KKP2P_ERROR_ANALYSIS_DOMAIN_FAILURE = -103  #: the resolver failed, or knows no such name
KKP2P_ERROR_DOMAIN_NO_IP = -104  #: login_domain resolves to no usable address
KKP2P_ERROR_SYSTEM_INTERNAL = -105  #: a bug or a failing system call; see the log
KKP2P_ERROR_PARAMETER = -106  #: an argument is out of range, or not supported here
KKP2P_ERROR_CONN_DISCONNECT = -107  #: the cloud dropped the connection, or a limit of it was met
KKP2P_ERROR_OTHER_DISCONNECT = -108  #: the other peer refused: its accept queue is full, it left
KKP2P_ERROR_CONNECT_TIMEOUT = -109  #: not connected in time, or the peer is not online
KKP2P_ERROR_INVALID_PEER_ID = -110  #: not a peer id, or one that the cloud does not know
KKP2P_ERROR_INVALID_PEER_KEY = -111  #: the secret is wrong; or the peer's key is not the known one
KKP2P_ERROR_LANMODE_MUSTUSE_P2P = -112  #: lan_search works with connect_mode 1 only
KKP2P_ERROR_BIND_IP = -113  #: start_proxy cannot listen on that address and port
KKP2P_ERROR_SOCKET_REUSE_ADDR = -114  #: not returned here
KKP2P_ERROR_SOCKET_BIND = -115  #: another program has the port of LAN searches
KKP2P_ERROR_INVALID_DOMAIN = -116  #: join_net wants a login_domain, and none is set
KKP2P_ERROR_DUPLICATE_ID = -117  #: another login under the same peer id ended ours
KKP2P_ERROR_OUT_OF_MEMORY = -118  #: the system has no memory for it
KKP2P_ERROR_SOCKET_FD_OVERFLOW = -119  #: this process is out of descriptors
KKP2P_ERROR_START_THREAD_POOL = -120  #: the system has no thread for the engine
KKP2P_ERROR_SMALL_BUFF = -121  #: the caller's buffer cannot hold the answer
KKP2P_ERROR_TIMEOUT = -122  #: not returned here

# channel_type
KKP2P_TCP_CHANNEL = 0  #: channel_type: a stream of bytes
KKP2P_UDP_CHANNEL = 1  #: channel_type: messages, which may be lost
KKP2P_WEBRTC_CHANNEL = 2  #: channel_type: not part of this port

# connect_mode: names are ours, the C SDK has bare numbers.
CONNECT_AUTO = 0
CONNECT_P2P = 1
CONNECT_RELAY = 2

# transmit_mode: likewise.
TRANSMIT_P2P = 1
TRANSMIT_RELAY = 2

MAX_PEER_ID = 32  # characters, as in C
MAX_MESSAGE_BYTES = 65536  # of a UDP channel, as in C

CODE_NAMES = {
    value: name
    for name, value in globals().copy().items()
    if name.startswith("KKP2P_") and isinstance(value, int) and value < 0
}
