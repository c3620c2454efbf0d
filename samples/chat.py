"""Two people type lines to each other.

Run it (a cloud first: `kkp2p account add PEER_ID`, `kkp2p cloud`):

    python samples/chat.py --id PEER_ID                       waits for a call
    python samples/chat.py PEER_ID [--mode auto|p2p|relay]    calls, and needs no account

--secret S: by default $KKP2P_SECRET, or asked for.  --encrypt: encrypt on the relay, too.
--timeout MS: for the connect.  --login, --ca, --lan: as for send_file.py.  Ctrl-D ends your side.
"""

from __future__ import annotations

import argparse
import codecs
import getpass
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator

import gevent
from gevent.socket import wait_read

import kkp2p_compat as kkp2p

CHAT_DESC = 4  # connect_desc: 1 http, 2 https (the document), 3 a file, 4 chat
MODES = {"auto": 0, "p2p": 1, "relay": 2}
WRITE_MS = 10000  # then a peer that reads nothing is given up
MAX_LINE = 1000  # characters: a longer line is shown as several
LINE = re.compile(rf"[^\n]{{0,{MAX_LINE}}}\n|[^\n]{{{MAX_LINE}}}(?=[^\n])")
# What could control a terminal, break the line or reverse the text; tabs may stay.
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Lines:
    """Cuts a stream of UTF-8 into lines that are bounded and safe to show."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending = ""

    def take(self, data: bytes) -> Iterator[str]:
        """The lines that ``data`` completes.  No data: the end, and what is left is a line."""
        text = self.pending + self.decoder.decode(data, final=not data)
        self.pending = text if data or not text else f"{text}\n"
        while match := LINE.match(self.pending):
            self.pending = self.pending[match.end() :]
            yield CONTROLS.sub("", match[0])


def listen_to(fd: int) -> None:
    """Show the peer's lines until it ends its side, or is gone."""
    lines, buff = Lines(), bytearray(4096)
    while (count := kkp2p.read(fd, buff, len(buff), 60000)) >= 0:  # 0: nothing in that time
        for line in lines.take(bytes(buff[:count])) if count else []:
            print(f"> {line}")
    print(*(f"> {line}" for line in lines.take(b"")), "The other one has ended.", sep="\n")


def talk_to(fd: int) -> None:
    """Send what is typed, then half-close: the peer sees the end, and may still write."""
    lines, typed = Lines(), b"-"
    while typed:
        wait_read(0)  # the other greenlets run on meanwhile
        typed = os.read(0, 4096)
        data = "".join(f"{line}\n" for line in lines.take(typed)).encode()
        while data:
            if (wl := kkp2p.write(fd, data, len(data), WRITE_MS)) <= 0:
                raise ConnectionError("the other one is gone")
            data = data[wl:]
    with socket.socket(fileno=os.dup(fd)) as sock:  # closes the copy only
        sock.shutdown(socket.SHUT_WR)


def wait_for_call(engine: kkp2p.engine_t, channel: kkp2p.channel_t) -> int:
    while (ret := kkp2p.accept(engine, 1000, channel)) >= 0:
        if ret > 0 and channel.connect_desc == CHAT_DESC:
            break
        if ret > 0:  # it wants to speak something else
            kkp2p.close_fd(channel.fd)
    return ret


def turn_away(engine: kkp2p.engine_t) -> None:
    """Tell other callers that somebody is here already."""
    while wait_for_call(engine, channel := kkp2p.channel_t()) > 0:
        kkp2p.write(channel.fd, b"Busy.\n", 6, WRITE_MS)
        kkp2p.close_fd(channel.fd)


def run(engine: kkp2p.engine_t, options: argparse.Namespace) -> None:
    channel, lan, me = kkp2p.channel_t(), options.lan, options.id
    if options.peer_id is None:
        ret = kkp2p.join_lan(engine, me) if lan else kkp2p.join_net(engine, me, options.secret)
        if ret >= 0:
            print(f"Waiting as {me}.")
            ret = wait_for_call(engine, channel)
    else:
        mode, encrypt = MODES["p2p" if lan else options.mode], int(options.encrypt)
        ctx = kkp2p.connect_ctx_t(options.peer_id, 0, mode, encrypt, options.timeout, CHAT_DESC)
        ret = (kkp2p.lan_search if lan else kkp2p.connect)(engine, ctx, channel)
    if ret < 0:
        raise ConnectionError(f"error,ret:{ret} ({kkp2p.error_text()})")
    print(f"Connected, mode is {channel.transmit_mode}.")
    greenlets = [gevent.spawn(turn_away, engine), gevent.spawn(listen_to, channel.fd)]
    try:
        talk_to(channel.fd)
        greenlets[1].join()
    finally:
        gevent.killall(greenlets)
        kkp2p.close_fd(channel.fd)
        kkp2p.close_channel(engine, channel.channel_id)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=argv[0])
    parser.add_argument("peer_id", nargs="?")
    for name in ("--id", "--secret", "--ca"):
        parser.add_argument(name)
    parser.add_argument("--mode", choices=MODES, default="auto")
    parser.add_argument("--encrypt", action="store_true")
    parser.add_argument("--login")
    for name, default in (("--timeout", 5000), ("--lan", 0)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args(argv[1:])
    if (options.peer_id is None) == (options.id is None):
        parser.error("either PEER_ID or --id")
    conf = kkp2p.engine_conf_t(lan_search_port=(lan := options.lan), login_ca=options.ca)
    if not lan and kkp2p.set_login(conf, options.login) < 0:
        parser.error("--login is neither HOST[:PORT][#sha256:HEX] nor an invitation")
    if options.id and not (options.secret or lan):
        options.secret = os.environ.get("KKP2P_SECRET") or getpass.getpass("Secret: ")
    gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    if (engine := kkp2p.engine_init(conf, 5000)) is None:
        raise SystemExit(f"engine_init error,ret:{kkp2p.error_no()} ({kkp2p.error_text()}).")
    try:
        run(engine, options)
    except (OSError, KeyboardInterrupt) as error:
        raise SystemExit(f"{str(error) or 'interrupted'}.") from error
    finally:
        kkp2p.engine_destroy(engine)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    main(sys.argv)
