"""Execution of an experiment into its folder."""

import gc
from pathlib import Path

import torch

from ..runs.comparison import check, check_folders, check_latents, compare
from ..runs.settings import ComputeOptions, Settings
from ..runs.workers import SINGLE_PROCESS, Workers
from .report import Table, read_tables, write_report
from .spec import Experiment


def check_experiment(
    experiment: Experiment, compute: ComputeOptions, out: Path | None, resume: bool
) -> list[list[Settings]]:
    """Raise the errors of `run_experiment` that need no weights, before any work.

    Without `out`, folders are not checked.

    Returns:
        The runs of each comparison.
    """
    runs = []
    for one in experiment.comparisons:
        own = check(one.settings, one.comparison, compute)
        check_latents(one.settings, own)
        if out is not None:
            check_folders(own, out / one.name, resume)
        runs.append(list(own.values()))
    return runs


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
    before = read_tables(experiment, out) if resume else []
    carried_out = {table.spec.name for table in before if table.carried_out}
    left = [one for one in experiment.comparisons if one.name not in carried_out]
    workers.wait()
    for one in left:
        compare(one.settings, one.comparison, compute, out / one.name, resume=resume, workers=workers)
        # networks with recomputed blocks refer to themselves: free them before the next comparison loads
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if workers.is_first:
            write_report(experiment, read_tables(experiment, out), out)
        workers.wait()
    tables = read_tables(experiment, out)
    if workers.is_first and not left:  # an earlier call may have been stopped while it wrote the report
        write_report(experiment, tables, out)
    return tables
