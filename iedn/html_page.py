"""What the HTML pages of a site and of the coordinator share: their look, and pictures inside them.

A page is one file: style and pictures are in it, and it asks no network for anything.
"""

import base64
import io

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a5195", "#6b7280")
"""Told apart with any colour vision (Okabe and Ito), and in this order by every figure."""
MARKERS = "osD^vPX*"
GREY, PALE = "#6b7280", "#e5e7eb"


def page_environment(package: str) -> Environment:
    """Templates of a package, with the shared ``page.html.j2``; text is escaped."""
    loader = ChoiceLoader([PackageLoader(package, "templates"), PackageLoader("iedn", "templates")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = number
    return environment


def figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def drawing(made: Figure) -> Markup:
    """The figure as the address of an image inside the page (SVG)."""
    tidy(made)
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "iedn"}):  # the same numbers give the same file
        made.savefig(stream, format="svg", metadata={"Date": None})
    return _address("image/svg+xml", stream.getvalue())


def tidy(made: Figure) -> None:
    """No frame but the axes, and a pale grid behind the numbers."""
    for axes in made.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.grid(visible=True, color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)


def picture(png: bytes) -> Markup:
    """A PNG as the address of an image inside the page."""
    return _address("image/png", png)


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """A number with fixed digits, and a true minus sign; a dash for none."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _address(kind: str, content: bytes) -> Markup:
    encoded = base64.b64encode(content).decode()
    return Markup(f"data:{kind};base64,{encoded}")  # noqa: S704  (base64 needs no escaping)
