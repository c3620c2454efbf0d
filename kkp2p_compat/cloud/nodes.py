"""This node among the others of its cloud: its lease, who else lives, what nodes tell each other.

A node says every two seconds that it lives, and learns who else does.  One that has stopped saying
so is gone, once the others have missed it twice: a directory that was emptied has nobody in it for
a moment.  While the directory is away nobody is taken for gone.

Messages are at most once, one JSON object a line (docs/protocol.rst, "Between nodes").  Whoever can
write to the directory can send them, and nodes of other versions do: so what comes is a stranger's.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable

import gevent

from .._errors import BadPacket
from ..control.wire import MAX_LINE_BYTES, Message, parse_untrusted
from .directory import LEASE_EVERY_S, LEASE_S, Directory, DirectoryAway, Node
from .limits import SparingLog

__all__ = ["PROTOCOL", "Handler", "Load", "Nodes", "fingerprints"]

log = logging.getLogger(__name__)

# docs/protocol.rst
PROTOCOL = 1
MAX_NODE_LINE_BYTES = 2 * MAX_LINE_BYTES  # a line of the control plane, and who it is about

_ID = re.compile("[0-9a-f]{16}")

LOAD_OVER_S = 5.0  # our choice: the load is of about so much time

Handler = Callable[[str, Message], None]  # from which node, and what


class Nodes:
    """Set ``handlers``, by op, and the callbacks; then ``start``, and ``stop`` at the end.

    ``on_gone``: a node, by its id, lives no more.  A handler must not wait, and raises BadPacket
    for what is wrong.
    """

    def __init__(self, directory: Directory, describe: Callable[[str], Node]) -> None:
        """``describe``: what the others are to know of this node, whose id it is given."""
        self.id = secrets.token_hex(8)
        self.living: dict[str, Node] = {}  # with this one, once it has a lease
        self.handlers: dict[str, Handler] = {}
        self.on_gone: Callable[[str], None] = lambda node_id: None
        self._directory = directory
        self._describe = describe
        self._missed: set[str] = set()
        self._leased_at = 0.0  # 0: not yet
        self._turns: gevent.Greenlet[..., None] | None = None
        self._refusals = SparingLog(logging.WARNING, "lines of nodes that were refused")

    def start(self) -> None:
        """The first lease is written before this returns, unless the directory is away."""
        self._directory.on_line = self.handle_line_untrusted
        self.take_turn()
        self._turns = gevent.spawn(self._take_turns)

    def stop(self) -> None:
        """Give the lease back.  May be called again."""
        if self._turns is None:
            return
        self._turns.kill()
        self._turns = None
        try:
            self._directory.release(self.id)
        except DirectoryAway as error:
            log.warning("the lease of this node runs out by itself: %s", error)

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        self._refusals.sweep(now)

    @property
    def others(self) -> list[Node]:
        return [node for node in self.living.values() if node.id != self.id]

    # The lease.

    def _take_turns(self) -> None:
        while True:
            gevent.sleep(LEASE_EVERY_S)
            self.take_turn()

    def take_turn(self) -> None:
        """Say that this node lives, and learn who else does.  May wait."""
        before, now = self._leased_at, time.monotonic()
        try:
            self._directory.lease(self._describe(self.id))
            found = {node.id: node for node in self._directory.nodes()}
        except DirectoryAway:
            return  # the directory itself logs it
        except Exception:
            log.exception("no lease")  # the next turn may do better
            return
        self._leased_at = now
        if before and now - before > LEASE_S:
            self._missed.clear()  # the others may have missed theirs, too
        self._update(found)

    def _update(self, found: dict[str, Node]) -> None:
        missing = self.living.keys() - found.keys()
        gone = missing & self._missed
        self._missed = missing - gone
        self.living = {**{name: self.living[name] for name in self._missed}, **found}
        for name in gone - {self.id}:
            log.warning("node %s is gone", name)
            self.on_gone(name)

    # Messages.

    def send(self, node_id: str, op: str, /, inner: bytes | None = None, **fields: object) -> None:
        """``inner``: a line of the control plane, which becomes ``message``.  Does not wait."""
        named = {name: value for name, value in fields.items() if value is not None}
        text = json.dumps(
            {"op": op, "v": PROTOCOL, "from": self.id, **named}, separators=(",", ":")
        )
        line = text.encode()
        if inner is not None:
            line = line[:-1] + b',"message":' + inner.rstrip(b"\n") + b"}"
        self._directory.send(node_id, line)

    def handle_line_untrusted(self, line: bytes) -> None:
        """What another node has sent; what we do not know, a newer one may."""
        try:
            if len(line) > MAX_NODE_LINE_BYTES:
                raise BadPacket("a line that is too long")
            message = parse_untrusted(line)
            sender = message.get("from")
            if not isinstance(sender, str) or not _ID.fullmatch(sender):
                raise BadPacket("a line that does not say from whom")
            handler = self.handlers.get(message["op"])
            if handler is not None:
                handler(sender, message)
        except BadPacket as error:
            self._refusals.tell("nodes", "a line of another node is refused: %s", error)
        except Exception:
            log.exception("a fault of ours, at a line of another node")


def fingerprints(nodes: Iterable[Node]) -> list[str]:
    """SHA-256s of the certificates that these show, each once."""
    return [*dict.fromkeys(node.fingerprint for node in nodes if node.fingerprint)]


class Load:
    """How busy this thread is: ``share``, from 0 to 1, of the last seconds."""

    def __init__(self) -> None:
        self.share = 0.0
        self._at = time.monotonic()
        self._used = time.thread_time()

    def sweep(self, now: float) -> None:
        """To be called about once a second."""
        passed, used = now - self._at, time.thread_time()
        if passed > 0:
            recent = min((used - self._used) / passed, 1.0)
            self.share += (recent - self.share) * min(passed / LOAD_OVER_S, 1.0)
            self._at, self._used = now, used
