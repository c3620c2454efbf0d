"""What this process says to Redis, and hears of it, over one connection for each.

Any number of greenlets may ask at once: what has gathered while an answer was waited for is sent
together, so that a busy cloud needs few packets and Redis few system calls.  Each of the two
connections belongs to a greenlet of its own.  If one breaks, both are made anew: they must lead to
the same Redis.  Until they are there nobody waits: what is asked fails at once.

Nothing is sent twice: what was sent when a connection broke may have been done or not.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gevent
from gevent.event import AsyncResult, Event
from redis import exceptions
from redis.connection import Connection

from .._address import HostPort, text_of
from ..control.backoff import Backoff
from .counts import Spread
from .directory import DirectoryAway
from .redis_place import FAULTS, REDIS_TIMEOUT_S, RedisPlace

__all__ = ["DEPOSED", "Command", "RedisLink", "Reply", "Script", "good"]

log = logging.getLogger(__name__)

Command = tuple[Any, ...]
Reply = Any  # what Redis has answered, an exception of redis-py's if it refuses

# Our choices.
BATCH = 512  # commands that are sent together; a request of more is not divided
MAX_WAITING = 20_000  # requests; what comes when there are so many fails
HEAR_S = 0.005  # what is heard without a pause: others may notice that much
PING_EVERY_S = 5.0  # where nothing is heard
WATCH_EVERY_S = 1.0  # a sentinel is asked where the master is
RETRY_S, RETRY_MOST_S = 0.05, 1.0  # pauses before a connection is tried again
LATENCY_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

# Answers after which the connection is of no use: this Redis is no master any more.
DEPOSED = (exceptions.ReadOnlyError, exceptions.MasterDownError)


class Script:
    """A program in Lua that Redis runs as one step; it is sent once, and then named."""

    known: ClassVar[dict[str, str]] = {}  # by SHA-1

    def __init__(self, text: str) -> None:
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        Script.known[self.sha] = text

    def __call__(self, keys: Sequence[str], *arguments: Any) -> Command:
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


class _Request:
    __slots__ = ("asked_at", "commands", "result")

    def __init__(
        self, commands: Sequence[Command], result: AsyncResult[list[Reply]] | None
    ) -> None:
        self.commands = commands
        self.result = result  # None: nobody waits for it
        self.asked_at = time.monotonic()

    def fail(self, error: Exception) -> None:
        if self.result is not None:
            self.result.set_exception(error)


class RedisLink:
    """``on_message`` gets channel and payload; it must not wait.  ``on_back``, when the connections
    are there again, may; with no ``channels`` there is one connection only.
    """

    def __init__(
        self,
        place: RedisPlace,
        channels: Sequence[str] = (),
        on_message: Callable[[str, bytes], None] = lambda channel, payload: None,
        on_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.place = place
        self.away_since: float | None = time.monotonic()
        self.away_reason = "not connected yet"
        self.latency = Spread(LATENCY_BOUNDS_S)  # of answers
        self._channels = channels
        self._on_message = on_message
        self._on_back = on_back
        self._waiting: deque[_Request] = deque()
        self._wake = Event()
        self._broken: Exception | None = None  # what has happened to the one that hears
        self._link: gevent.Greenlet[..., None] | None = None
        self._backoff = Backoff(random.Random(), RETRY_S, RETRY_MOST_S, RETRY_S)

    def start(self) -> None:
        """Raises OSError, with a sentence for the user, when there is no Redis now."""
        try:
            connections = self._connect()
        except FAULTS as error:
            raise DirectoryAway(f"{self.place}: {error}") from error
        self._set_here()
        self._link = gevent.spawn(self._run, connections)

    def close(self) -> None:
        if self._link is not None:
            self._flush()
            self._link.kill()
        self._fail_all(DirectoryAway("closed"))

    # Asking.

    def ask(self, *commands: Command) -> list[Reply]:
        """The answers; raises DirectoryAway.  An error of one command is its answer."""
        result = self._enter(commands)
        with gevent.Timeout(REDIS_TIMEOUT_S, DirectoryAway("Redis takes too long")):
            return result.get()

    def one(self, command: Command) -> Reply:
        """The answer to one; what Redis refuses is raised as DirectoryAway, too."""
        (reply,) = self.ask(command)
        return good(reply)

    def tell(self, *commands: Command) -> None:
        """Without waiting for an answer; lost if Redis is away."""
        if self.away_since is None and len(self._waiting) < MAX_WAITING:
            self._waiting.append(_Request(commands, None))
            self._wake.set()

    def _enter(self, commands: Sequence[Command]) -> AsyncResult[list[Reply]]:
        if self.away_since is not None:
            raise DirectoryAway(f"Redis is away: {self.away_reason}")
        if len(self._waiting) >= MAX_WAITING:
            raise DirectoryAway(f"over {MAX_WAITING} requests wait for Redis")
        result: AsyncResult[list[Reply]] = AsyncResult()
        self._waiting.append(_Request(commands, result))
        self._wake.set()
        return result

    # The greenlet of the connection that speaks.

    def _run(self, connections: list[Connection]) -> None:
        while True:
            others = [gevent.spawn(self._hear, heard) for heard in connections[1:]]
            if self.place.name:
                where = connections[0].host, connections[0].port
                others.append(gevent.spawn(self._watch, where))
            try:
                self._speak(connections[0])
            except FAULTS as error:
                self._set_away(error)
            finally:
                gevent.killall(others)
                for connection in connections:
                    connection.disconnect()
            connections = self._reconnect()
            self._set_here()
            gevent.spawn(self._tell_back)

    def _reconnect(self) -> list[Connection]:
        while True:
            gevent.sleep(self._backoff.next())
            try:
                connections = self._connect()
            except FAULTS as error:
                self.away_reason = str(error)
            else:
                self._backoff.reset()
                return connections

    def _connect(self) -> list[Connection]:
        """The one that speaks, and perhaps the one that hears."""
        connections = [self.place.connect()]
        try:
            for text in Script.known.values():
                connections[0].send_command("SCRIPT", "LOAD", text)
                connections[0].read_response()
            if self._channels:
                connections.append(self.place.connect(PING_EVERY_S))
                connections[1].send_command("SUBSCRIBE", *self._channels)
                for _ in self._channels:
                    connections[1].read_response()
        except BaseException:
            for connection in connections:
                connection.disconnect()
            raise
        self._broken = None
        return connections

    def _set_here(self) -> None:
        if self.away_reason and self._link is not None:
            log.warning("%s is back", self.place)
        self.away_since, self.away_reason = None, ""

    def _set_away(self, error: Exception) -> None:
        self.away_since, self.away_reason = time.monotonic(), str(error)
        log.warning("%s is away: %s", self.place, error)
        self._fail_all(DirectoryAway(f"Redis is away: {error}"))

    def _fail_all(self, error: Exception) -> None:
        while self._waiting:
            self._waiting.popleft().fail(error)

    def _tell_back(self) -> None:
        try:
            self._on_back()
        except DirectoryAway as error:
            log.warning("it is away again: %s", error)  # and will be back again

    def _speak(self, connection: Connection) -> None:
        while True:
            if not self._waiting:
                self._wake.clear()
                self._wake.wait()
            if self._broken is not None:
                raise self._broken
            batch = self._take_batch()
            try:
                with gevent.Timeout(REDIS_TIMEOUT_S, TimeoutError("it does not answer")):
                    deposed = self._carry(connection, batch)
            except BaseException as error:
                away = DirectoryAway(f"Redis is away: {error}")
                for request in batch:
                    request.fail(away)
                raise
            if deposed is not None:
                raise deposed

    def _take_batch(self) -> list[_Request]:
        batch: list[_Request] = []
        size = 0
        while self._waiting and size < BATCH:
            batch.append(self._waiting.popleft())
            size += len(batch[-1].commands)
        return batch

    def _carry(self, connection: Connection, batch: list[_Request]) -> Exception | None:
        commands = [command for request in batch for command in request.commands]
        replies = iter(self._exchange(connection, commands))
        now, deposed = time.monotonic(), None
        for request in batch:
            answers = [next(replies) for _ in request.commands]
            deposed = next((a for a in answers if isinstance(a, DEPOSED)), deposed)
            self.latency.add(now - request.asked_at)
            if request.result is not None:
                request.result.set(answers)
        return deposed

    def _exchange(self, connection: Connection, commands: Sequence[Command]) -> list[Reply]:
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies = [_read(connection) for _ in commands]
        for number, reply in enumerate(replies):
            if isinstance(reply, exceptions.NoScriptError):  # somebody has had it forgotten
                _, sha, *rest = commands[number]
                connection.send_command("EVAL", Script.known[sha], *rest)
                replies[number] = _read(connection)
        return replies

    def _flush(self) -> None:
        """Let what is told be sent, as far as Redis takes it now."""
        if self.away_since is None:
            try:
                self.one(("PING",))
            except DirectoryAway as error:
                log.warning("what was told last may be lost: %s", error)

    # The greenlet of the connection that hears.

    def _hear(self, connection: Connection) -> None:
        since = time.monotonic()
        try:
            while True:
                message = self._next_message(connection)
                if isinstance(message, list) and len(message) == 3 and message[0] == b"message":
                    self._take(message[1].decode(errors="replace"), message[2])
                if time.monotonic() - since > HEAR_S:  # where there is always more, nothing waits
                    gevent.sleep(0)
                    since = time.monotonic()
        except FAULTS as error:
            self._break(error)

    def _break(self, error: Exception) -> None:
        self._broken = error
        self._wake.set()

    def _next_message(self, connection: Connection) -> Any:
        for is_last_try in (False, True):
            try:
                return connection.read_response(disconnect_on_error=False)
            except exceptions.TimeoutError:
                if is_last_try:
                    raise
                connection.send_command("PING", check_health=False)
            except DEPOSED:
                raise
            except exceptions.ResponseError as refusal:
                return refusal  # one that cannot write to its disk refuses pings, too, and lives

    def _take(self, channel: str, payload: Any) -> None:
        try:
            if isinstance(payload, bytes):
                self._on_message(channel, payload)
        except Exception:
            log.exception("a message on %s", channel)

    # The greenlet that asks the sentinels.

    def _watch(self, where: HostPort) -> None:
        """Leave a Redis that the sentinels have replaced.

        It takes itself for the master for some seconds more, if it is alive: so long nodes that
        went on with it would hear nothing of those that have come to the new one.
        """
        master = where
        while master == where:
            gevent.sleep(WATCH_EVERY_S)
            try:
                master = self.place.find_master()
            except FAULTS as error:
                log.info("where the master is, nobody says: %s", error)  # so it is where it was
        self._break(OSError(f"the master is {text_of(master)} now"))


def good(reply: Reply) -> Reply:
    """Redis's own error is no answer: the directory is away."""
    if isinstance(reply, Exception):
        raise DirectoryAway(f"Redis: {reply}") from reply
    return reply


def _read(connection: Connection) -> Reply:
    try:
        return connection.read_response()
    except exceptions.ResponseError as error:
        return error
