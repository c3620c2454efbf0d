"""select.epoll: new callers and all channels in one thread."""

from __future__ import annotations

import select

import kkp2p_compat as kkp2p
from peers import take


def collect(engine: kkp2p.engine_t, callers: int) -> list[bytes]:
    """What that many callers say, each until it ends, in the order in which they end."""
    listener = kkp2p.listen_fd(engine)  # readable while somebody waits to be accepted
    said: dict[int, bytes] = {}  # by the descriptors of those that are still there
    ended: list[bytes] = []
    with select.epoll() as poll:
        poll.register(listener, select.EPOLLIN)
        while len(ended) < callers:
            for fd, _ in poll.poll():
                if fd == listener:
                    if (channel := take(engine, 0)) is not None:
                        poll.register(channel.fd, select.EPOLLIN)
                        said[channel.fd] = b""
                    continue
                buff = bytearray(65536)
                if (count := kkp2p.read(fd, buff, len(buff), 0)) > 0:
                    said[fd] += buff[:count]
                elif count < 0:  # the end, or a cut: kkp2p.error_no() tells them apart
                    ended.append(said.pop(fd))
                    poll.unregister(fd)  # before the close: the engine may have a copy for a while
                    kkp2p.close_fd(fd)
    return ended
