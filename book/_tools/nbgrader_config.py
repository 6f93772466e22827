"""Settings of nbgrader for the course that student.py lays out; run `nbgrader` in its folder."""

from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearOutput,
    DeduplicateIds,
    NbGraderPreprocessor,
    OverwriteCells,
    OverwriteKernelspec,
)


class KeepExercises(NbGraderPreprocessor):
    """Only answers and checks are run: they need nothing else, and a chapter takes a minute."""

    def preprocess(self, nb, resources):
        nb.cells = [cell for cell in nb.cells if "nbgrader" in cell.metadata]
        return nb, resources


c = get_config()  # noqa: F821  nbgrader runs this file with it
c.CourseDirectory.course_id = "minq"
c.Autograde.sanitize_preprocessors = [
    ClearOutput,
    DeduplicateIds,
    OverwriteKernelspec,
    OverwriteCells,  # checks are what they were handed out as
    KeepExercises,
    CheckCellMetadata,
]
c.ExecutePreprocessor.timeout = 60  # seconds a cell
c.ClearSolutions.enforce_metadata = False
