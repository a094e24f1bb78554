"""Pages of the documentation that commands write: tables in Markdown, and a command's output as a block of a page."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def markdown(rows: list[list[str]]) -> str:
    head, *lines = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def with_block(page: str, block: str, command: str) -> str:
    """The page with `block` in place of the text between the comments that mark the command's output."""
    marked = re.compile(rf"(<!-- begin: {re.escape(command)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if len(marked.findall(page)) != 1:
        raise ValueError(f"the page has no single block between <!-- begin: {command} --> and <!-- end -->")
    return marked.sub(lambda match: f"{match[1]}\n{block.strip()}\n\n{match[2]}", page)
