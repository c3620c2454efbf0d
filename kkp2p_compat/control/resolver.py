"""login_domain to addresses: a domain, an IP address, or several joined with ``|``.

A name is resolved by the system's resolver in a native thread, because that call cannot be
interrupted: the wait ends at the time-out, and what comes later is dropped.
"""

from __future__ import annotations

import itertools
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent import monkey

from .. import _codes, _nat64
from .._address import is_ip
from .._errors import KKP2PError
from .._io import Signal
from .._sentence import said

__all__ = ["MAX_ADDRESSES", "addresses_of", "look_up_name", "nat64s", "resolve", "split_domain"]

MAX_ADDRESSES = 16  # our choice: more login servers than any one peer has use for
NAT64_TIMEOUT_S = 2.0  # our choice: to find out whether the network has a NAT64

# Our choice: native threads that look up names at once, in the process.  None can be stopped, and
# servers name hosts as well: without a bound, names that nobody answers for would fill the process.
MAX_LOOKUPS = 64

_getaddrinfo = monkey.get_original("socket", "getaddrinfo")
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")

_free_places = list(range(MAX_LOOKUPS))  # of lookups; pop and append are atomic

# The name exists; not every system has these, and some have EAI_NONAME for them.
_NO_ADDRESS = [getattr(socket, name, None) for name in ("EAI_NODATA", "EAI_ADDRFAMILY")]


def split_domain(login_domain: str) -> list[str]:
    """The names and addresses in a login_domain; raises with -101 when it is malformed."""
    parts = [part.strip() for part in login_domain.split("|") if part.strip()]
    bad = [part for part in parts if not (is_ip(part) or _is_name(part))]
    if not parts or bad or len(parts) > MAX_ADDRESSES:
        raise KKP2PError(
            "login_domain {text!r} is not a domain or up to {count} IPs",
            _codes.KKP2P_ERROR_DOMAIN_PARAM_ERROR,
            text=login_domain[:100],
            count=MAX_ADDRESSES,
        )
    return parts


def _is_name(text: str) -> bool:
    # A name whose last label is a number is a mistyped address, never a name (RFC 1123 2.1).
    return (
        len(text) <= 253
        and _NAME.fullmatch(text) is not None
        and not text.rstrip(".").rpartition(".")[2].isdigit()
    )


def resolve(
    login_domain: str, timeout_s: float, is_left: Callable[[str], bool] = is_ip
) -> dict[str, str]:
    """Addresses of every part, in order, each with the part that has it.

    ``is_left``: of a name that somebody else will look up, which then stands for itself.

    Raises with -101, -102, -103 or -104 if there is none.  ``timeout_s`` is for all parts together.
    Called in a greenlet of the engine.
    """
    deadline = time.monotonic() + timeout_s
    addresses: dict[str, str] = {}
    problem: KKP2PError | None = None
    for part in split_domain(login_domain):
        try:
            left_s = max(0, deadline - time.monotonic())
            found = [part] if is_ip(part) or is_left(part) else look_up_name(part, left_s)
        except KKP2PError as error:
            problem = problem or error
        else:
            for address in found:
                addresses.setdefault(address, part)
    if problem is not None and not addresses:
        raise problem
    return dict(itertools.islice(addresses.items(), MAX_ADDRESSES))


def addresses_of(host: str, timeout_s: float) -> list[str]:
    """The addresses to dial for a host, at least one; raises as resolve does.

    For an IPv4 address without a route also those that a NAT64 has for it.
    """
    (host,) = split_domain(host)
    if not is_ip(host):
        return look_up_name(host, timeout_s)[:MAX_ADDRESSES]
    if ":" in host or _nat64.has_route(host):
        return [host]
    return [host, *(found.outward(host) for found in nat64s(timeout_s))]


def nat64s(timeout_s: float = NAT64_TIMEOUT_S) -> list[_nat64.Nat64]:
    """Those of this host's network, as its DNS64 tells; waits for 2 s at most."""
    try:
        answers = look_up_name(_nat64.DISCOVERY_NAME, min(timeout_s, NAT64_TIMEOUT_S))
        return _nat64.nat64s_of(answers)
    except KKP2PError:
        return []  # there is none: dialling the address says what is wrong


def look_up_name(name: str, timeout_s: float) -> list[str]:
    """All its addresses, at least one; raises as resolve does.  Called in a greenlet."""
    answer: list[Any] = []
    try:
        place = _free_places.pop()
    except IndexError:
        raise KKP2PError(
            "{name}: {count} names are being looked up already",
            _codes.KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT,
            name=name,
            count=MAX_LOOKUPS,
        ) from None
    done = Signal()

    def look_up() -> None:
        try:
            answer.append(_getaddrinfo(name, None, 0, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.append(error)
        finally:
            _free_places.append(place)
        done.set()

    try:
        monkey.get_original("_thread", "start_new_thread")(look_up, ())
    except RuntimeError as error:
        _free_places.append(place)
        done.close()
        raise KKP2PError(
            "{name}: no thread to look it up: {why}",
            _codes.KKP2P_ERROR_ANALYSIS_DOMAIN_FAILURE,
            name=name,
            why=said(error),
        ) from error
    try:
        with gevent.Timeout(timeout_s, False):
            done.wait()
    finally:
        done.close()
    if not answer:
        raise KKP2PError(
            "{name} did not resolve in {seconds:.3g} s",
            _codes.KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT,
            name=name,
            seconds=timeout_s,
        )
    if isinstance(answer[0], Exception):
        why = said(answer[0])
        raise KKP2PError("{name}: {why}", _code_of(answer[0]), name=name, why=why)
    if not answer[0]:
        raise KKP2PError("{name} has no address", _codes.KKP2P_ERROR_DOMAIN_NO_IP, name=name)
    return list(dict.fromkeys(str(entry[4][0]) for entry in answer[0]))


def _code_of(error: Exception) -> int:
    """Never -101: a name that is unknown may only be so because there is no network yet."""
    number = error.errno if isinstance(error, socket.gaierror) else None
    if number == socket.EAI_AGAIN:  # the resolver's own time-out
        return _codes.KKP2P_ERROR_ANALYSIS_DOMAIN_TIMEOUT
    if number in _NO_ADDRESS:
        return _codes.KKP2P_ERROR_DOMAIN_NO_IP
    return _codes.KKP2P_ERROR_ANALYSIS_DOMAIN_FAILURE
