"""How nbgrader grades these assignments. Copy this file to the top of your course folder."""

from nbgrader.api import Gradebook
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearOutput,
    DeduplicateIds,
    OverwriteCells,
    OverwriteKernelspec,
)


class MendMetadata(DeduplicateIds):
    """Repair what students' tools do to a notebook, before it is graded.

    A copied cell: nbgrader keeps the last one, but leaves metadata behind that it then rejects.
    Lost metadata: our cell ids are the grade ids, so a cell that kept its id gets it back.
    """

    def preprocess(self, nb, resources):
        nb, resources = super().preprocess(nb, resources)
        for cell in nb.cells:
            if cell.metadata.get("nbgrader") == {}:
                del cell.metadata["nbgrader"]  # an earlier copy: now an ordinary cell
        present = {cell.metadata.get("nbgrader", {}).get("grade_id") for cell in nb.cells}
        lost = {name: data for name, data in _source(resources).items() if name not in present}
        for cell in nb.cells:
            if "nbgrader" not in cell.metadata and cell.get("id") in lost:
                cell.metadata["nbgrader"] = lost.pop(cell["id"])
        return nb, resources


def _source(resources) -> dict[str, dict]:
    """Return the metadata of each cell of the assignment that is being graded."""
    info = resources["nbgrader"]
    with Gradebook(info["db_url"]) as gradebook:
        notebook = gradebook.find_notebook(info["notebook"], info["assignment"])
        points = {cell.name: cell.max_score for cell in notebook.grade_cells}
        points |= {cell.name: cell.max_score for cell in notebook.task_cells}
        grades = {cell.name for cell in notebook.grade_cells}
        solutions = {cell.name for cell in notebook.solution_cells}
        tasks = {cell.name for cell in notebook.task_cells}
        return {
            cell.name: {
                "cell_type": cell.cell_type,
                "checksum": cell.checksum,
                "grade": cell.name in grades,
                "grade_id": cell.name,
                "locked": cell.locked,
                "schema_version": 3,
                "solution": cell.name in solutions,
                "task": cell.name in tasks,
                **({"points": points[cell.name]} if cell.name in points else {}),
            }
            for cell in notebook.source_cells
        }


c = get_config()  # noqa: F821  nbgrader puts it here
c.CourseDirectory.course_id = "minidalle"
c.Autograde.sanitize_preprocessors = [
    ClearOutput,
    MendMetadata,
    OverwriteKernelspec,  # whatever a student's kernel is called, grade with ours
    OverwriteCells,
    CheckCellMetadata,
]
c.OverwriteCells.add_missing_cells = True  # put deleted tests back
c.ExecutePreprocessor.timeout = 120  # seconds a cell; on a free core a whole assignment takes 5
c.ExecutePreprocessor.startup_timeout = 300  # a kernel starts slowly where many are graded at once
c.ExecutePreprocessor.iopub_timeout = 60  # and so does its output come
