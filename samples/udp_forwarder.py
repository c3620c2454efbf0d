"""Forwards UDP channels to a service: the other side of start_proxy_udp and `kkp2p proxy --udp`.

Run it (a cloud first: `kkp2p account add PEER_ID`, `kkp2p cloud`), for a DNS server, say:

    python samples/udp_forwarder.py PEER_ID SECRET 127.0.0.1:53 [--login HOST[:PORT]]
    kkp2p proxy --udp 5353 PEER_ID --login HOST[:PORT]    # elsewhere; then dig @127.0.0.1 -p 5353

SECRET: - takes it from $KKP2P_SECRET, or asks.  --login: the cloud (default: $KKP2P_LOGIN, else
that of ``kkp2p join``, else 127.0.0.1:3080), also as HOST:PORT#sha256:HEX, which `kkp2p cloud`
prints.  --ca FILE: its certificate must verify with this one.  --lan PORT: on the local network,
without a cloud.  --desc N: only channels with this connect_desc.  End it with Ctrl-C.
"""

from __future__ import annotations

import argparse
import getpass
import os
import select
import signal
import socket as plain
import sys
import time

import gevent
from gevent import event, pool, socket

import kkp2p_compat as kkp2p

MAX_CHANNELS = 4096  # one for each client of the callers' proxies
IDLE_S = 180.0  # without datagrams either way; a proxy ends its own channels after 120 s
MAX_BYTES = 65_536


class Flow:
    """One channel, and the socket by which the service knows its client."""

    def __init__(self, channel: socket.socket, service: socket.socket) -> None:
        self.channel, self.service = channel, service
        self.used_at = time.monotonic()
        self.counts = {channel: 0, service: 0}  # of datagrams from each

    def run(self) -> None:
        """Until the channel ends, or is idle: one greenlet each way, none for a datagram."""
        sides = (self.channel, self.service), (self.service, self.channel)
        ways = [gevent.spawn(self.copy, *side) for side in sides]
        gevent.joinall(ways, count=1)
        gevent.killall(ways)

    def copy(self, source: socket.socket, sink: socket.socket) -> None:
        source.settimeout(IDLE_S)
        while time.monotonic() - self.used_at < IDLE_S:
            try:
                data = source.recv(MAX_BYTES)
                if not data and source is self.channel and self.has_ended():
                    return
                self.used_at = time.monotonic()
                self.counts[source] += 1
                sink.send(data)
            except TimeoutError:
                continue  # the other way may be in use
            except OSError as error:
                if self.has_ended():
                    return
                # The service does not listen (yet), or no datagram is so long: this one is lost.
                print(f"a datagram is lost: {error}.")

    def has_ended(self) -> bool:
        """The channel: nothing read from it was the end, and no empty datagram."""
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))


def forward(accepted: kkp2p.channel_t, target: tuple[str, int]) -> None:
    family = plain.AF_INET6 if ":" in target[0] else plain.AF_INET
    number = accepted.channel_id
    print(f"accept new channel,channel id:{number}, mode is {accepted.transmit_mode}.")
    try:
        with (
            socket.socket(fileno=os.dup(accepted.fd)) as channel,
            socket.socket(family, plain.SOCK_DGRAM) as service,
        ):
            service.connect(target)
            flow = Flow(channel, service)
            flow.run()
            there, back = flow.counts[channel], flow.counts[service]
            print(f"ended,channel id:{number}, {there} datagrams to the service, {back} from it.")
    except OSError as error:  # out of descriptors, or no route to the service
        print(f"not forwarded,channel id:{number}: {error}.")
    finally:
        kkp2p.close_fd(accepted.fd)


def make_conf(options: argparse.Namespace) -> kkp2p.engine_conf_t:
    conf = kkp2p.engine_conf_t(lan_search_port=options.lan, login_ca=options.ca)
    if not options.lan and kkp2p.set_login(conf, options.login) < 0:
        sys.exit("--login is neither HOST[:PORT][#sha256:HEX] nor an invitation")
    return conf


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=argv[0])
    for name in ("peer_id", "secret", "target", "--ca"):
        parser.add_argument(name)
    for name in ("--lan", "--desc"):
        parser.add_argument(name, type=int, default=0)
    parser.add_argument("--login")
    options = parser.parse_args(argv[1:])
    host, _, service = options.target.rpartition(":")
    target = host.strip("[]"), int(service)
    secret = options.secret
    if secret == "-" and not options.lan:
        secret = os.environ.get("KKP2P_SECRET") or getpass.getpass("Secret: ")
    engine = kkp2p.engine_init(make_conf(options), 5000)
    if engine is None:
        sys.exit(f"engine_init error,ret:{kkp2p.error_no()} ({kkp2p.error_text()}).")
    flows, exit_flag, me = pool.Pool(MAX_CHANNELS), event.Event(), options.peer_id
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, exit_flag.set)
    try:
        ret = kkp2p.join_lan(engine, me) if options.lan else kkp2p.join_net(engine, me, secret)
        problem = f"join error,ret:{ret} ({kkp2p.error_text()})."
        print(f"forwarding to {options.target} as {me}." if ret >= 0 else problem)
        while ret >= 0 and not exit_flag.is_set():
            channel = kkp2p.channel_t()
            if (ret := kkp2p.accept(engine, 250, channel)) <= 0:
                continue
            fits = (channel.channel_type, channel.connect_desc) == (1, options.desc)
            if fits and not flows.full():
                flows.spawn(forward, channel, target)
            else:
                kkp2p.close_fd(channel.fd)
        return int(ret < 0)
    finally:
        flows.kill()
        kkp2p.engine_destroy(engine)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(sys.argv))
