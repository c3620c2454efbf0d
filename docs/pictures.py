"""Draw docs/layers.svg and docs/call.svg again: ``python docs/pictures.py``.

The layers are those of the two tables in docs/architecture.rst, which is the only place where they
are written down; the arrows are the imports of the code.  The messages of the call are named as the
code names them.  tests/test_layers.py holds the imports to the tables, and tests/test_docs.py sees
to it that the pictures are up to date.
"""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.rst"
PACKAGE = "kkp2p_compat"
ENGINE = f"{PACKAGE}/engine/"
SAMPLES = f"{PACKAGE}.samples"  # as installed; the folder is at the top level


# The tables.


class Place(NamedTuple):
    """A folder, file or pattern of files that the page gives a place among the layers."""

    name: str
    floor: int  # of the layers, from the top down
    room: int = 0  # of the rooms of engine/, from the top down; 0: not in a room
    wing: str = ""  # what stands on its floor beside it imports nothing of it

    def may_import(self, other: Place) -> bool:
        """Downwards only; inside one place the files see to it that there is no circle."""
        if self.wing == other.wing:
            return self.room < other.room or self.name == other.name
        return self.floor < other.floor


@cache
def places() -> list[Place]:
    rows = _table("The layers")
    found = [Place(name, floor, 0, name) for floor, row in enumerate(rows) for name in row]
    engine = next(place for place in found if place.name == ENGINE)
    return found + [
        Place(ENGINE + name.removeprefix(f"{PACKAGE}/"), engine.floor, 1 + room, ENGINE)
        for room, row in enumerate(_table("The rooms of engine/"))
        for name in row
    ]


def _table(heading: str) -> list[list[str]]:
    """The first column of the first table under a heading, with paths from the root."""
    _, _, text = PAGE.read_text().partition(f"\n{heading}\n")
    _, _, body, *_ = re.split(r"^=+  =+\n", text, flags=re.MULTILINE)
    return [
        [
            name if name.startswith("samples") else f"{PACKAGE}/{name}"
            for name in re.findall(r"``([^`]+)``", line.split("  ")[0])
        ]
        for line in body.splitlines()
        if line.startswith("``")
    ]


def place_of(file: str) -> Place:
    """The place that names a file most closely; raises ValueError when none does."""
    fitting = [place for place in places() if fnmatch.fnmatch(file, place.name + "*")]
    if not fitting:
        raise ValueError(f"docs/architecture.rst has no layer for {file}")
    return max(fitting, key=lambda place: len(place.name))


# The imports.


