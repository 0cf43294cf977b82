"""The `report` verb: one self-contained page, and its plots as files.

OUTPUT/index.html           the page: no script or picture of it comes from elsewhere
OUTPUT/plots/NAME.png, .svg
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import jinja2

from jina_jax.report.comparison_section import comparison_section
from jina_jax.report.data_section import data_section
from jina_jax.report.evaluation_section import ablation_section, evaluation_section, summary
from jina_jax.report.facts import RunFacts, read_ablation, read_facts, with_earlier_phases
from jina_jax.report.parts import SERIES, Group, Plot, Section, inline_svg, write_files
from jina_jax.report.setup_section import setup_section
from jina_jax.report.training_section import training_section
from jina_jax.system.atomic import write_atomically
from jina_jax.system.workspace import check_writable

PAGE_FILE = "index.html"
PLOTS_FOLDER = "plots"


def write_report(run_paths: Sequence[Path], ablation_paths: Sequence[Path], output: Path) -> Path:
    """Writes the page of one run with its earlier phases, or of several side by side.

    Args:
      run_paths: folders of runs.
      ablation_paths: work folders of ablations, shown after them.
      output: folder to write into; what an earlier report left there is replaced.
    Returns: path of the page.
    Raises: UserError naming a folder that is no run or no ablation.
    """
    runs = [read_facts(path) for path in run_paths]
    check_writable(output)
    sections = [comparison_section(runs)] if len(runs) > 1 else []
    if len(runs) == 1:
        runs = with_earlier_phases(runs[0])
    sections += [
        section for n, run in enumerate(runs, 1) for section in _chapters(run, n, len(runs))
    ]
    reports = [read_ablation(path) for path in ablation_paths]
    sections += [ablation_section(report, f"ablation-{n}") for n, report in enumerate(reports, 1)]
    if runs:
        sections.append(setup_section(runs))
    title = (runs[-1].name if len(run_paths) == 1 else " and ".join(run.name for run in runs)) or (
        " and ".join(report.name for report in reports)
    )
    _write_plots(sections, output / PLOTS_FOLDER)
    write_atomically(output / PAGE_FILE, page(title, summary(runs), sections).encode())
    return output / PAGE_FILE


def _chapters(run: RunFacts, number: int, count: int) -> list[Section]:
    """The chapters of a run, with its name where there are several."""
    of = f": {run.name}" if count > 1 else ""
    key = f"-{number}" if count > 1 else ""
    chapters = (
        data_section(run, f"data{key}", f"Data{of}"),
        training_section(run, f"training{key}", f"Training{of}"),
        evaluation_section(run, f"evaluation{key}", f"Evaluation{of}"),
    )
    return [section for section in chapters if section is not None]


def _write_plots(sections: Sequence[Section], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = (part for section in sections for group in section.groups for part in group.parts)
    for part in parts:
        if isinstance(part, Plot):
            write_files(part, folder)


def page(title: str, glance: Sequence[Group], sections: Sequence[Section]) -> str:
    """The page as HTML.

    Args:
      title: of the page.
      glance: tiles at its top.
      sections: below each other, each a line of the table of contents.
    """
    # Everything that is put into the page is escaped, but for pictures that are made here.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jina_jax.report", ""),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=title, glance=glance, sections=sections, series=len(SERIES),
        kind=lambda part: type(part).__name__, svg=inline_svg,
    )  # fmt: skip
