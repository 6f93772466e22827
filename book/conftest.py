"""What nbval ran, the book shows: a notebook that passed goes to the cache of its pages."""

from __future__ import annotations

import os
import time

import nbformat
import pytest
from build import CACHE, missing_package, open_cache
from filelock import FileLock
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete
from nbval.plugin import IPyNbCell
from store_outputs import DRAWING


class Recorder:
    """Listens to what a kernel tells nbval, and writes it down as nbclient would."""

    def __init__(self, file):
        self.path = file.path
        self.nb = nbformat.read(file.path, as_version=4)
        self.cells = [(i, c) for i, c in enumerate(self.nb.cells) if c.cell_type == "code"]
        for _, cell in self.cells:
            cell.outputs = []
        self.client = NotebookClient(self.nb, record_timing=False)
        self.client.reset_execution_trackers()
        self.client.clear_before_next_output = False
        self.passed, self.start = 0, time.perf_counter()
        self.receive, file.get_kernel_message = file.get_kernel_message, self.listen

    def listen(self, *args, **options):
        message = self.receive(*args, **options)
        index, cell = self.cells[self.passed]
        try:
            self.client.process_message(message, cell, index)
        except CellExecutionComplete:
            pass
        return without_drawing(message)

    def keep(self):
        self.client.set_widgets_metadata()
        seconds = time.perf_counter() - self.start
        bundle = CacheBundleIn(self.nb, str(self.path), data={"execution_seconds": seconds})
        with FileLock(CACHE / ".lock"):
            open_cache().cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def without_drawing(message):
    """As nbval compares it: a drawing's words, not its HTML, which is not stored."""
    content = message.get("content", {})
    html = content.get("data", {}).get("text/html", "")
    if not html.startswith(DRAWING):
        return message
    data = {kind: text for kind, text in content["data"].items() if kind != "text/html"}
    return {**message, "content": {**content, "data": data}}


def pytest_configure(config):
    if getattr(config.option, "nbval", False) and not hasattr(config, "workerinput"):
        open_cache()  # what is stale goes before the test processes start


def pytest_collection_modifyitems(items):
    """A notebook whose package is missing is skipped; in CI it never is."""
    for path in {i.path for i in items if isinstance(i, IPyNbCell)}:
        missing = missing_package(nbformat.read(path, as_version=4))
        if missing and not os.environ.get("CI"):
            mark = pytest.mark.skip(reason=f"{path.name} needs the package {missing}")
            for item in (i for i in items if i.path == path):
                item.add_marker(mark)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not isinstance(item, IPyNbCell):
        return (yield)
    if not hasattr(item.parent, "recorder"):
        item.parent.recorder = Recorder(item.parent)
    recorder = item.parent.recorder
    if item.cell_num != recorder.passed:  # a cell was skipped, failed or not chosen
        return (yield)
    result = yield
    recorder.passed += 1
    if recorder.passed == len(recorder.cells):
        recorder.keep()
    return result
