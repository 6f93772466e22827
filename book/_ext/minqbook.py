"""What the book needs beyond Jupyter Book 1.x: assets local and light, a text for every picture."""

from __future__ import annotations

import html
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.util import logging

from minq.widgets import Question

logger = logging.getLogger(__name__)

# What MathJax needs for TeX; its stock bundle brings a menu of half a megabyte.
MATHJAX = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "input/tex/extensions/boldsymbol.js",
    "output/chtml.js",
    "output/chtml/fonts",
    "a11y/assistive-mml.js",
)
UNUSED = ("scripts/fontawesome.js",)  # the style sheet shows the same icons with a font
DEPRECATED = (' role="doc-biblioentry"', ' role="list"')  # of the references
SEARCH = ("searchtools.js", "language_data.js", "searchindex.js")  # for the page of results alone
MARKUP = re.compile(r"[\\|*`]|_(?!\w)")  # what plain text must escape in reStructuredText
# A page on a disk may not fetch its neighbours, so the search there shows titles without excerpts.
NO_EXCERPTS = (
    'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;'
)
# The copy button has no name for a screen reader; the search stumbles over ids with a dot in them.
PATCHES = (
    ("copybutton.js", '<button class="copybtn', '<button aria-label="Copy" class="copybtn'),
    (
        "searchtools.js",
        'htmlElement.querySelector(`[role="main"] ${anchor}`)',
        "htmlElement.getElementById(anchor.slice(1))",
    ),
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


def local_assets(app, exception):
    """Copy the used parts of MathJax, patch two scripts, drop what no page or only one needs."""
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    mathjax = Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0])
    mathjax /= "static/mathjax"
    for part in MATHJAX:
        target = out / "_static/mathjax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (mathjax / part).is_dir() else shutil.copy
        copy(mathjax / part, target, **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))
    for name, old, new in PATCHES:
        path = out / "_static" / name
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    for page in out.glob("*.html"):
        text = page.read_text("utf-8")
        for tag in UNUSED if page.name == "search.html" else UNUSED + SEARCH:
            text = re.sub(rf"\s*<script[^>]* src=\"[^\"]*{tag}[^>]*></script>", "", text)
        for role in DEPRECATED:
            text = text.replace(role, "")
        page.write_text(text, "utf-8")


def setup(app):
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("html-page-context", page_scripts, priority=900)
    app.connect("doctree-resolved", warn_missing_alt)
    app.connect("doctree-resolved", tagged_formulas)
    app.connect("doctree-resolved", widget_needs_javascript)
    app.connect("missing-reference", standard_library)
    app.connect("build-finished", local_assets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
