"""What the book needs beyond Jupyter Book 1.x: docstrings as they are, a text for every picture."""

from __future__ import annotations

import html
import json
import re

from docutils import nodes
from sphinx.util import logging

from minqbook.widgets import Question

logger = logging.getLogger(__name__)

MARKUP = re.compile(r"[\\|*`]|_(?!\w)")  # what plain text must escape in reStructuredText
# A page on a disk may not fetch its neighbours, so the search there shows titles without excerpts.
NO_EXCERPTS = (
    'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;'
)
NOSCRIPT = "This figure is drawn by JavaScript, which is off here."


def page_scripts(app, pagename, templatename, context, doctree):
    """Drop scripts listed twice or never used; set the colour mode Jupyter Book leaves open."""
    seen, kept = set(), []
    for script in filter(without_thebe, context.get("script_files", [])):
        body = getattr(script, "attributes", {}).get("body")
        if body is None or body not in seen:
            kept.append(script)
        seen.add(body)
    context["script_files"][:] = kept
    context["css_files"][:] = filter(without_thebe, context["css_files"])
    context["default_mode"] = context.get("default_mode") or "auto"
    if pagename == "search":
        app.add_js_file(None, body=NO_EXCERPTS)


def without_thebe(asset):
    return "thebe" not in f"{asset} {getattr(asset, 'attributes', {}).get('body')}"


def tagged_formulas(app, doctree, docname):
    r"""Sphinx wraps a formula of several lines in `split`, where MathJax allows no \tag: do not."""
    for formula in doctree.findall(nodes.math_block):
        if r"\tag" in formula.astext() and not formula["nowrap"]:
            formula["nowrap"] = True
            formula[:] = [nodes.Text(rf"\[{formula.astext()}\]")]


def widget_needs_javascript(app, doctree, docname):
    """Say so where a widget would stand, with what it shows and asks, in words."""
    files = app.env.nb_metadata.get(docname, {}).get("js_files", {})
    _, state = files.get("ipywidgets_state", (None, {"body": '{"state": {}}'}))
    models = json.loads(state["body"])["state"]
    for raw in doctree.findall(nodes.raw):
        if found := re.search(
            r'jupyter.widget-view\+json">\s*({.*?})\s*</script>', raw.astext(), re.S
        ):
            model = models.get(json.loads(found[1])["model_id"], {}).get("state", {})
            words = [NOSCRIPT, model.get("alt", "")]
            if asked := model.get("question"):
                words += str(Question(**asked)).splitlines()
            lines = "".join(f"<p>{html.escape(line)}</p>" for line in words if line)
            raw[:] = [nodes.Text(f"{raw.astext()}<noscript>{lines}</noscript>")]


def plain_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text: indented formulas and tables stay, the rest is escaped."""
    result: list[str] = []
    example = layout = False
    for line in lines:
        example = bool(line) and (example or line.startswith(">>>"))
        indented = line.startswith(" ") and not example
        if indented and not layout and not line.lstrip().startswith("==="):  # a table is one
            result += ["", ".. code-block:: text", ""]
        elif layout and line and not indented:
            result.append("")
        if line:
            layout = indented
        result.append(line if indented or example else escape(line))
    lines[:] = result


def escape(line):
    """A line of plain text for reStructuredText; ``names`` stay names."""
    parts = re.split(r"(``.+?``)", line)
    parts[::2] = [MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def warn_missing_alt(app, doctree, docname):
    """A picture without alternative text is a build warning, and warnings are errors."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning("picture %s has no alt text", image.get("uri"), location=image)


def standard_library(app, env, node, contnode):
    """Types of Python's own library have no page here."""
    return contnode if node.get("reftarget", "").startswith("collections.abc.") else None


def setup(app):
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("html-page-context", page_scripts, priority=900)
    app.connect("doctree-resolved", warn_missing_alt)
    app.connect("doctree-resolved", tagged_formulas)
    app.connect("doctree-resolved", widget_needs_javascript)
    app.connect("missing-reference", standard_library)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
