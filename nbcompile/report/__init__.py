"""One self-contained page (and its JSON twin) about what was expanded, trained, fused and exported.

:mod:`~nbcompile.report.data` says what a report holds, :func:`nbcompile.report.html.write` writes the page.
"""
