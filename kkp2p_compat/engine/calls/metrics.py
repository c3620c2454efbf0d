"""What Prometheus is told of an engine.  docs/operations.rst says what each name means.

The text is made here, of a few lines' format: a peer needs no library for it, of which its program
may have another version.  Nothing is counted for it on the way of the bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ... import _codes
from ..._version import __version__
from ...control.client import CloudClient
from ...control.wire import CALL_PATHS
from ..channels.acceptor import Acceptor
from ..channels.kinds import Channel
from ..links.link_table import LinkTable
from ..links.traffic import Traffic
from .dialer import Dialer

__all__ = ["metrics_text"]

_Labels = tuple[str, ...]
_Values = Mapping[Any, float]  # by the labels' values, a tuple of texts

_OK = "ok"
_OUTCOMES = {
    _codes.KKP2P_SUCCESS: _OK,
    _codes.KKP2P_ERROR_CONN_DISCONNECT: "cloud",
    _codes.KKP2P_ERROR_OTHER_DISCONNECT: "refused",
    _codes.KKP2P_ERROR_CONNECT_TIMEOUT: "timeout",
    _codes.KKP2P_ERROR_INVALID_PEER_ID: "unknown-peer",
    _codes.KKP2P_ERROR_INVALID_PEER_KEY: "wrong-key",
}
_OTHER = "failed"
_SENT, _RECEIVED = "sent", "received"
_CALLED, _ACCEPTED = "called", "accepted"
_EACH_PATH = {(path,): 0 for path in CALL_PATHS}


def metrics_text(
    client: CloudClient | None,
    dialer: Dialer,
    acceptor: Acceptor,
    channels: Iterable[Channel],
    links: LinkTable,
) -> str:
    """In Prometheus's text format, version 0.0.4."""
    lines = [*_login(client)]
    lines += _calls(dialer, acceptor)
    lines += _channels(channels, links)
    lines += _traffic(links.look_at_traffic())
    return "\n".join(lines) + "\n"


def _login(client: CloudClient | None) -> Iterator[str]:
    peer_id = "" if client is None else client.peer_id
    about = {(__version__, peer_id): 1}
    yield from _family("info", "gauge", "This engine.", ("version", "peer"), about)
    if client is not None:
        yield from _single("online", "gauge", "1: logged in at the cloud.", int(client.online))
        yield from _single("logins_total", "counter", "Logins, the first included.", client.logins)
        text = "Logins that were lost."
        yield from _single("logins_lost_total", "counter", text, client.logins_lost)


def _calls(dialer: Dialer, acceptor: Acceptor) -> Iterator[str]:
    made: Counter[_Labels] = Counter({(_OK, path): 0 for path in CALL_PATHS})
    made.update({(outcome, ""): 0 for outcome in (*_OUTCOMES.values(), _OTHER) if outcome != _OK})
    for (code, path), count in dialer.outcomes.items():
        made[_OUTCOMES.get(code, _OTHER), path] += count
    text = "Channels that were asked for, by how that came out."
    yield from _family("calls_total", "counter", text, ("outcome", "path"), made)
    full_name = "call_seconds"
    text = "How long it took until they were there."
    yield from _head(full_name, "summary", text)
    for path in CALL_PATHS:
        seconds = dialer.seconds.get(path, 0.0)
        yield _sample(f"{full_name}_sum", ("path",), (path,), seconds)
        yield _sample(f"{full_name}_count", ("path",), (path,), made[_OK, path])
    text = "Channels that peers have opened."
    yield from _single("accepted_total", "counter", text, acceptor.accepted)
    text = "Channels of peers that had no place in the queue of accept."
    yield from _single("refused_total", "counter", text, acceptor.refused)


def _channels(channels: Iterable[Channel], links: LinkTable) -> Iterator[str]:
    now: Counter[_Labels] = Counter(
        {(path, end): 0 for path in CALL_PATHS for end in (_CALLED, _ACCEPTED)}
    )
    for channel in channels:
        stream = channel.stream
        now[stream.path_word, _ACCEPTED if stream.set_up_s is None else _CALLED] += 1
    text = "The program's channels now."
    yield from _family("channels", "gauge", text, ("path", "side"), now)
    paths = Counter((link.paths.kind.word,) for link in links)
    text = "Connections with peers now, each of which may carry many channels."
    yield from _family("connections", "gauge", text, ("path",), {**_EACH_PATH, **paths})


def _traffic(traffic: Mapping[str, Traffic]) -> Iterator[str]:
    by_path = {path: traffic.get(path, Traffic()) for path in CALL_PATHS}
    moved = {
        key: count
        for path, each in by_path.items()
        for key, count in (((path, _SENT), each.sent), ((path, _RECEIVED), each.received))
    }
    text = "On connections with peers, with headers and what was sent again."
    yield from _family("bytes_total", "counter", text, ("path", "direction"), moved)
    packets = {(path,): each.packets for path, each in by_path.items()}
    yield from _family("packets_total", "counter", "Packets sent.", ("path",), packets)
    lost = {(path,): each.lost for path, each in by_path.items()}
    text = "Packets sent that were lost."
    yield from _family("packets_lost_total", "counter", text, ("path",), lost)


# The format.


def _single(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    return _family(name, kind, text, (), {(): value})


def _family(name: str, kind: str, text: str, labels: _Labels, values: _Values) -> Iterator[str]:
    yield from _head(name, kind, text)
    for key, value in values.items():
        yield _sample(name, labels, key, value)


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP kkp2p_engine_{name} {text}", f"# TYPE kkp2p_engine_{name} {kind}"


def _sample(name: str, labels: _Labels, key: _Labels, value: float) -> str:
    pairs = ",".join(f'{label}="{_escaped(word)}"' for label, word in zip(labels, key, strict=True))
    return f"kkp2p_engine_{name}{{{pairs}}} {value}" if pairs else f"kkp2p_engine_{name} {value}"


def _escaped(text: str) -> str:
    """A peer id may have any printable character."""
    return text.replace("\\", r"\\").replace('"', r"\"")
