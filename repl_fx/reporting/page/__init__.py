"""The HTML page of a report; it needs the libraries of the extra `report`."""

from repl_fx.reporting.page.page import render_page

__all__ = ["render_page"]
