"""The C library: its sources, and the companion process in which each of its engines lives.

A C program that is linked with it has no Python in its own process: ``kkp2p_sdk.h`` is what it
includes, the ``.c`` files are the library, which starts ``python -I -m kkp2p_compat.capi`` for each
engine and asks it by packets over a socket pair.  Descriptors of channels are handed over by the
kernel (SCM_RIGHTS, unix(7)); what is read and written does not pass the library.

__main__.py   the companion's process: its descriptors, signals, and end
companion.py  what it does: takes the library's calls, and hands over channels
wire.py       the packets between the two
build.py      compiles the library

The C files are ``kkp2p_sdk.h``, the interface; ``internal.h``, what they share, and the packets;
``engines.c``, engines made, used, destroyed and left behind by a fork; ``companion.c``, which
starts a companion; ``calls.c``, what it answers; ``callbacks.c``, asynchronous connects; ``log.c``,
the log's callback; ``bytes.c``, reading, writing and the end of a descriptor; ``sha1.c``.
"""
