"""Write the tables of docs/performance.rst, and draw its pictures: ``python docs/figures.py``.

All figures are those of docs/performance.json, which ``python -m benchmarks p2p --json
docs/performance.json`` has measured, and ``compare`` in the same way.  A table stands between
``.. figures: ROW`` and ``.. end``; ``aims`` is the one of all aims.  tests/test_docs.py sees to it
that the page and the pictures are up to date.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pictures import Drawing

PAGE = Path(__file__).with_name("performance.rst")
FIGURES = PAGE.with_suffix(".json")
OURS, RELAY, SEALED, LAN = "kkp2p", "kkp2p relay", "kkp2p relay, encrypted", "kkp2p LAN"
FLOOR, BBR, CUBIC, SDK = "floor", "TCP BBR", "TCP CUBIC", "C SDK"
RATE = "one channel, MB/s"
SENDING, RECEIVING = "CPU s/GB, sending", "CPU s/GB, receiving"
P50, P99 = "one byte there and back, p50 us", "one byte there and back, p99 us"
CALL_CPU, CONNECT = "CPU ms a call, all sides", "connect, p50 ms"
NOTES = ("disturbed", "emulator")

# What the C SDK was measured to carry, elsewhere, in MB/s.
LINKS = {
    "100M-10ms": "6.2",
    "100M-25ms": "1.2",
    "100M-100ms": "under 0.6",
    "20M-40ms": "0.6",
    "1G-5ms": "10.2",
    "1G-1ms": "-",
    "100M-50ms": "-",
    "100M-20ms": "-",
}


@cache
def rows() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FIGURES.read_text())
    return found


def values(row: str, figure: str, side: str = OURS) -> list[float]:
    found: list[float] = rows()[row]["measured"][side][figure]
    return found


def ratios(row: str, figure: str, side: str, other: str) -> list[float]:
    """Of the turns that followed each other."""
    pairs = zip(values(row, figure, side), values(row, figure, other), strict=True)
    return [one / base for one, base in pairs if base]


def spread(measured: Sequence[float]) -> str:
    if not measured:
        return "-"
    if len(measured) == 1:
        return f"{_digits(measured[0])} (1 turn)"
    middle, least, most = statistics.median(measured), min(measured), max(measured)
    return f"{_digits(middle)} ({_digits(least)} to {_digits(most)})"


def _digits(value: float) -> str:
    """Two digits after the point, and fewer of greater figures."""
    return f"{value:,.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


# The tables.


def machines() -> str:
    found = sorted({row["machine"] for row in rows().values()})
    return f"The machine: {'; '.join(found)}."


class Aim(NamedTuple):
    what: str
    row: str
    figure: str
    side: str = OURS
    other: str = ""
    """What the figure is divided by: the same one of that side."""
    before: str = "-"
    """Before the work towards the aims, as it was measured then."""
    aim: str = "-"


LIKE_BBR = "0.96 to 1.29", "no lower"
# The aims, and what was measured before the work towards them began.
AIMS = [
    Aim("One byte there and back: p50 of the floor's", "trip", P50, OURS, FLOOR, "2.4 to 5", "1.5"),
    Aim("the same, p99", "trip", P99, OURS, FLOOR, "3", "2"),
    Aim("the same by the plain relay, p50 us", "relay-trip", P50, RELAY, "", "130", "100"),
    Aim(
        "One channel, of what it was before",
        "compare channel",
        RATE,
        f"{OURS} now",
        f"{OURS} then",
        "1",
        "1.5",
    ),
    Aim(
        "100 channels at once, of one",
        "many",
        "100 channels, of one channel's MB/s",
        before="0.6",
        aim="0.9",
    ),
    Aim(
        "1,000 channels at once, of one",
        "many",
        "1000 channels, of one channel's MB/s",
        before="0.5",
        aim="0.8",
    ),
    Aim("CPU s/GB at 100 Mbit/s, 10 ms: sending", "100M-10ms", SENDING, before="17 to 22", aim="9"),
    Aim("the same, receiving", "100M-10ms", RECEIVING, before="30 to 44", aim="12"),
    Aim("1 Gbit/s, 1 ms, of kernel BBR", "1G-1ms", RATE, OURS, BBR, "0.5 to 0.8", "0.95"),
    Aim("100 Mbit/s, 10 ms, of BBR", "100M-10ms", RATE, OURS, BBR, *LIKE_BBR),
    Aim("100 Mbit/s, 25 ms, 1 %, of BBR", "100M-25ms", RATE, OURS, BBR, *LIKE_BBR),
    Aim("100 Mbit/s, 100 ms, 0.1 %, of BBR", "100M-100ms", RATE, OURS, BBR, *LIKE_BBR),
    Aim("20 Mbit/s, 40 ms, 3 %, of BBR", "20M-40ms", RATE, OURS, BBR, *LIKE_BBR),
    Aim("1 Gbit/s, 5 ms, of BBR", "1G-5ms", RATE, OURS, BBR, *LIKE_BBR),
    Aim("100 Mbit/s, 50 ms, 0.1 %, MB/s", "100M-50ms", RATE, before="10.5", aim="no lower"),
    Aim("100 Mbit/s, 20 ms, 5 %, MB/s", "100M-20ms", RATE, before="10.8", aim="no lower"),
    Aim("CPU ms of a p2p call, all sides", "call", CALL_CPU, before="23", aim="10"),
    Aim("the same, of 500 at once", "calls", CALL_CPU, before="70", aim="15"),
    Aim("500 p2p calls at once, p50 ms", "calls", CONNECT, before="20,000", aim="3,000"),
    Aim("calls of these that failed", "calls", "calls that failed", before="0", aim="0"),
    Aim(
        "Short HTTP connections a second, p2p",
        "proxied",
        "short connections a second, 32 at once",
        before="1,145",
        aim="3,000",
    ),
    Aim("LAN search, cold, ms", "lan", "LAN search, cold, p50 ms", LAN, "", "18 to 34", "5"),
    Aim("the same, warm, ms", "lan", "LAN search, warm, p50 ms", LAN, "", "1.1", "1"),
    Aim("``import kkp2p_compat``, ms", "start", "import, ms", before="210", aim="120"),
    Aim(
        "Memory with one idle engine, MB",
        "start",
        "memory with one idle engine, MB",
        before="47",
        aim="35",
    ),
]


def aims() -> str:
    head = ("What", "before", "now", "aim", "row")
    return _table(head, [(*_aim(aim), f"``{aim.row}``") for aim in AIMS])


def _aim(aim: Aim) -> tuple[str, str, str, str]:
    if aim.row not in rows():
        now = "not measured"
    elif aim.other:
        now = spread(ratios(aim.row, aim.figure, aim.side, aim.other))
    else:
        now = spread(values(aim.row, aim.figure, aim.side))
    return aim.what, aim.before, now, aim.aim


def links() -> str:
    head = ("Link; in MB/s", "here", BBR, CUBIC, "of BBR", "CPU s/GB: sending, receiving", SDK)
    measured = [name for name in LINKS if name in rows()]
    lines = [_link(name, LINKS[name]) for name in measured]
    return "\n\n".join([_table(head, lines), *(_source(rows()[name]) for name in measured)])


def _link(name: str, sdk: str) -> tuple[str, ...]:
    rates = [spread(values(name, RATE, side)) for side in (OURS, BBR, CUBIC)]
    cpu = [_digits(statistics.median(values(name, figure))) for figure in (SENDING, RECEIVING)]
    what = rows()[name]["title"].removeprefix("one channel over ")
    return (what, *rates, spread(ratios(name, RATE, OURS, BBR)), ", ".join(cpu), sdk)


def row(name: str) -> str:
    """Each figure of a row: of all sides, and how the first of ours compares."""
    if name not in rows():
        return f"The row ``{name}`` has not been measured yet."
    found = rows()[name]
    sides = list(found["measured"])
    pairs = [pair for pair in found["pairs"] if pair[0] == found["pairs"][0][0]]
    head = (found["title"], *sides, *(f"of {other}" for _, other in pairs))
    lines = [
        (
            figure,
            *(spread(values(name, figure, side)) for side in sides),
            *(spread(ratios(name, figure, *pair)) for pair in pairs),
        )
        for figure in found["measured"][sides[0]]
        if not figure.startswith(NOTES)
    ]
    return f"{_table(head, lines)}\n\n{_source(found)}"


def _source(found: dict[str, Any]) -> str:
    return (
        f"``{found['command']}``, {found['date']}, revision {found['revision']},"
        f" {found['load']['rounds']} rounds."
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)

    def text(cells: Sequence[str]) -> str:
        return "  ".join(map(str.ljust, cells, widths)).rstrip()

    return "\n".join([rule, text(head), rule, *map(text, lines), rule])


# The page.


def page() -> str:
    """As it should be."""
    return re.sub(
        r"(\.\. figures: ([^\n]+)\n\n).*?(\.\. end\n)",
        lambda found: f"{found[1]}{_tables(found[2])}\n\n{found[3]}",
        PAGE.read_text(),
        flags=re.DOTALL,
    )


def _tables(name: str) -> str:
    written = {"machine": machines, "aims": aims, "links": links}.get(name)
    return written() if written else row(name)


# The pictures.

BAR, BAR_HEIGHT, LABEL_WIDTH, SIDE_WIDTH = 420, 18, 250, 130
FILLS = {OURS: "#3b6ea5", RELAY: "#3b6ea5", SEALED: "#7fa3cc", SDK: "#e0a458"}


class Bar(NamedTuple):
    label: str
    value: float
    text: str


def _draw(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Bars in groups; the longest of each group has the whole width."""
    height = 50 + sum(BAR_HEIGHT * len(bars) + 12 for _, bars in groups)
    drawing = Drawing(LABEL_WIDTH + SIDE_WIDTH + BAR + 150, height, title)
    drawing.text(20, 26, title, 14, "start")
    y = 44
    for label, bars in groups:
        drawing.text(20, y + 13, label, anchor="start")
        longest = max(bar.value for bar in bars)
        for bar in bars:
            left = LABEL_WIDTH + SIDE_WIDTH
            drawing.text(left - 8, y + 13, bar.label, 11, "end")
            width = max(round(BAR * bar.value / longest), 1)
            drawing.box(left, y + 2, width, BAR_HEIGHT - 4, FILLS.get(bar.label, "#c9d2dc"))
            drawing.text(left + width + 6, y + 13, bar.text, 11, "start")
            y += BAR_HEIGHT
        y += 12
    return drawing.svg