@cache
def imports() -> dict[str, set[str]]:
    """By file, relative to the root: which files of ours it imports, for type checking, too."""
    files = {
        str(path.relative_to(ROOT)): path
        for folder in (PACKAGE, "samples")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    return {
        file: {other for name in _names(file, path) if (other := _file_of(name, files))} - {file}
        for file, path in files.items()
    }


def _names(file: str, path: Path) -> Iterator[str]:
    """Every name that is imported, with its full dotted path."""
    package = Path(file).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _file_of(name: str, files: dict[str, Path]) -> str | None:
    """The module that a dotted path names, or that has it."""
    path = re.sub(rf"^{SAMPLES}\b", "samples", name).replace(".", "/")
    for candidate in (path, path.rpartition("/")[0]):
        for file in (f"{candidate}.py", f"{candidate}/__init__.py"):
            if file in files:
                return file
    return None


def arrows() -> set[tuple[str, str]]:
    """Which place imports which, without the arrows that follow from others."""
    below: dict[str, set[str]] = {place.name: set() for place in places()}
    for file, others in imports().items():
        below[place_of(file).name] |= {place_of(other).name for other in others}
    return {
        (upper, lower)
        for upper, lowers in below.items()
        for lower in lowers - {upper}
        if not any(lower in _reached(step, below) for step in lowers - {upper, lower})
    }


def _reached(start: str, below: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = {start}
    while waiting:
        waiting |= below[place := waiting.pop()] - reached - {place}
        reached.add(place)
    return reached


# Drawing.

INK, PAPER, SHADE, LINE = "#222", "#fff", "#eef3fa", "#678"


class Drawing:
    """An SVG picture, one element a line, so that a change of it shows as a change of lines."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="Verdana, DejaVu Sans, sans-serif">',
            f"<title>{title}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker>'
            "</defs>",
            f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        ]

    def box(self, x: int, y: int, width: int, height: int, fill: str = PAPER) -> None:
        self._lines.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" '
            f'stroke="{LINE}"/>'
        )

    def text(self, x: int, y: int, text: str, size: int = 12, anchor: str = "middle") -> None:
        self._lines.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{INK}" '
            f'stroke="{PAPER}" stroke-width="3" paint-order="stroke">'
            f"{text}</text>"
        )

    def arrow(self, x1: int, y1: int, x2: int, y2: int, dash: str = "") -> None:
        self.line(x1, y1, x2, y2, dash, ' marker-end="url(#tip)"')

    def line(self, x1: int, y1: int, x2: int, y2: int, dash: str = "", end: str = "") -> None:
        self._lines.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}" '
            f'stroke-dasharray="{dash or "none"}"{end}/>'
        )

    @property
    def svg(self) -> str:
        return "\n".join([*self._lines, "</svg>", ""])


# The layers.

COLUMN, ROW, BOX_WIDTH, BOX_HEIGHT = 155, 50, 130, 28
# Where each place is drawn: column, row and how many columns wide.  It is an error to have none.
GRID = {
    "samples/": (1, 0, 1),
    "__main__.py": (3, 0, 1),
    "testing/": (4, 0, 1),
    "cli/": (3, 1, 1),
    "capi/": (2, 1, 1),
    "__init__.py": (1, 2, 1),
    "_api_checks.py": (1, 4, 1),
    "_api_outcome.py": (0, 4, 1),
    "_login.py": (1, 3, 1),
    "_bytes.py": (0, 3, 1),
    "tls.py": (2, 4, 1),
    "engine/engine.py": (1, 5, 1),
    "engine/switchboard.py": (1, 6, 1),
    "engine/proxy/": (1, 7, 1),
    "engine/calls/": (1, 8, 1),
    "engine/channels/": (1, 9, 1),
    "engine/links/": (1, 10, 1),
    "engine/paths/": (1, 11, 1),
    "engine/signalling/": (1, 12, 1),
    "engine/runtime/": (0, 12, 1),
    "cloud/": (3, 9, 1),
    "control/": (3, 13, 1),
    "traversal/": (1, 13, 1),
    "transport/udp/": (1, 14, 1),
    "transport/": (1, 15, 1),
    "_*.py": (1, 16, 4),
}


class Box(NamedTuple):
    x: int
    y: int
    width: int

    @property
    def middle(self) -> int:
        return self.x + self.width // 2


def draw_layers() -> str:
    drawing = Drawing(5 * COLUMN + 10, 17 * ROW, "The layers of kkp2p_compat")
    drawing.box(10, 5 * ROW, 2 * COLUMN - 5, 8 * ROW, SHADE)
    drawing.text(22, 5 * ROW + 20, "engine/", anchor="start")
    for upper, lower in sorted(arrows()):
        above, below = _box(upper), _box(lower)
        end = min(
            max(above.middle, below.x + BOX_WIDTH // 2), below.x + below.width - BOX_WIDTH // 2
        )
        drawing.arrow(above.middle, above.y + BOX_HEIGHT, end, below.y)
    for place in places():
        if place.name != ENGINE:
            box = _box(place.name)
            drawing.box(box.x, box.y, box.width, BOX_HEIGHT)
            drawing.text(box.middle, box.y + 18, place.name.removeprefix(f"{PACKAGE}/"))
    return drawing.svg


def _box(place: str) -> Box:
    column, row, columns = GRID[place.removeprefix(f"{PACKAGE}/")]
    width = (columns - 1) * COLUMN + BOX_WIDTH
    return Box(column * COLUMN + 20, row * ROW + 10, width)


# A call.

LANES = [
    "caller's program",
    "caller's engine",
    "cloud: track",
    "cloud: relay",
    "callee's engine",
    "callee's program",
]
CALLER, ENGINE_A, TRACK, RELAY, ENGINE_B, CALLEE = range(len(LANES))
LANE, STEP = 150, 30


class Step(NamedTuple):
    """``names``: operations of the control plane, or frames; the rest is words."""

    start: int
    end: int
    names: tuple[str, ...]
    words: str = ""
    dash: str = ""  # what goes by UDP


UDP = "5 3"
CALL: list[Step | str] = [
    "Signalling, over TLS",
    Step(CALLER, ENGINE_A, (), "connect"),
    Step(ENGINE_A, TRACK, ("call",), "with an offer"),
    Step(TRACK, ENGINE_A, ("calling",), "and a relay"),
    Step(TRACK, ENGINE_B, ("offer",)),
    Step(ENGINE_B, TRACK, ("answer",)),
    Step(TRACK, ENGINE_A, ("answer",)),
    "Meeting: both sides look for a path (UDP is dashed), and soon prepare the relay beside it",
    Step(ENGINE_A, ENGINE_B, (), "connectivity checks (STUN), both ways", UDP),
    Step(ENGINE_A, ENGINE_B, ("trickle",), "through the track: new addresses"),
    Step(ENGINE_A, RELAY, (), "hello"),
    Step(ENGINE_B, RELAY, (), "hello"),
    "A path was found first: a channel on the new link",
    Step(ENGINE_A, ENGINE_B, ("OPEN",), dash=UDP),
    Step(ENGINE_B, CALLEE, (), "accept"),
    Step(ENGINE_B, ENGINE_A, ("OPENED",), dash=UDP),
    Step(ENGINE_A, CALLER, (), "a descriptor"),
    Step(ENGINE_A, ENGINE_B, ("STREAM", "ACK"), "and so on, both ways", UDP),
    "Or the relay was ready first: the caller takes it",
    Step(ENGINE_A, ENGINE_B, (), "one byte, through the relay"),
    Step(ENGINE_B, CALLEE, (), "accept"),
    Step(ENGINE_A, CALLER, (), "a descriptor"),
    "In both cases the track may forget the call",
    Step(ENGINE_A, TRACK, ("over",)),
]


def draw_call() -> str:
    height = 60 + STEP * len(CALL)
    drawing = Drawing(LANE * len(LANES) + 20, height, "A call in auto mode")
    for lane, name in enumerate(LANES):
        drawing.box(_lane(lane) - 62, 10, 124, 26, SHADE)
        drawing.text(_lane(lane), 27, name)
        drawing.line(_lane(lane), 36, _lane(lane), height - 10, "2 4")
    for row, step in enumerate(CALL):
        y = 72 + STEP * row
        if isinstance(step, str):
            drawing.box(20, y - 17, LANE * len(LANES) - 20, 22, SHADE)
            drawing.text(30, y - 2, step, anchor="start")
            continue
        drawing.arrow(_lane(step.start), y, _lane(step.end), y, step.dash)
        label = " ".join([*step.names, step.words]).strip()
        drawing.text((_lane(step.start) + _lane(step.end)) // 2, y - 4, label, 11)
    return drawing.svg


def _lane(lane: int) -> int:
    return lane * LANE + 85


PICTURES = {"layers.svg": draw_layers, "call.svg": draw_call}


def main() -> None:
    for name, draw in PICTURES.items():
        PAGE.with_name(name).write_text(draw())


if __name__ == "__main__":
    main()
