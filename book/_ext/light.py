"""Every page light and local: one style sheet, the icons in use, figures before everything else."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from fontTools import subset

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
SEARCH = ("searchtools.js", "language_data.js", "searchindex.js")  # for the page of results alone
# At once: what a figure needs, what folds solutions away; tabs need the event that ends parsing.
EARLY = re.compile(r"(widgets|page)-\w+\.js|togglebutton\.js|design-tabs\.js|late\.js")
DEPRECATED = (' role="doc-biblioentry"', ' role="list"')  # of the references
# The copy button has no name for a screen reader; the search stumbles over ids with a dot in them.
PATCHES = (
    ("copybutton.js", '<button class="copybtn', '<button aria-label="Copy" class="copybtn'),
    (
        "searchtools.js",
        'htmlElement.querySelector(`[role="main"] ${anchor}`)',
        "htmlElement.getElementById(anchor.slice(1))",
    ),
)
# The theme's script decides between dark and light, but it comes late: no white page in the dark.
# `mq-first`: sections out of sight are laid out after the figures in sight (book.css, late.js), but
# not where the page opens elsewhere than at its top.
HEAD = """<script>
{
  const { dataset, classList } = document.documentElement;
  if (dataset.theme === "auto")
    dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const [visit] = performance.getEntriesByType("navigation");
  if (!location.hash && visit?.type === "navigate") classList.add("mq-first");
}
</script>
"""

STYLES = re.compile(r'\s*<link\b(?=[^>]*rel="stylesheet")[^>]*?href="_static/([^"?]+)[^>]*>')
SCRIPT = re.compile(r'(\s*)<script([^>]*?) src="(_static/([^"?]+)[^"]*)"[^>]*></script>')
PRELOAD = re.compile(r'\s*<link rel="preload" as="script"[^>]*>')
ICON = re.compile(r"(?:\.fa-[\w-]+::?before,?)+\{[^}]*\}")
WOFF2 = re.compile(r'url\([^)]*/webfonts/[^)]*\.woff2\) format\("woff2"\),')  # the next is its ttf
ADDRESS = re.compile(r"url\(([\"']?)(?!data:|#|https?:)([^)\"'?#]+)([^)\"']*)\1\)")


def finish(app, exception):
    """Make the written pages light. Every step is on files; what Sphinx thinks of them is past."""
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    static = out / "_static"
    copy_mathjax(static / "mathjax")
    for name, old, new in PATCHES:
        path = static / name
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    pages = {path: path.read_text("utf-8") for path in out.glob("*.html")}
    words = set(re.findall(r"fa-[\w-]+", "".join(pages.values())))
    for script in static.glob("scripts/*theme.js"):
        words |= set(re.findall(r"fa-[\w-]+", script.read_text("utf-8")))
    sheets: dict[tuple, str] = {}  # a list of style sheets -> the one that holds them all
    for path, text in pages.items():
        names = tuple(STYLES.findall(text))
        if not names:
            continue  # the front door, which only leads to the first page
        for role in DEPRECATED:
            text = text.replace(role, "")
        text = order_scripts(text, static, path.name == "search.html")
        if names not in sheets:
            sheets[names] = one_sheet(static, names, words)
        at = STYLES.search(text).start()
        link = f'\n    <link rel="stylesheet" href="_static/{sheets[names]}">'
        text = STYLES.sub("", text)
        path.write_text(text[:at] + link + text[at:], "utf-8")
    for old in set(static.glob("all-*.css")) - {static / name for name in sheets.values()}:
        old.unlink()  # of an earlier build
    trim_fonts(static, "".join((static / name).read_text("utf-8") for name in sheets.values()))


def copy_mathjax(target: Path) -> None:
    """The parts of MathJax that the book uses, from the package that ships it."""
    source = Path(find_spec("sphinx-mathjax-offline").submodule_search_locations[0])
    source /= "static/mathjax"
    for part in MATHJAX:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy(source / part, target / part)


def order_scripts(text: str, static: Path, search: bool) -> str:
    """No script holds up the page; what no figure needs is left to late.js."""

    def place(tag: re.Match) -> str:
        space, attributes, address, name = tag.groups()
        if name == "documentation_options.js":  # read by the inline scripts that follow
            return f"{space}<script>{(static / name).read_text('utf-8').strip()}</script>"
        if EARLY.fullmatch(name):
            attributes = attributes.replace(' defer="defer"', "") + " defer"
        else:
            attributes = ' type="text/late"'
        return f'{space}<script{attributes} src="{address}"></script>'

    for name in UNUSED if search else UNUSED + SEARCH:
        text = re.sub(rf'\s*<script[^>]* src="[^"]*{name}[^>]*></script>', "", text)
    if not search:  # there, inline scripts wait for the others
        text = SCRIPT.sub(place, PRELOAD.sub("", text))
    first, rest = text.split("</script>", 1)  # the theme's own, that says "auto"
    return f"{first}</script>\n{HEAD}{rest}"


def one_sheet(static: Path, names: tuple, words: set) -> str:
    """Join style sheets, without the rules of icons that no page shows; the answer: its name."""

    def read(path: Path) -> str:
        text = path.read_text("utf-8").removeprefix('@charset "UTF-8";')
        text = re.sub(r'@import "([^"]+)";', lambda m: read((path.parent / m[1]).resolve()), text)
        return ADDRESS.sub(lambda m: address(path, m), text)

    def address(path: Path, found: re.Match) -> str:
        target = (path.parent / found[2]).resolve()
        local = target.relative_to(static.resolve()) if target.exists() else found[2]
        return f"url({found[1]}{local}{found[3]}{found[1]})"

    def shown(rule: re.Match) -> str:
        return rule[0] if words & set(re.findall(r"fa-[\w-]+", rule[0])) else ""

    text = '@charset "UTF-8";' + ICON.sub(shown, "\n".join(read(static / name) for name in names))
    text = WOFF2.sub("", text)
    name = f"all-{hashlib.sha256(text.encode()).hexdigest()[:12]}.css"
    (static / name).write_text(text, "utf-8")
    return name


def trim_fonts(static: Path, styles: str) -> None:
    """Of the fonts of icons, keep the glyphs that the style sheets name."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # else a page of steps for each font
    used = {int(code, 16) for code in re.findall(r"\\(f[0-9a-f]{3})\b", styles)}
    for path in (static / "vendor/fontawesome/webfonts").glob("*.ttf"):
        font = subset.load_font(path, subset.Options())
        small = subset.Subsetter()
        small.populate(unicodes=used)
        small.subset(font)
        subset.save_font(font, path, subset.Options())


def setup(app):
    app.connect("build-finished", finish, priority=900)  # the theme writes pygments.css there too
    return {"parallel_read_safe": True, "parallel_write_safe": True}
