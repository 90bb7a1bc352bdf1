"""Which page a run gets: its experiment's own, or one made of whatever its run file holds."""

from experiments.report import ablation_page, alignment_page, nightly_page
from experiments.report.page import Page
from experiments.report.run_file import RunFile

PAGES = {"nightly": nightly_page.page, "precision_ablation": ablation_page.page}
"""Experiment -> its page; an alignment's serves every other."""


def page(run: RunFile) -> Page:
    return PAGES.get(run.experiment, alignment_page.page)(run)
