"""What a companion does: it takes the library's calls, and hands over channels.

Each call runs in a greenlet of its own; the engine has its thread, as in every program.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket as gsocket
from gevent.lock import RLock

import kkp2p_compat as kkp2p

from .._errors import BadPacket
from .._io import shut_down
from ..engine.channels.descriptors import DESCRIPTORS
from ..engine.runtime.log import FLUSH_S, set_log_callback
from ..engine.runtime.thread import native_thread
from .wire import MAX_PACKET_BYTES, Answer, Call, Request

__all__ = ["Companion"]

MAX_FDS = 2  # that come with a request
MAX_LINE_BYTES = 16384  # of the log

Result = tuple[Answer, list[int]]  # the descriptors go with the answer


class Companion:
    """``run`` until the program ends or destroys the engine; then ``close``.

    ``control``: gevent's socket.
    """

    def __init__(self, control: Any) -> None:
        self._control = control
        self._events: Any = None  # gevent's: for the ends of asynchronous connects
        self._events_lock = RLock()
        self._engine: Any = None  # before INIT: what the API refuses
        self._log: socket.socket | None = None  # to the program's callback

    def run(self) -> None:
        while True:
            packet, fds = self._receive()
            if not packet:
                return
            try:
                request = Request.parse(packet)
            except BadPacket as error:
                print(f"kkp2p: {error}", file=sys.stderr)
                _close_all(fds)
                continue
            if request.call in (Call.CLOSE_CHANNEL, Call.LINGER):
                self._end_channel(request, fds)
            elif fds:
                gevent.spawn(self._serve, request, fds.pop(0), fds)
                gevent.sleep(0)  # in their order, as far as they do not wait

    def close(self) -> None:
        """What the program has written still goes out."""
        if self._engine is not None:
            kkp2p.engine_destroy(self._engine)
        if self._events is not None:
            gevent.sleep(0)  # whom that has interrupted
            self._events.close()
        self._set_log(None)()

    def _receive(self) -> tuple[bytes, list[int]]:
        room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        try:
            packet, rights, *_ = self._control.recvmsg(
                MAX_PACKET_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:  # the program has ended with an answer unread
            return b"", []
        fds = array.array("i")
        for _, _, data in rights:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return packet, fds.tolist()

    def _end_channel(self, request: Request, fds: list[int]) -> None:
        if self._engine is None:
            _close_all(fds)
            return
        if request.call is Call.CLOSE_CHANNEL:
            kkp2p.close_channel(self._engine, request.tag)
        for fd in fds:
            self._engine.linger(fd)

    def _serve(self, request: Request, answer_fd: int, fds: list[int]) -> None:
        with socket.socket(fileno=answer_fd) as sock:
            answer, rights = self._handle(request, fds)
            _note(answer)
            _hand_over(sock.sendmsg, answer, rights)
        _close_all(fds)
        if request.call is Call.DESTROY:
            shut_down(self._control.fileno())  # ``run`` returns

    # What is asked for.

    def _handle(self, request: Request, fds: list[int]) -> Result:
        """``fds``: those that are left in it are closed."""
        engine, level = self._engine, request.numbers[0]
        text, other_text = request.texts
        answer, rights = Answer(), list[int]()
        match request.call:
            case Call.INIT:
                return self._init(request, fds)
            case Call.DESTROY:
                # Calls that come too late are answered, and no news.
                logging.getLogger(kkp2p.__name__).disabled = True
                kkp2p.engine_destroy(engine)
            case Call.ENGINE_LEVEL:
                kkp2p.switch_log_level(engine, level)
            case Call.LEVEL:
                kkp2p.log_switch_level(level)
            case Call.LOG_TO | Call.LOG_END:
                kkp2p.log_switch_level(level)
                native_thread(self._set_log(fds.pop() if fds else None))
            case Call.DOMAINIP:
                hosts: list[str] = []
                answer.result = kkp2p.get_domainip(engine, hosts)
                answer.text = "\n".join(hosts)
            case Call.JOIN_NET:
                answer.result = kkp2p.join_net(engine, text, other_text)  # type: ignore[arg-type]
            case Call.JOIN_LAN:
                answer.result = kkp2p.join_lan(engine, text)  # type: ignore[arg-type]
            case Call.ACCEPT:
                channel = kkp2p.channel_t()
                _set_channel(answer, rights, kkp2p.accept(engine, 0, channel), channel)
            case Call.CONNECT | Call.LAN_SEARCH:
                self._connect(request, answer, rights)
            case Call.START_PROXY | Call.START_PROXY_UDP:
                self._start_proxy(request, answer)
            case Call.STOP_PROXY:
                kkp2p.stop_proxy(engine, request.tag)
        return answer, rights

    def _init(self, request: Request, fds: list[int]) -> Result:
        port, lan_port, no_upnp, log_size, pool, timeout = request.numbers
        domain, log_path = (None if text is None else os.fsdecode(text) for text in request.texts)
        kkp2p.log_switch_level(request.tag)
        self._set_log(fds.pop() if fds else None)
        conf = kkp2p.engine_conf_t(
            domain,
            port,
            lan_port,
            no_upnp,
            log_path,
            log_size,
            pool,
            login_ca=os.environ.get("KKP2P_LOGIN_CA") or None,
        )
        login = os.environ.get("KKP2P_LOGIN")
        if domain is not None and login and kkp2p.set_login(conf, login) < 0:
            return Answer(kkp2p.error_no()), []
        self._engine = kkp2p.engine_init(conf, timeout)
        if self._engine is None:
            return Answer(kkp2p.error_no()), []
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            return Answer(kkp2p.KKP2P_ERROR_SOCKET_FD_OVERFLOW), []
        kind = ours.family, ours.type, ours.proto
        self._events = gsocket.socket(*kind, fileno=ours.detach())
        fds.append(theirs.detach())
        return Answer(), [kkp2p.listen_fd(self._engine), fds[-1]]

    def _connect(self, request: Request, answer: Answer, rights: list[int]) -> None:
        ctx = _context(request)
        if request.tag:
            ctx.func, ctx.func_param = self._connected, request.tag
        channel = kkp2p.channel_t()
        call = kkp2p.connect if request.call is Call.CONNECT else kkp2p.lan_search
        result = call(self._engine, ctx, channel)
        if request.tag:
            answer.result = result
        else:
            _set_channel(answer, rights, result, channel)

    def _connected(self, result: int, channel: kkp2p.channel_t, tag: int) -> None:
        """Runs in a greenlet, which may wait while the program's callbacks take their time."""
        answer, rights = Answer(tag=tag), list[int]()
        _set_channel(answer, rights, result, channel)
        _note(answer)
        with self._events_lock:
            _hand_over(self._events.sendmsg, answer, rights)

    def _start_proxy(self, request: Request, answer: Answer) -> None:
        proxy_id = ctypes.c_uint32()
        tcp = request.call is Call.START_PROXY
        call = kkp2p.start_proxy if tcp else kkp2p.start_proxy_udp
        ip, port, ctx = request.texts[1], request.numbers[5], _context(request)
        answer.result = call(self._engine, ip, port, ctx, proxy_id)  # type: ignore[arg-type]
        answer.number = proxy_id.value

    def _set_log(self, fd: int | None) -> Callable[[], None]:
        """To the program's callback; None: to the file.

        Returns what waits for the lines for the callback before, and lets that end.
        """
        before = self._log
        self._log = None if fd is None else socket.socket(fileno=fd)
        runner = set_log_callback(None if fd is None else _log_line, self._log)

        def end() -> None:
            if runner is not None:
                runner.join(FLUSH_S)
            if before is not None:
                before.close()

        return end