def _bar(side: str, row: str, figure: str) -> Bar:
    measured = values(row, figure, side)
    return Bar(side, statistics.median(measured), spread(measured))


def draw_links() -> str:
    groups = [
        (
            rows()[name]["title"].removeprefix("one channel over ").partition(", queue")[0],
            [*(_bar(side, name, RATE) for side in (OURS, BBR, CUBIC)), *_bars_of_sdk(name)],
        )
        for name in LINKS
        if name in rows()
    ]
    return _draw("One channel over emulated links, MB/s: median (least to greatest)", groups)


def _bars_of_sdk(name: str) -> list[Bar]:
    """None where it was not measured."""
    rate = LINKS[name].rpartition(" ")[2]
    return [Bar(SDK, float(rate), LINKS[name])] if rate != "-" else []


def draw_trips() -> str:
    groups = [
        (words, [_bar(side, name, figure) for name, side in TRIPS])
        for words, figure in (("p50", P50), ("p99", P99))
    ]
    return _draw("One byte there and back on a cable, us: median (least to greatest)", groups)


TRIPS = (
    ("trip", OURS),
    ("trip", FLOOR),
    ("trip", BBR),
    ("relay-trip", RELAY),
    ("relay-trip", SEALED),
)
PICTURES = {"links.svg": draw_links, "trips.svg": draw_trips}


def main() -> None:
    PAGE.write_text(page())
    for name, draw in PICTURES.items():
        PAGE.with_name(name).write_text(draw())


if __name__ == "__main__":
    main()
