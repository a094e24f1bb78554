"""The documentation's programs run, on the CPU instead of "cuda"; those that need a GPU must at least parse.

On the CPU, 512 rows or queries are reduced to 32: random numbers and softmax of 33 million scores would take 12 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

CHECKOUT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in CHECKOUT.glob("docs/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)\)")


def blocks(page: str) -> Iterator[tuple[int, str]]:
    """Line number and text of a page's python blocks."""
    text = (CHECKOUT / page).read_text()
    for block in FENCE.finditer(text):
        if block[1] == "python":
            yield text.count("\n", 0, block.start()) + 1, block[2]


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in (CHECKOUT / page).read_text()])
def test_programs_run(page: str) -> None:
    """Runs a page from top to bottom, each block after the previous ones."""
    torch._dynamo.reset()
    names: dict[str, Any] = {"__name__": page}
    gpu = torch.cuda.is_available()
    found = list(blocks(page))
    assert len(found) == (CHECKOUT / page).read_text().count("```python")
    for line, source in found:
        on_device = source if gpu else source.replace('"cuda"', '"cpu"').replace("512", "32")
        program = compile("\n" * line + on_device, page, "exec")
        if gpu or "torch.cuda." not in source:
            exec(program, names)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall(FENCE.sub("", (CHECKOUT / page).read_text())):
        assert "://" in target or ((CHECKOUT / page).parent / target).exists(), target


def test_every_test_file_has_a_layer() -> None:
    """A file of tests, or a pattern that it matches, stands in the table of docs/testing.md."""
    patterns = re.findall(r"`(test_\w+\*?\.py)`", (CHECKOUT / "docs/testing.md").read_text())
    names = {path.name for path in CHECKOUT.glob("tests/test_*.py")}
    assert {name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)} == set()
    assert {pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)} == set()
