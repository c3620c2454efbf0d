"""The Chinese pages say what the English ones say: change both, or a test here fails."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAIRS = {
    path: ROOT / path.replace("/zh/", "/").replace(".zh.", ".")
    for path in [
        "README.zh.rst",
        *(f"docs/zh/{page.name}" for page in sorted((ROOT / "docs" / "zh").glob("[!i]*.rst"))),
    ]
}
HEADING = re.compile(r"^(?=\S)(.+)\n([=~-])\2{2,}$", re.MULTILINE)
LITERAL = re.compile(r"``(.+?)``", re.DOTALL)
OPTION = re.compile(r"--[a-z][a-z-]+")
BLOCK = re.compile(
    r"^( *)((?:\S.*)?::|\.\. code-block:: \w+)$((?:\n+(?:\1 +.*\n)+)+)", re.MULTILINE
)
OPENERS, CLOSERS = {"Ps", "Pi", "Pd", "Po"}, {"Pe", "Pf", "Pd", "Po"}
COMMENT = re.compile(r"# .*|(?<=:caption: ).*")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
INCLUDED = re.compile(r"^\.\. (?:literalinclude|image):: (?:\.\./)*(.+)$", re.MULTILINE)


class Section:
    """A heading's level, and what stands below it until the next one."""

    def __init__(self, level: str, text: str) -> None:
        self.level = level
        self.blocks = [COMMENT.sub("#", block.strip("\n")) for *_, block in BLOCK.findall(text)]
        prose = BLOCK.sub(r"\2\n", text)
        self.numbers = set(NUMBER.findall(prose))
        self.included = INCLUDED.findall(text)
        self.options = set(OPTION.findall(prose))
        self.literals = {
            " ".join(found.split()).replace("docs/zh/", "docs/") for found in LITERAL.findall(prose)
        }


def sections(page: Path) -> list[Section]:
    parts = HEADING.split(page.read_text())
    return [Section(*parts[i + 1 : i + 3]) for i in range(1, len(parts), 3)]


pair = pytest.mark.parametrize("chinese", PAIRS)


@pair
def test_the_sections_are_the_same(chinese: str) -> None:
    levels = [section.level for section in sections(ROOT / chinese)]
    assert levels == [section.level for section in sections(PAIRS[chinese])]
    assert len(levels) > 3


@pair
@pytest.mark.parametrize("what", ["blocks", "included", "options", "literals", "numbers"])
def test_each_section_has_the_same(chinese: str, what: str) -> None:
    """But for comments and captions: commands and code to the byte, options, names and figures."""
    both = zip(sections(ROOT / chinese), sections(PAIRS[chinese]), strict=True)
    for ours, theirs in both:
        assert getattr(ours, what) == getattr(theirs, what)


@pair
def test_each_page_leads_to_the_other_at_its_top(chinese: str) -> None:
    for page, other in ((ROOT / chinese, PAIRS[chinese]), (PAIRS[chinese], ROOT / chinese)):
        (link,) = re.findall(r"^`.+ <(.+)>`__$", page.read_text()[:300], re.MULTILINE)
        assert (page.parent / link).resolve() == other


@pair
def test_markup_is_recognised(chinese: str) -> None:
    """reStructuredText wants a space or punctuation around it, which Chinese text does not have."""
    prose = BLOCK.sub(r"\2\n", (ROOT / chinese).read_text())
    for markup in re.finditer(r"(``|\*\*).+?\1", prose, re.DOTALL):
        before, after = prose[markup.start() - 1], prose[markup.end()]
        assert before.isspace() or unicodedata.category(before) in OPENERS, markup[0]
        assert after.isspace() or unicodedata.category(after) in CLOSERS, markup[0]
