"""Draw docs/matrix.svg, docs/punch.svg and those of docs/zh: ``python docs/meeting.py``.

The matrix is that of the tables in docs/nat-traversal.rst, as ``python -m benchmarks nat`` has
measured it.  The timeline is of a call that is run here: the engines' own code, behind the lab's
NATs, in a simulated network (tests/helpers/punch_network.py), with a seed.  tests/test_docs.py sees
to it that the pictures are up to date.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pictures import SHADE, Drawing

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "tests")]

from helpers.punch_network import Flight, World, call  # noqa: E402 - tests/ is no package
from kkp2p_compat.testing.nat import PORT_RESTRICTED  # noqa: E402
from kkp2p_compat.traversal.stun import Kind, parse_untrusted  # noqa: E402

# In English, and in Chinese.
WORDS = {
    "A connect between each two kinds of network, median in ms": (
        "每两类网络之间的连接时间，中位数，毫秒"
    ),
    "relay": "中继",
    "Two port-restricted NATs are punched; ms since the offer": (
        "给两个端口受限的 NAT 打洞；时间为发出请求之后的毫秒数"
    ),
    "caller": "呼叫方",
    "caller's NAT": "呼叫方的 NAT",
    "cloud": "云端",
    "callee's NAT": "被叫方的 NAT",
    "callee": "被叫方",
    "offer": "请求",
    "answer": "应答",
    "check": "检查",
    "check answered": "检查的应答",
    "check, of few hops": "检查，跳数很少",
    "chosen": "选定",
    "from here on the NAT lets the other side's packets in": "从这里开始，NAT 放行对方的包",
}


class Words:
    """Of a language: what is not among WORDS is the same in both."""

    def __init__(self, is_chinese: bool) -> None:
        self.is_chinese = is_chinese

    def __call__(self, text: str) -> str:
        return WORDS[text] if self.is_chinese else text


# The matrix.

CELL_WIDTH, CELL_HEIGHT, LEFT, TOP = 78, 38, 160, 84
BLOCKED, SAME = "UDP blocked", "same NAT"
RELAYED = "#d5d8dc"
# By the time of a connect: what colour, and between them what is between.
HEAT = [(120, (226, 240, 217)), (300, (255, 242, 204)), (1100, (240, 160, 110))]


class Pair(NamedTuple):
    caller: str
    callee: str
    took_ms: float | None  # None: no connect of the measured mode succeeded
    path: str  # the last word of it: srflx, TCP...; "": the relay


def pairs() -> list[Pair]:
    """Of both tables; in the second one, one side's network blocks UDP."""
    text = (DOCS / "nat-traversal.rst").read_text().partition("\nThe matrix\n")[2]
    both, blocked, *_ = re.findall(r"^=[= ]+\n.*\n=[= ]+\n((?:[^=].*\n)+)", text, re.MULTILINE)
    return [
        *(_pair(*re.split(r"  +", line)) for line in both.splitlines()),
        *(_pair(BLOCKED, *re.split(r"  +", line)) for line in blocked.splitlines()),
    ]


def _pair(caller: str, callee: str, mode: str, p2p: str, p50: str, *rest: str) -> Pair:
    *_, path, _first_byte, _later = rest
    took_ms = float(p50) if p50.isdecimal() else None
    return Pair(caller, callee, took_ms, "" if path == "relay" else path.split()[-1])


def heat(took_ms: float) -> str:
    """Interpolated by the logarithm of the time."""
    bounded = min(max(took_ms, HEAT[0][0]), HEAT[-1][0])
    for (low, cold), (high, warm) in itertools.pairwise(HEAT):
        if bounded <= high:
            part = math.log(bounded / low) / math.log(high / low)
            mixed = (round(a + part * (b - a)) for a, b in zip(cold, warm, strict=True))
            return f"#{bytes(mixed).hex()}"
    raise AssertionError("the last bound is the highest")


