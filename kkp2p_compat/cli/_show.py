"""The sections of ``kkp2p netcheck`` as text: a heading, and under it one thing a line."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from ._engines import show_address, show_ms
from ._verdict import HOW

__all__ = ["show", "show_section"]

WIDTH = 90  # columns of running text


def show(heading: str, lines: Sequence[str]) -> None:
    print("\n".join([heading, *("  " + line for line in lines)]), flush=True)


def show_section(name: str, fields: dict[str, Any]) -> None:
    _SECTIONS[name](fields)


def _cloud(fields: dict[str, Any]) -> None:
    lines = []
    if fields.get("tcp_s") is not None:
        lines.append(f"TCP answers after {show_ms(fields['tcp_s'])}")
    if fields.get("tls_s") is not None:
        lines.append(f"TLS takes {show_ms(fields['tls_s'])} more")
    if fields["problem"]:
        lines.append(f"not reached: {fields['problem']}")
        lines.append("(--login HOST:PORT or KKP2P_LOGIN names another cloud)")
    show(f"The cloud, {show_address([fields['host'], fields['port']])}", lines)


def _addresses(fields: dict[str, Any]) -> None:
    outside = ", ".join(map(show_address, fields["outside"]))
    show(
        "This host's addresses",
        [
            f"IPv4: {', '.join(fields['ipv4']) or 'none'}",
            f"IPv6: {', '.join(fields['ipv6']) or 'none'}",
            f"seen from outside: {outside or 'not known'}",
        ],
    )


def _nat(fields: dict[str, Any]) -> None:
    text = fields["text"]
    if not fields["asked"]:
        text = "not known: no STUN server is asked (--stun names some)"
    elif not fields["answered"]:
        text = "not known: no answer by UDP, which may be blocked"
    show("What is in front of it", [text])


def _port_mapping(fields: dict[str, Any]) -> None:
    if not fields["needed"]:
        show("Port mapping", ["not asked for: no NAT is known"])
    elif fields["address"]:
        show("Port mapping", [f"{show_address(fields['address'])}, by {fields['method']}"])
    else:
        show("Port mapping", [f"none: {fields['problem']}"])


def _udp(fields: dict[str, Any]) -> None:
    for server in fields["servers"]:
        heading = f"UDP to {show_address(server['server'])}"
        if server["problem"]:
            show(heading, [server["problem"]])
        elif not server["answered"]:
            show(heading, [f"blocked, or no server there: none of {server['sent']} answered"])
        else:
            trips = server["round_trip_s"]
            show(
                heading,
                [
                    f"{server['answered']} of {server['sent']} answered",
                    f"round trip: least {show_ms(trips['least'])}, median "
                    f"{show_ms(trips['median'])}, most {show_ms(trips['most'])}",
                ],
            )


def _lifetime(fields: dict[str, Any]) -> None:
    lived_s, longest_s = fields["lived_s"], fields["longest_s"]
    if lived_s is None:
        text = "not known: no server can test it"
    else:
        text = f"still open after {lived_s:.0f} s (tested up to {longest_s:.0f} s)"
    show("An idle binding of the NAT", [text])


def _summary(fields: dict[str, Any]) -> None:
    reach = fields["reach"]
    if reach:
        width = max(map(len, reach))
        lines = [f"{name:<{width}}  {HOW[kind]}" for name, kind in reach.items()]
        show("How peers reach this host, by what is in front of them", lines)
    show("In short", textwrap.wrap(fields["text"], WIDTH))


_SECTIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "cloud": _cloud,
    "addresses": _addresses,
    "nat": _nat,
    "port_mapping": _port_mapping,
    "udp": _udp,
    "lifetime": _lifetime,
    "summary": _summary,
}
