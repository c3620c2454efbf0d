"""The sections of ``kkp2p netcheck`` as text: a heading, and under it one thing a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ._engines import show_address, show_ms
from ._fold import columns, fold
from ._verdict import HOW
from ._words import _, retold

__all__ = ["show", "show_section"]

WIDTH = 90  # columns of running text


def show(heading: str, lines: Sequence[str]) -> None:
    print("\n".join([heading, *("  " + line for line in lines)]), flush=True)


def show_section(name: str, fields: dict[str, Any]) -> None:
    _SECTIONS[name](fields)


def _cloud(fields: dict[str, Any]) -> None:
    lines = []
    if fields.get("tcp_s") is not None:
        lines.append(_("TCP answers after {time}").format(time=show_ms(fields["tcp_s"])))
    if fields.get("tls_s") is not None:
        lines.append(_("TLS takes {time} more").format(time=show_ms(fields["tls_s"])))
    if fields["problem"]:
        lines.append(_("not reached: {problem}").format(problem=retold(fields["problem"])))
        lines.append(_("(--login HOST:PORT or KKP2P_LOGIN names another cloud)"))
    address = show_address([fields["host"], fields["port"]])
    show(_("The cloud, {address}").format(address=address), lines)


def _addresses(fields: dict[str, Any]) -> None:
    outside = ", ".join(map(show_address, fields["outside"]))
    show(
        _("This host's addresses"),
        [
            f"IPv4: {', '.join(fields['ipv4']) or _('none')}",
            f"IPv6: {', '.join(fields['ipv6']) or _('none')}",
            _("seen from outside: {addresses}").format(addresses=outside or _("not known")),
        ],
    )


def _nat(fields: dict[str, Any]) -> None:
    text = retold(fields["text"])
    if not fields["asked"]:
        text = _("not known: no STUN server is asked (--stun names some)")
    elif not fields["answered"]:
        text = _("not known: no answer by UDP, which may be blocked")
    show(_("What is in front of it"), [text])


def _port_mapping(fields: dict[str, Any]) -> None:
    if not fields["needed"]:
        text = _("not asked for: no NAT is known")
    elif fields["address"]:
        address = show_address(fields["address"])
        text = _("{address}, by {method}").format(address=address, method=fields["method"])
    else:
        text = _("none: {problem}").format(problem=retold(fields["problem"]))
    show(_("Port mapping"), [text])


def _udp(fields: dict[str, Any]) -> None:
    for server in fields["servers"]:
        heading = _("UDP to {address}").format(address=show_address(server["server"]))
        if server["problem"]:
            show(heading, [retold(server["problem"])])
        elif not server["answered"]:
            text = _("blocked, or no server there: none of {sent} answered")
            show(heading, [text.format_map(server)])
        else:
            trips = {name: show_ms(time) for name, time in server["round_trip_s"].items()}
            text = _("round trip: least {least}, median {median}, most {most}")
            answered = _("{answered} of {sent} answered").format_map(server)
            show(heading, [answered, text.format_map(trips)])


def _lifetime(fields: dict[str, Any]) -> None:
    lived_s, longest_s = fields["lived_s"], fields["longest_s"]
    if lived_s is None:
        text = _("not known: no server can test it")
    else:
        text = _("still open after {lived_s:.0f} s (tested up to {longest_s:.0f} s)")
        text = text.format(lived_s=lived_s, longest_s=longest_s)
    show(_("An idle binding of the NAT"), [text])


def _summary(fields: dict[str, Any]) -> None:
    reach = fields["reach"]
    if reach:
        width = max(map(columns, reach))
        lines = [
            f"{name}{' ' * (width - columns(name))}  {_(HOW[kind])}" for name, kind in reach.items()
        ]
        show(_("How peers reach this host, by what is in front of them"), lines)
    show(_("In short"), fold(fields["text"], WIDTH))


_SECTIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "cloud": _cloud,
    "addresses": _addresses,
    "nat": _nat,
    "port_mapping": _port_mapping,
    "udp": _udp,
    "lifetime": _lifetime,
    "summary": _summary,
}
