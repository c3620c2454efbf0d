"""TLS over a channel's descriptor: OpenSSL's calls, which wait as the rest of this package does.

OpenSSL on the descriptor itself would block the whole thread if the descriptor is blocking, and
return WANT_READ to every greenlet if it is not.  Here it works in memory, and the bytes are moved
by the code that moves them for ``read`` and ``write``: a greenlet lets the others of its thread
go on, a plain thread blocks, and the mode of the descriptor never matters::

    ssl = tls.Connection(context, channel.fd)   # ssl = SSL_new(ctx); SSL_set_fd(ssl, channel->fd);
    if ssl.accept() < 0:                        # if (SSL_accept(ssl) < 0)
        print(ssl.get_error(-1))                #     SSL_get_error(ssl, -1)

Rules: as in OpenSSL, one reader and one writer may be at work at once, greenlets or threads.  The
lock is held for OpenSSL and for calls of the kernel that do not wait, never during a wait.  A
connection holds one record (16 KiB) to send and 64 KiB received, at most.  Errors of the network
are results, not exceptions; an exception that the caller has raised in its own wait (such as a
gevent.Timeout) passes, and nothing is lost by it: the same call may be made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gevent import monkey
from gevent.local import local
from OpenSSL import SSL

from . import _io
from ._descriptors import closings

__all__ = [
    "SSL_ERROR_NONE",
    "SSL_ERROR_SSL",
    "SSL_ERROR_SYSCALL",
    "SSL_ERROR_WANT_READ",
    "SSL_ERROR_WANT_WRITE",
    "SSL_ERROR_ZERO_RETURN",
    "Connection",
]

# Values: OpenSSL's ssl.h.
SSL_ERROR_NONE = 0
SSL_ERROR_SSL = 1  # a TLS error: bad certificate, garbage, wrong version; nothing more can be done
SSL_ERROR_WANT_READ = 2  # not in time: the peer has not sent what is needed
SSL_ERROR_WANT_WRITE = 3  # not in time: the peer does not read
SSL_ERROR_SYSCALL = 5  # the connection broke, or ended without close_notify: data may be missing
SSL_ERROR_ZERO_RETURN = 6  # the peer has sent close_notify, after everything else

RECORD_BYTES = 16384  # RFC 8446 section 5.1: what SSL_read and SSL_write do at most at once
CHUNK_BYTES = 65536  # our choice: what is taken from the kernel at once

_TRUNCATED = "unexpected end of stream"


class Connection:
    """One TLS connection over a stream channel; the descriptor stays the caller's to close.

    ``context``: a pyOpenSSL context, which decides versions, certificates and verification.
    ``timeout`` of every call: ms, 0 or more; None: as long as it takes.  A call that is not done in
    time returns -1 with SSL_ERROR_WANT_READ or SSL_ERROR_WANT_WRITE, and may be made again.
    """

    def __init__(self, context: SSL.Context, fd: int) -> None:
        self._ssl: SSL.Connection | None = SSL.Connection(context, None)
        self._fd = fd
        self._era = closings(fd)
        self._lock = monkey.get_original("_thread", "allocate_lock")()
        self._last = local()  # of each greenlet and thread: the reader's error is not the writer's
        self._is_server: bool | None = None
        self._unsent = b""  # from OpenSSL, not yet taken by the kernel
        self._taken = 0  # bytes of an unfinished write that OpenSSL has
        self._notified = False  # close_notify was made
        self._fatal = ""  # why OpenSSL gave up
        self._input_end = ""  # why nothing comes any more
        self._output_end = ""  # why nothing can be sent any more

    @property
    def ssl(self) -> SSL.Connection:
        """pyOpenSSL's object, for questions only: certificate, cipher, ALPN, set_session..."""
        if self._ssl is None:
            raise ValueError("the connection was freed")
        return self._ssl

    def accept(self, timeout: int | None = None) -> int:
        """Do the handshake as a server.  1: done; -1.  C: ``SSL_accept``."""
        return self._handshake(True, timeout)

    def connect(self, server_name: str | None = None, timeout: int | None = None) -> int:
        """Do the handshake as a client.  1: done; -1.  C: ``SSL_connect``.

        ``server_name`` is sent (SNI, RFC 6066).  As in C it is not compared with the certificate:
        to verify, look at ``ssl.get_peer_certificate()``, too.
        """
        if server_name is not None and self._ssl is not None and self._is_server is None:
            self._ssl.set_tlsext_host_name(server_name.encode("idna"))
        return self._handshake(False, timeout)

    def read(self, n: int, timeout: int | None = None) -> bytes:
        """Up to ``n`` bytes; empty at the end and on errors: ask ``get_error(0)`` which."""
        buff = bytearray(min(n, RECORD_BYTES))
        count = self.read_into(buff, len(buff), timeout)
        return bytes(buff[:count]) if count > 0 else b""

    def read_into(
        self, buff: bytearray | memoryview, n: int | None = None, timeout: int | None = None
    ) -> int:
        """Read up to ``n`` bytes into ``buff``: how many, 0 at close_notify, -1.  C: ``SSL_read``.

        At most one TLS record (16 KiB) is returned by one call.
        """
        view = memoryview(buff).cast("B")
        n = len(view) if n is None else n
        if not 0 < n <= len(view):
            raise ValueError(f"n is {n}, not 1 to {len(view)}")
        n = min(n, RECORD_BYTES)
        result = self._do(lambda ssl: ssl.recv_into(view, n), _deadline(timeout))
        return 0 if result < 0 and self.get_error(result) == SSL_ERROR_ZERO_RETURN else result

    def write(self, data: bytes | bytearray | memoryview, timeout: int | None = None) -> int:
        """Write all of ``data``: its length once the kernel has it, or -1.  C: ``SSL_write``.

        After a time-out (-1, SSL_ERROR_WANT_WRITE) or the caller's own gevent.Timeout a part of
        ``data`` may be gone.  Then, as in OpenSSL, the next write must be of the same data; it goes
        on where this one stopped.  An empty write does nothing and returns 0.
        """
        view = memoryview(data).cast("B")
        deadline = _deadline(timeout)
        if self._taken > len(view):
            self._fatal = self._fatal or "bad write retry: not the data of the unfinished write"

        def send(ssl: SSL.Connection) -> int:
            self._need_flushed(ssl)
            return ssl.send(view[self._taken : self._taken + RECORD_BYTES])

        while self._taken < len(view):
            if (result := self._do(send, deadline)) < 0:
                return result
            self._taken += result
        if (result := self._do(self._need_flushed, deadline)) < 0:
            return result
        self._taken = 0
        return len(view)

    def shutdown(self, timeout: int | None = None) -> int:
        """Send close_notify: 1: the peer has sent its own; 0: not yet; -1.  C: ``SSL_shutdown``.

        Returns when the kernel has all that was written.  A second call waits for the peer's
        close_notify, and fails if the peer sends data instead: read on until it has ended.
        """
        deadline = _deadline(timeout)
        if self._notified and not self._unsent:
            return self._do(_shutdown_again, deadline, needs_output=True, fatal=False)
        result = self._do(self._shutdown, deadline, fatal=False)
        flushed = self._do(self._need_flushed, deadline) if result >= 0 else result
        return result if flushed > 0 else flushed

    def get_error(self, result: int) -> int:
        """Why the last call of this greenlet or thread returned ``result``: SSL_ERROR_*.

        C: ``SSL_get_error``.
        """
        return SSL_ERROR_NONE if result > 0 else getattr(self._last, "error", SSL_ERROR_NONE)

    def error_string(self) -> str:
        """The same for people; empty if that call did not fail.  C: ``ERR_error_string``."""
        return getattr(self._last, "text", "")

    def free(self) -> None:
        """Release OpenSSL's memory; every later call returns -1.  C: ``SSL_free``."""
        with self._lock:
            self._ssl = None
            self._fatal, self._unsent = "the connection was freed", b""

    # Operations: called with the lock held; they raise what pyOpenSSL raises.

    def _handshake(self, is_server: bool, timeout: int | None) -> int:
        def handshake(ssl: SSL.Connection) -> int:
            if self._is_server is None:
                self._is_server = is_server
                ssl.set_accept_state() if is_server else ssl.set_connect_state()
            ssl.do_handshake()
            return 1

        deadline = _deadline(timeout)
        result = self._do(handshake, deadline, needs_output=True)
        # Our last flight must be sent before we say that the handshake is done.
        return self._do(self._need_flushed, deadline) if result > 0 else result

    def _shutdown(self, ssl: SSL.Connection) -> int:
        if not self._notified:
            ssl.shutdown()
            self._notified = True
        return int(bool(ssl.get_shutdown() & SSL.RECEIVED_SHUTDOWN))

    def _need_flushed(self, ssl: SSL.Connection) -> int:
        if not self._flush(ssl):
            raise SSL.WantWriteError
        if self._output_end:
            raise SSL.SysCallError(-1, self._output_end)
        return 1

    def _do(
        self,
        operation: Callable[[SSL.Connection], int],
        deadline: float | None,
        needs_output: bool = False,
        fatal: bool = True,
    ) -> int:
        """Run an operation to its end, waiting whenever it needs the peer.

        ``needs_output``: it cannot end well once nothing can be sent.  ``fatal``: a TLS error in it
        is the end of the connection.
        """
        while True:
            with self._lock:
                result, error, text = self._attempt(operation, needs_output, fatal)
                events = _io.WRITE if self._unsent else 0
            if error == SSL_ERROR_WANT_READ:
                events |= _io.READ
            elif error != SSL_ERROR_WANT_WRITE:
                break
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                break
            _io.wait_fd(self._fd, events, left_s, self._era)
        self._last.error, self._last.text = error, text
        return result

    def _attempt(
        self, operation: Callable[[SSL.Connection], int], needs_output: bool, fatal: bool
    ) -> tuple[int, int, str]:
        """Go as far as possible without waiting: (result, SSL_ERROR_*, text)."""
        while True:
            if self._fatal or self._ssl is None:
                return -1, SSL_ERROR_SSL, self._fatal
            ssl = self._ssl
            try:
                result = operation(ssl)
            except SSL.WantReadError:
                self._flush(ssl)
                if self._fill(ssl):
                    continue
                end = self._input_end or (self._output_end if needs_output else "")
                if end:
                    return -1, SSL_ERROR_SYSCALL, end
                return -1, SSL_ERROR_WANT_READ, "not in time: nothing came"
            except SSL.WantWriteError:
                return -1, SSL_ERROR_WANT_WRITE, "not in time: the peer does not read"
            except SSL.ZeroReturnError:
                return -1, SSL_ERROR_ZERO_RETURN, "the peer has closed"
            except SSL.SysCallError as error:
                return -1, SSL_ERROR_SYSCALL, str(error.args[-1])
            except SSL.Error as error:
                self._flush(ssl)  # the alert that tells the peer why
                text = _describe(error)
                if fatal and self._is_server is not None:
                    self._fatal = text
                return -1, SSL_ERROR_SSL, text
            return result, SSL_ERROR_NONE, ""

    def _fill(self, ssl: SSL.Connection) -> bool:
        """Hand OpenSSL what has arrived; False: nothing has."""
        if self._input_end:
            return False
        buff = bytearray(CHUNK_BYTES)
        try:
            count = _io.receive(self._fd, buff, CHUNK_BYTES, 0, self._era)
        except OSError as error:
            self._input_end = error.strerror or str(error)
            return False
        if count == 0:
            self._input_end = _TRUNCATED
        if not count:
            return False
        ssl.bio_write(memoryview(buff)[:count])
        return True

    def _flush(self, ssl: SSL.Connection) -> bool:
        """Hand the kernel what OpenSSL has made; False: the kernel does not take all now."""
        while True:
            if not self._unsent:
                try:
                    self._unsent = ssl.bio_read(CHUNK_BYTES)
                except SSL.WantReadError:
                    return True
            if self._output_end:
                self._unsent = b""
                continue
            try:
                count = _io.send(self._fd, self._unsent, len(self._unsent), 0, self._era)
            except OSError as error:
                self._output_end = error.strerror or str(error)
                continue
            if count is None:
                return False
            self._unsent = self._unsent[count:]


def _shutdown_again(ssl: SSL.Connection) -> int:
    return int(ssl.shutdown())


def _deadline(timeout: int | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout / 1000


def _describe(error: SSL.Error) -> str:
    """pyOpenSSL's list of (library, function, reason), as OpenSSL prints its first entry."""
    entries = error.args[0] if error.args else ()
    if not entries or not isinstance(entries, list | tuple):
        return "an error without a description"
    library, _, reason = entries[0]
    return f"{library}: {reason}"
