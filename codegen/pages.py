"""Pages of the documentation that commands write: tables in Markdown, and a command's output as a block of a page."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"


def markdown(rows: list[list[str]]) -> str:
    head, *lines = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def svg(size: tuple[float, float], style: dict[Any, Any], fill: Callable[[Any], None]) -> str:
    """A picture of `size` inches that `fill` draws on a Matplotlib figure: the same text every time."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "softmax_ops", "svg.fonttype": "none", "font.size": 9})
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=size)
        fill(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def with_block(page: str, block: str, command: str) -> str:
    """The page with `block` in place of the text between the comments that mark the command's output."""
    marked = re.compile(rf"(<!-- begin: {re.escape(command)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if len(marked.findall(page)) != 1:
        raise ValueError(f"the page has no single block between <!-- begin: {command} --> and <!-- end -->")
    return marked.sub(lambda match: f"{match[1]}\n{block.strip()}\n\n{match[2]}", page)
