"""A companion: the process in which one engine of a C program lives; companion.c starts it.

It ends when the program does: then the kernel ends the control socket.  Until then it ignores the
signals by which a program is ended: they are the program's, which may have a handler.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from .._version import __version__
from . import wire

__all__ = ["main"]

# As companion.c has them.
REPORTS_FD, CONTROL_FD, ERRORS_FD, FIRST_UNUSED_FD = 2, 3, 4, 5
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str]) -> str | None:
    """``arguments``: the version of the library's packets.  Returns what is wrong with them."""
    if arguments != [str(wire.VERSION)]:
        return (
            f"kkp2p_compat {__version__} wants packets of version {wire.VERSION}, and the library "
            f"has {' '.join(arguments) or 'none'}: build the library again"
        )
    # The program's, where companion.c could not close them.
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(FIRST_UNUSED_FD, soft)
    from gevent import socket  # a failure until here is told in REPORTS_FD

    from .companion import Companion

    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=CONTROL_FD)
    companion = Companion(control)
    os.dup2(ERRORS_FD, REPORTS_FD)
    os.close(ERRORS_FD)
    control.sendall(wire.HELLO)
    companion.run()
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    # Who reads what the program says waits for the end of it.
    os.dup2(0, REPORTS_FD)  # /dev/null
    companion.close()
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
