"""The site that Sphinx makes of these pages, README.rst and the docstrings of the API.

``python -m sphinx -W -n docs build/site`` makes it; the pages also read well as they are.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kkp2p_compat import __version__  # noqa: E402 - of this tree, whatever is installed

project = "kkp2p_compat"
author = "the authors of kkp2p_compat"
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest"]
exclude_patterns = ["_build"]
nitpick_ignore = [("py:class", "collections.abc.Callable")]  # it is Python's, not ours
highlight_language = "text"  # what is in plain ``::`` blocks is of many kinds

add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_type_aliases = {"engine_t": "engine_t"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "furo" if importlib.util.find_spec("furo") else "alabaster"
html_title = f"kkp2p_compat {release}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["style"]
html_css_files = ["site.css"]

linkcheck_ignore = [r"https?://"]  # only our own links: a build needs no internet


PAGE = re.compile(r"(?:docs/([\w/-]+)|(README|SECURITY|CONTRIBUTING|CHANGELOG))\.rst")
PAGES_OF = {"README": "index", "README.zh": "zh/index"}


def link_pages(app: Any, doctree: nodes.document) -> None:
    """A page that is named as a file, such as ``docs/tools.rst``, becomes a link with its title."""
    for literal in list(doctree.findall(nodes.literal)):
        found = PAGE.fullmatch(literal.astext())
        if found is None or isinstance(literal.parent, nodes.reference):
            continue
        target = found[1] or PAGES_OF.get(found[2], found[2].lower())
        reference = addnodes.pending_xref(
            "",
            literal.deepcopy(),
            refdomain="std",
            reftype="doc",
            reftarget=f"/{target}",
            refdoc=app.env.docname,
            refexplicit=False,
            refwarn=True,
        )
        literal.replace_self(reference)


def link_languages(app: Any, doctree: nodes.document) -> None:
    """A link to the file of a page, as at the top of those in two languages, leads to the page."""
    for link in list(doctree.findall(nodes.reference)):
        file, suffix = posixpath.splitext(link.get("refuri", ""))
        if suffix != ".rst":
            continue
        beside = posixpath.join(posixpath.dirname(app.env.docname), file)
        target = PAGES_OF.get(file, posixpath.normpath(beside))
        link.replace_self(
            addnodes.pending_xref(
                "",
                nodes.inline("", link.astext()),
                refdomain="std",
                reftype="doc",
                reftarget=f"/{target}",
                refdoc=app.env.docname,
                refexplicit=True,
                refwarn=True,
            )
        )


def drop_contents(app: Any, doctree: nodes.document) -> None:
    """A page's own table of contents, for who reads it unbuilt: the theme has one beside it."""
    for topic in list(doctree.findall(nodes.topic)):
        if "contents" in topic["classes"]:
            topic.parent.remove(topic)


def setup(app: Any) -> None:
    app.connect("doctree-read", drop_contents)
    app.connect("doctree-read", link_pages)
    app.connect("doctree-read", link_languages)
