"""An import goes only downwards: the library, the book's package, its tools, the tests.

Read from the sources, imports inside functions and those of lazy packages included.
"""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up; modules of the first two are named from their package on, others are on
# pytest's and Sphinx's path.
FLOORS = {
    "library": (ROOT, "minq"),
    "book": (ROOT / "book", "minqbook"),
    "tools": (ROOT / "book/_tools", "."),
    "extensions": (ROOT / "book/_ext", "."),
    "tests": (ROOT / "tests", "."),
    "browser": (ROOT / "tests/browser", "."),
    "bench": (ROOT / "tests/bench", "."),
}
SHARED = {"minq._checks", "minq._lazy", "minq._work"}  # private to the repository, not to a file


class WithoutTypes(ast.NodeTransformer):
    """What stands behind ``if TYPE_CHECKING`` never runs: a type may know who will hold it."""

    def visit_If(self, node):
        checking = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if checking else self.generic_visit(node)


@cache
def modules() -> dict[str, tuple[int, ast.Module]]:
    """Each module's floor and source."""
    found = {}
    for floor, (which, (start, package)) in enumerate(FLOORS.items()):
        paths = (start / package).glob("*.py" if package == "." else "**/*.py")
        for path in paths:
            parts = path.relative_to(start).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name.startswith(("conftest", "test_")) and which != "tests":
                name = f"{which}.{name}"  # nobody imports it
            assert name not in found, f"two modules are called {name}"
            tree = ast.parse(path.read_text("utf-8"), str(path))
            found[name] = floor, WithoutTypes().visit(tree)
    return found


@cache
def lazy(package: str) -> dict[str, str]:
    """The names that a package takes from its modules on first use, and from which."""
    calls = [n for n in ast.walk(modules()[package][1]) if isinstance(n, ast.Call)]
    made = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "lazily"]
    homes = [ast.literal_eval(call.args[1]) for call in made]
    pairs = [(m, n) for home in homes for m, names in home.items() for n in names.split()]
    return {name: f"{package}.{module}" for module, name in pairs}


def imports(name: str) -> list[tuple[str, str]]:
    """(module, name) of each import of our own; the name is empty where a whole module comes."""
    found = []
    for node in ast.walk(modules()[name][1]):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name in modules()]
        elif isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in modules():
                    found.append((whole, ""))
                else:
                    found.append((lazy(node.module).get(alias.name, node.module), alias.name))
    return found


def test_no_import_goes_upwards():
    for name, (floor, _) in modules().items():
        above = [m for m, _ in imports(name) if modules()[m][0] > floor]
        assert not above, f"{name} imports {above}"


def test_no_imports_go_in_a_circle():
    graph = {name: {m for m, _ in imports(name)} - {name} for name in modules()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # CycleError names it


def test_the_library_does_not_know_the_book():
    for path in (ROOT / "minq").rglob("*.py"):
        assert "minqbook" not in path.read_text("utf-8"), path


def test_no_module_is_loaded_by_its_path():
    for name, (_, tree) in modules().items():
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        used |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        assert "spec_from_file_location" not in used, f"{name}: import it"


def private(word: str) -> bool:
    return word.startswith("_") and not word.startswith("__")


def taken_privately(name: str) -> list[str]:
    """What a module takes from others though its name begins with an underscore."""
    found, whole = [], {}
    tree = modules()[name][1]
    for module, word in imports(name):
        last = module.rpartition(".")[2]
        if private(word) or (private(last) and module not in SHARED):
            found.append(f"{name} < {module}.{word}".rstrip("."))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                if (module := f"{node.module}.{alias.name}") in modules():
                    whole[alias.asname or alias.name] = module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules() and (alias.asname or "." not in alias.name):
                    whole[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in whole and private(node.attr):
                module = f"{whole[node.value.id]}.{node.attr}"
                if module not in SHARED:
                    found.append(f"{name} < {module}")
    return found


def test_no_module_takes_a_private_name_of_another():
    taken = {line for name in modules() for line in taken_privately(name)}
    assert not taken, "give it a public name, or ask in public"
