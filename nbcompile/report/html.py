"""Renders a report as one HTML file: no script, nothing loaded from elsewhere, light and dark."""

from pathlib import Path

from nbcompile.core.errors import missing_extra
from nbcompile.core.files import atomic
from nbcompile.core.progress import step
from nbcompile.report.curves import draw_curves
from nbcompile.report.data import Page
from nbcompile.report.drawing import draw_graph
from nbcompile.report.memory_map import draw_memory
from nbcompile.report.summary import summary
from nbcompile.results import numbers
from nbcompile.results.device import busiest, first_out_of_band, verdict


@step("drawing the report")
def render_page(report: Page) -> str:
    """The page as a string.

    Raises:
        UsageError: if jinja2 is not installed, or matplotlib where there are training curves to draw.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise missing_extra("train", "writing a report", "jinja2") from error

    environment = Environment(
        loader=PackageLoader("nbcompile.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    forms = (
        numbers.count,
        numbers.percent,
        numbers.ratio,
        numbers.bytes_in_unit,
        numbers.exact,
        numbers.decibels,
        numbers.small,
    )
    environment.filters |= {form.__name__: form for form in forms}
    environment.filters["verdict"] = verdict
    return environment.get_template("report.html.j2").render(
        report=report,
        summary=summary(report),
        has={
            column: any(getattr(row, column) is not None for row in report.models)
            for column in ("accuracy", "bytes", "latency")
        },
        failed=sum(not check.passed for check in report.checks),
        curves=draw_curves(report.runs),
        graphs=[(graph, draw_graph(graph)) for graph in report.graphs],
        devices=[
            (one, draw_memory(one), busiest(one.tensors) if one.tensors else None, first_out_of_band(one.layers))
            for one in report.devices
        ],
        dash=numbers.DASH,
    )


def write(report: Page, path: str | Path) -> None:
    """Writes the page to ``path``, which holds the old bytes or the complete new ones, never half a page.

    Raises:
        UsageError: if the folder is missing or not writable, or a package is missing (see :func:`render_page`).
    """
    page = render_page(report)
    with atomic(Path(path)) as temporary:
        Path(temporary).write_text(page, encoding="utf-8", errors="backslashreplace")  # names may be no Unicode