def draw_matrix(is_chinese: bool = False) -> str:
    """Above the diagonal, as either side may call; the two kinds of one common NAT are below it."""
    words = Words(is_chinese)
    measured = pairs()
    apart = [pair for pair in measured if not pair.caller.startswith(SAME)]
    kinds = list(dict.fromkeys(pair.callee for pair in apart))
    kinds.insert(-1, kinds.pop(kinds.index(BLOCKED)))
    size = len(kinds)
    title = words("A connect between each two kinds of network, median in ms")
    drawing = Drawing(LEFT + size * CELL_WIDTH + 20, TOP + size * CELL_HEIGHT + 20, title)
    drawing.text(16, 26, title, 14, "start")
    for number, kind in enumerate(kinds):
        left = LEFT + number * CELL_WIDTH
        for line, part in enumerate(kind.replace("-", "- ").split(" ", 1)):
            drawing.text(left + CELL_WIDTH // 2, TOP - 24 + 14 * line, part.strip(), 11)
        drawing.text(left - 8, TOP + number * CELL_HEIGHT + 23, kind, 11, "end")
    for pair in apart:
        row, column = sorted((kinds.index(pair.caller), kinds.index(pair.callee)))
        _cell(drawing, LEFT + column * CELL_WIDTH, TOP + row * CELL_HEIGHT, pair, words)
    y = TOP + (size - 3) * CELL_HEIGHT
    for pair in measured:
        if pair.caller.startswith(SAME):
            drawing.text(LEFT - 8, y + 23, pair.caller, 11, "end")
            _cell(drawing, LEFT, y, pair, words)
            y += CELL_HEIGHT
    return drawing.svg


def _cell(drawing: Drawing, x: int, y: int, pair: Pair, words: Words) -> None:
    fill = heat(pair.took_ms) if pair.path and pair.took_ms else RELAYED
    drawing.box(x + 1, y + 1, CELL_WIDTH - 2, CELL_HEIGHT - 2, fill)
    middle = x + CELL_WIDTH // 2
    if pair.took_ms:
        drawing.text(middle, y + 17, f"{pair.took_ms:.0f}", 12)
    drawing.text(middle, y + 31, pair.path or words("relay"), 9)


# The timeline of a punch.

LANES = {"caller": 80, "caller's NAT": 200, "cloud": 410, "callee's NAT": 620, "callee": 740}
CALLER, CALLERS_NAT, CLOUD, CALLEES_NAT, CALLEE = LANES.values()
SEED, DELAY_S = 1, 0.01  # of each host's own line
START, PER_S = 96, 2600  # pixels: where the offer leaves, and how long a second is
OPEN, OPENED = "#7fb77f", "from here on the NAT lets the other side's packets in"


class Leg(NamedTuple):
    """What is drawn as one arrow; times in seconds since the offer."""

    at: float
    start: int
    end: int
    until: float
    words: str


def signals(each_s: float) -> list[Leg]:
    ways = [
        ("offer", CALLER, CLOUD),
        ("offer", CLOUD, CALLEE),
        ("answer", CALLEE, CLOUD),
        ("answer", CLOUD, CALLER),
    ]
    return [
        Leg(number * each_s, start, end, (number + 1) * each_s, words)
        for number, (words, start, end) in enumerate(ways)
    ]


def checks(world: World) -> Iterator[Leg]:
    """But for those of private addresses, which get nowhere."""
    whole = [flight for flight in world.flights if not flight.target[0].startswith("10.")]
    for (at, _), flights in itertools.groupby(whole, lambda one: (one.at, id(one.by))):
        first, *_ = together = list(flights)
        start, nat, end = CALLER, CALLERS_NAT, CALLEE
        if first.by is world.callee:
            start, nat, end = CALLEE, CALLEES_NAT, CALLER
        arrives = first.end != "sent"  # or it is still on its way
        yield Leg(
            at - world.started,
            start,
            end if arrives else nat,
            at - world.started + 2 * DELAY_S * (1 if arrives else NEAR),
            " + ".join(map(_named, together)) if arrives else "check, of few hops",
        )


NEAR = (CALLERS_NAT - CALLER) / (CALLEE - CALLER)  # of the way: to one's own NAT


def _named(flight: Flight) -> str:
    message = parse_untrusted(flight.data)
    if message.kind is Kind.REQUEST:
        return "chosen" if message.use_candidate else "check"
    return "check answered"


def draw_punch(is_chinese: bool = False) -> str:
    words = Words(is_chinese)
    took_s, world = call(PORT_RESTRICTED, PORT_RESTRICTED, SEED, delays=(DELAY_S, DELAY_S))
    assert took_s is not None
    found = list(checks(world))
    bottom = _y(max(leg.until for leg in found)) + 10
    title = words("Two port-restricted NATs are punched; ms since the offer")
    drawing = Drawing(CALLEE + 80, bottom + 40, title)
    drawing.text(16, 26, title, 14, "start")
    for name, place in LANES.items():
        drawing.box(place - 48, 44, 96, 26, SHADE)
        drawing.text(place, 61, words(name))
        drawing.line(place, 70, place, bottom, "2 4")
    for nat, host in ((CALLERS_NAT, CALLER), (CALLEES_NAT, CALLEE)):
        opened = _y(next(leg.at for leg in found if leg.start == host) + 2 * DELAY_S * NEAR)
        drawing.box(nat - 4, opened, 8, bottom - opened, OPEN)
    drawing.box(CALLERS_NAT - 4, bottom + 14, 8, 14, OPEN)
    drawing.text(CALLERS_NAT + 12, bottom + 25, words(OPENED), 11, "start")
    for leg in signals(world.signal_s() / 2):
        _draw_leg(drawing, leg, words(leg.words), "5 3")
    for leg in found:
        text = " + ".join(words(word) for word in leg.words.split(" + "))
        _draw_leg(drawing, leg, text)
    return drawing.svg


def _y(at: float) -> int:
    return START + round(PER_S * at)


def _draw_leg(drawing: Drawing, leg: Leg, text: str, dash: str = "") -> None:
    drawing.arrow(leg.start, _y(leg.at), leg.end, _y(leg.until), dash)
    drawing.text((leg.start + leg.end) // 2, _y((leg.at + leg.until) / 2) - 5, text, 11)
    for place, at in ((leg.start, leg.at), (leg.end, leg.until)):
        if place in (CALLER, CALLEE):
            side, anchor = (-8, "end") if place == CALLER else (8, "start")
            drawing.text(place + side, _y(at) + 4, f"{1000 * at:.0f}", 10, anchor)


PICTURES: dict[str, Callable[[], str]] = {
    "matrix.svg": draw_matrix,
    "punch.svg": draw_punch,
    "zh/matrix.svg": lambda: draw_matrix(is_chinese=True),
    "zh/punch.svg": lambda: draw_punch(is_chinese=True),
}


def main() -> None:
    for name, draw in PICTURES.items():
        (DOCS / name).write_text(draw())


if __name__ == "__main__":
    main()
