"""Connects to many peers at once, with callbacks, and sends a line to each that it reaches.

Run it (the peers: samples/chat.py, each with --id):

    python samples/async_connect.py PEER_ID [PEER_ID ...] [--line TEXT] [--mode auto|p2p|relay]

--encrypt: encrypt on the relay, too.  --timeout MS: for each connect.  --login HOST[:PORT]: the
cloud (default: $KKP2P_LOGIN, else that of ``kkp2p join``, else 127.0.0.1:3080).  --ca FILE: its
certificate must verify with this one.  --lan PORT: no cloud, search the LAN on that UDP port
(the document has 3549).  --desc N: the protocol that the peers shall expect.  Exit status 0:
every peer got its line; 1: not every one.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import dataclass, field

import gevent
from gevent.event import Event

import kkp2p_compat as kkp2p

CHAT_DESC = 4  # connect_desc: 1 http, 2 https (the document), 3 a file, 4 chat
MODES = {"auto": 0, "p2p": 1, "relay": 2}
WRITE_MS = 5000  # then a peer that reads nothing is given up


@dataclass
class Work:
    """func_param: what the callbacks share."""

    engine: kkp2p.engine_t
    line: bytes
    waiting: int  # peers whose result is not known yet
    failures: int = 0
    over: Event = field(default_factory=Event)

    def count(self, failed: bool) -> None:
        self.failures += failed
        self.waiting -= 1
        if not self.waiting:
            self.over.set()


def on_connect(result: int, channel: kkp2p.channel_t, work: Work) -> None:
    """It runs in a greenlet of its own, so it may wait without holding up the others."""
    if result < 0:  # as in C it is -1, whatever the reason, which is not in C
        print(f"{channel.peer_id}: connect error,ret:{result} ({kkp2p.error_text()}).")
        work.count(failed=True)
        return
    print(f"{channel.peer_id}: connected,fd:{channel.fd}, mode is {channel.transmit_mode}.")
    sended = 0
    while sended < len(work.line):
        wl = kkp2p.write(channel.fd, work.line[sended:], len(work.line) - sended, WRITE_MS)
        if wl <= 0:
            print(f"{channel.peer_id}: write error,ret:{wl}.")
            break
        sended += wl
    kkp2p.close_fd(channel.fd)  # what was written arrives
    kkp2p.close_channel(work.engine, channel.channel_id)
    work.count(failed=sended < len(work.line))


def run(engine: kkp2p.engine_t, options: argparse.Namespace) -> int:
    work = Work(engine, options.line.encode("utf-8", "replace") + b"\n", len(options.peer_ids))
    connect = kkp2p.lan_search if options.lan else kkp2p.connect
    ctx = kkp2p.connect_ctx_t()
    ctx.channel_type = kkp2p.KKP2P_TCP_CHANNEL
    ctx.connect_mode = MODES["p2p" if options.lan else options.mode]
    ctx.encrypt_data = int(options.encrypt)
    ctx.timeout = options.timeout
    ctx.connect_desc = options.desc
    ctx.func, ctx.func_param = on_connect, work
    for peer_id in options.peer_ids:
        ctx.peer_id = peer_id  # the SDK has copied what it needs of the last one
        if (ret := connect(engine, ctx, None)) < 0:  # it has not begun, so no callback comes
            print(f"{peer_id}: connect error,ret:{ret} ({kkp2p.error_text()}).")
            work.count(failed=True)
    work.over.wait()
    return work.failures


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=argv[0])
    parser.add_argument("peer_ids", nargs="+", metavar="peer_id")
    parser.add_argument("--line", default="hello")
    parser.add_argument("--desc", type=int, default=CHAT_DESC)
    parser.add_argument("--mode", choices=MODES, default="auto")
    parser.add_argument("--encrypt", action="store_true")
    parser.add_argument("--login")
    parser.add_argument("--ca")
    parser.add_argument("--lan", type=int, default=0, metavar="PORT")
    parser.add_argument("--timeout", type=int, default=5000, metavar="MS")
    options = parser.parse_args(argv[1:])
    conf = kkp2p.engine_conf_t(lan_search_port=options.lan, login_ca=options.ca)
    if not options.lan and kkp2p.set_login(conf, options.login) < 0:
        parser.error("--login is neither HOST[:PORT][#sha256:HEX] nor an invitation")
    # Python's own handler may raise in any greenlet.  (This call also gives the thread a hub:
    # without one the callbacks would run on a thread of the SDK.)
    gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    engine = kkp2p.engine_init(conf, 5000)
    if engine is None:
        print(f"engine_init error,ret:{kkp2p.error_no()} ({kkp2p.error_text()}).", file=sys.stderr)
        return 1
    try:
        return min(run(engine, options), 1)
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        return 1
    finally:
        kkp2p.engine_destroy(engine)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv))