def _context(request: Request) -> kkp2p.connect_ctx_t:
    kind, mode, encrypt, timeout, desc, _ = request.numbers
    peer_id = request.texts[0]
    return kkp2p.connect_ctx_t(peer_id, kind, mode, encrypt, timeout, desc)  # type: ignore[arg-type]


def _set_channel(answer: Answer, rights: list[int], result: int, channel: kkp2p.channel_t) -> None:
    answer.result = result
    if channel.fd >= 0:
        answer.channel = channel
        rights.append(channel.fd)


def _note(answer: Answer) -> None:
    """What this greenlet's last call says of errors."""
    answer.error = kkp2p.error_no()
    if answer.error:
        answer.text = kkp2p.error_text()
    elif answer.result < 0:  # one that the API has not seen
        answer.error, answer.text = answer.result, "this process is out of descriptors"


def _hand_over(send: Callable[..., object], answer: Answer, rights: list[int]) -> None:
    """Answer, with descriptors; that of a channel is the program's from then on."""
    given = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))]
    channel = answer.channel
    try:
        send([answer.pack()], given if rights else [])
    except OSError:  # the caller is gone
        if channel is not None:
            kkp2p.abort_fd(channel.fd)
        return
    if channel is not None:
        DESCRIPTORS.lend(channel.fd)


def _log_line(text: str, length: int, sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the program's end is closed
        sock.sendall(text.encode(errors="backslashreplace")[:MAX_LINE_BYTES])


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
