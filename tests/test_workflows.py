"""The workflow that publishes the book, as far as it can be judged where it cannot run."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
# The inputs of each action, from the action.yml of that version.
INPUTS = {
    "actions/checkout@v4": {"fetch-depth", "ref", "submodules", "lfs"},
    "actions/setup-python@v5": {"python-version", "cache", "cache-dependency-path"},
    "actions/upload-pages-artifact@v3": {"name", "path", "retention-days"},
    "actions/deploy-pages@v4": {"token", "timeout", "error_count", "artifact_name"},
}


@pytest.mark.parametrize(
    "path", list((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem
)
def test_every_step_is_known(path):
    flow = yaml.safe_load(path.read_text("utf-8"))
    assert set(flow) == {
        "name",
        True,
        "permissions",
        "concurrency",
        "jobs",
    }  # YAML reads on as True
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for job in flow["jobs"].values():
        assert set(job) <= {
            *("runs-on", "timeout-minutes", "steps", "needs", "if", "permissions", "environment"),
        }
        assert job.get("needs", "book") in flow["jobs"]
        for step in job["steps"]:
            assert set(step) <= {"id", "uses", "with", "run", "env", "if"}
            assert ("uses" in step) != ("run" in step), step
            if "uses" in step:
                assert set(step.get("with", ())) <= INPUTS[step["uses"]], step
            else:
                assert step["run"].removeprefix("make ") in targets, step


def test_what_is_published_is_what_the_build_writes():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text("utf-8"))
    upload = next(s for s in flow["jobs"]["book"]["steps"] if "pages-artifact" in s.get("uses", ""))
    build = (ROOT / "book" / "_tools" / "build.py").read_text("utf-8")
    assert upload["with"]["path"] == "_build/html" and 'ROOT / "_build" / "html"' in build
    # Publishing needs both rights, and no other job has them.
    assert flow["permissions"] == {"contents": "read"}
    assert flow["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
