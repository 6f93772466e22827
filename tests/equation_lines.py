"""The tests that the equation index names are watched while they run: do they execute its lines?

A plugin, because they run anyway: to run them again for this took a minute.
"""

import sys
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType

import equations
import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = str(ROOT / "minq")

code, formulas, table = (cache(f) for f in (equations.code, equations.formulas, equations.table))


@cache
def named() -> set[str]:
    """The tests in the index; one without brackets stands for all of its cases."""
    return {test for entry in table().values() for test in entry["tests"]}


def names_of(nodeid: str) -> set[str]:
    """Those of its names that the index has."""
    return {nodeid, nodeid.split("[")[0]} & named()


@cache
def statements_of(code_object: CodeType) -> list[range] | None:
    """The lines of each equation that a function of the library holds; None for other functions."""
    if not code_object.co_filename.startswith(LIBRARY):
        return None
    path = Path(code_object.co_filename).relative_to(ROOT).as_posix()
    own = {line for *_, line in code_object.co_lines()}
    found = {line for lines in code().values() for line in lines if line.path == path}
    spans = {range(line.first, line.last + 1) for line in found}
    return [span for span in spans if own.intersection(span)]


def statements(names: set[str]) -> set[tuple[str, range]]:
    """Those of all equations for which a test is named."""
    mine = [lines for n, lines in code().items() if names.intersection(table()[n]["tests"])]
    return {(str(ROOT / a.path), range(a.first, a.last + 1)) for lines in mine for a in lines}


@contextmanager
def watched(names: set[str]):
    """The lines of equations that run meanwhile, and the first lines of all functions of minq.

    It ends when every line was seen that the tests of these names may be there for.
    """
    seen: set[tuple[str, int]] = set()
    wanted = statements(names)
    left: dict[CodeType, list[range] | None] = {}  # what was not seen yet

    def inside(frame, *_):
        spans = left[frame.f_code]
        for span in spans:
            if frame.f_lineno in span:
                seen.add((frame.f_code.co_filename, frame.f_lineno))
                spans.remove(span)
                wanted.discard((frame.f_code.co_filename, span))
                break
        frame.f_trace_lines = bool(spans)
        return inside

    def enter(frame, *_):
        running = frame.f_code
        if running not in left:
            spans = statements_of(running)
            left[running] = spans and spans.copy()
            if spans is not None:
                seen.add((running.co_filename, running.co_firstlineno))
        if seen and not wanted:
            sys.settrace(None)
        return inside if left[running] else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield seen
    finally:
        sys.settrace(before)


def places(seen: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """With paths from the root."""
    return sorted((Path(file).relative_to(ROOT).as_posix(), line) for file, line in seen)


def complaints(executed: Mapping[str, Iterable[tuple[str, int]]]) -> list[str]:
    """What is wrong with the index, if these are the lines that each of its tests executes."""
    executed, wrong = {test: set(lines) for test, lines in executed.items()}, []
    for number, entry in table().items():
        own, tests = code().get(number, []), entry["tests"]
        seen = set().union(*(executed.get(test, ()) for test in tests))
        used = {(line.path, k) for line in own for k in range(line.first, line.last + 1)}
        for line in own:
            if not any((line.path, k) in seen for k in range(line.first, line.last + 1)):
                wrong.append(f"({number}): no test it names executes {line.path}:{line.line}")
        for test in tests:
            if not executed.get(test):
                wrong.append(f"({number}): {test} executes nothing of minq")
            elif own and not executed[test] & used:
                wrong.append(f"({number}): {test} has nothing to do with it")
    return wrong


class Plugin:
    """Workers send the lines with their reports; the main process judges when all are there."""

    def __init__(self) -> None:
        self.executed: dict[str, set[tuple[str, int]]] = {}
        self.wrong: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        if not (names := names_of(item.nodeid)):
            return (yield)
        with watched(names) as seen:
            try:
                return (yield)
            finally:
                item.user_properties.append(("executed", places(seen)))

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            for name in names_of(report.nodeid):
                lines = map(tuple, dict(report.user_properties).get("executed", ()))
                self.executed.setdefault(name, set()).update(lines)

    def pytest_sessionfinish(self, session):
        whole = not hasattr(session.config, "workerinput") and named() <= self.executed.keys()
        self.wrong = complaints(self.executed) if whole else []
        if self.wrong:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.wrong:
            terminalreporter.section("tests/equations.yaml is not true", red=True)
            terminalreporter.write_line("\n".join(self.wrong))
