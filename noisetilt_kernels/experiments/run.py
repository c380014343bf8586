"""Execution of an experiment into its folder."""

from pathlib import Path

from ..runs.comparison import check, check_folders, compare
from ..runs.comparison_folder import folder_name
from ..runs.entry import runs_of
from ..runs.folder import read_results
from ..runs.settings import ComputeOptions
from ..runs.table import Row, tabulate
from ..runs.workers import SINGLE_PROCESS, Workers
from .report import Table, write_report
from .spec import Experiment, ExperimentComparison


def check_experiment(experiment: Experiment, compute: ComputeOptions, out: Path, resume: bool) -> None:
    """Raise the errors of `run_experiment` that need no model, before any work."""
    for one in experiment.comparisons:
        runs = check(one.settings, one.comparison, compute)
        check_folders(runs, out / one.name, resume)


def run_experiment(
    experiment: Experiment,
    compute: ComputeOptions,
    out: Path,
    *,
    resume: bool = False,
    workers: Workers = SINGLE_PROCESS,
) -> list[Table]:
    """Run the comparisons of an experiment, each into a subfolder, and write the report after each.

    Args:
        experiment: the experiment.
        compute: how to compute it.
        out: folder of the experiment.
        resume: continue the comparisons in the folder.
        workers: processes. Each of them calls this function; the first one writes the report.

    Returns:
        The tables.

    Raises:
        Errors of `runs.comparison.compare`.
    """
    tables = read_tables(experiment, out) if resume else []
    for number, one in enumerate(experiment.comparisons):
        if tables and tables[number].complete and (out / one.name / "table.md").exists():
            continue
        compare(one.settings, one.comparison, compute, out / one.name, resume=resume, workers=workers)
        if workers.is_first:
            write_report(experiment, read_tables(experiment, out), out)
        workers.wait()
    return read_tables(experiment, out)


def read_tables(experiment: Experiment, out: Path) -> list[Table]:
    """Return the tables of an experiment from the images that are finished, also while it runs.

    Raises:
        RunFolderError: a folder holds a run with other settings.
    """
    return [_read_table(one, out / one.name) for one in experiment.comparisons]


def _read_table(one: ExperimentComparison, folder: Path) -> Table:
    entries = [row.entry for row in one.methods]
    settings = one.settings
    results = {
        method: read_results(folder / folder_name(method), run.to_json())
        for method, run in runs_of(settings, entries).items()
    }
    rows: list[Row] = tabulate(results, entries, settings.count_of_round, settings.score_names)
    return Table(one, tuple(rows), folder)
