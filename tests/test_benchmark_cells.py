"""What the benchmark measures, without a GPU: cells, tensors and references; a provider's mistake is detected."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import correctness, quack_objects, tensors
from benchmarks.cells import ASKS, CORE, OVER_2_31, QUICK, Cell, cells
from benchmarks.providers import UNMASKED, Provider, every, liger, ours, quack, torch_chain
from benchmarks.tensors import Tensors

# ---- cells

PROMISED = {
    *((147456, 384), (262144, 512), (98304, 1024), (24576, 2048), (65536, 4096), (65536, 8192)),
    *((605184, 197), (590848, 577), (480000, 1500), (524288, 512), (262144, 256)),
    *((512, 8192), (64, 131072), (2048, 131072)),
    *((rows, k) for rows in (1, 8, 64, 1024) for k in (32000, 50257, 128256, 151936, 256000)),
}


def test_the_matrix_holds_what_was_promised() -> None:
    found = cells()
    assert {(cell.rows, cell.k) for cell in found} >= PROMISED
    swept: dict[tuple[str, str], set[int]] = {(cell.direction, cell.dtype): set() for cell in found}
    for cell in found:
        if cell.case == "sweep":
            swept[cell.direction, cell.dtype].add(cell.k)
    powers = [2**power for power in range(4, 19)]
    assert all(of >= {k + step for k in powers for step in (-1, 0, 1)} for of in swept.values())
    assert max(cell.elements for cell in found) > 2**31
    assert {cell.mask for cell in found} == {"none", "causal", "padding", "bool", "like", "bias"}
    assert {cell.asks for cell in found} == {"", *ASKS}
    assert len({cell.key for cell in found}) == len(found)


def test_the_first_cells_are_a_picture_of_all() -> None:
    core = cells()[:CORE]
    assert {cell.mask for cell in core} == {cell.mask for cell in cells()}
    assert {cell.dtype for cell in core} == {"f16", "bf16", "f32"}
    assert not any(cell.asks for cell in core)
    quick = core[:QUICK]
    assert {cell.direction for cell in quick} == {"fwd", "bwd"}
    assert {"none", "causal", "padding", "bool", "bias"} <= {cell.mask for cell in quick}
    assert any(not cell.aligned for cell in quick)


@pytest.mark.parametrize("queries, k", [(4, 4), (2, 5), (5, 3)])
def test_visible_scores_are_those_of_the_mask(queries: int, k: int) -> None:
    cell = Cell("", (2, 3, queries, k), "f16", "causal")
    shown = ~tensors.later(cell, (slice(None),) * 3, torch.device("cpu"))
    assert cell.visible == 6 * shown.sum().item() == 6 * torch.ones(queries, k).tril(k - queries).sum().item()
    assert cell.bytes == 2 * (cell.visible + cell.elements)


def test_bytes_of_masks_and_of_the_backward() -> None:
    shape = (2, 3, 5, 8)
    assert Cell("", shape, "f16").bytes == 4 * 240
    assert Cell("", shape, "f32", "none", "bwd").bytes == 12 * 240
    assert Cell("", shape, "f16", "padding").bytes == 4 * 240 + 16
    assert Cell("", shape, "f16", "bool").bytes == 4 * 240 + 80
    assert Cell("", shape, "f16", "like").bytes == 4 * 240 + 2 * 40
    assert Cell("", shape, "f32", "bias").bytes == 8 * 240 + 4 * 120


def test_keys_and_bytes_of_what_is_asked() -> None:
    shape = (2, 3, 5, 8)
    assert Cell("c", shape, "f16").key == "c|2x3x5x8|f16|none|fwd"
    assert Cell("c", shape, "f16", asks="f32").key == "c|2x3x5x8|f16|none|fwd|f32"
    assert Cell("", shape, "bf16", asks="f32").bytes == Cell("", shape, "bf16", asks="f32").full_bytes == 6 * 240
    assert Cell("", shape, "bf16", asks="temperature").bytes == 6 * 240 + 4 * 30
    assert Cell("", shape, "f32", direction="bwd", asks="log").bytes == 12 * 240
    lengths = Cell("", shape, "f16", asks="lengths")
    (made,) = tensors.make(lengths, "cpu", 1, seed=0)
    assert made.lengths is not None and lengths.visible == 3 * 5 * made.lengths.sum().item() == 240 / 2
    assert (lengths.bytes, lengths.full_bytes) == (2 * 120 + 2 * 240 + 2 * 4, 4 * 240)


def test_rotation_exceeds_the_cache() -> None:
    cell = Cell("", (1, 1, 1, 256000), "f32")
    assert tensors.sets_of(cell, 60 << 20) * cell.full_bytes >= 256 << 20
    assert tensors.sets_of(cell, 200 << 20) * cell.full_bytes >= 600 << 20
    assert tensors.sets_of(Cell("", OVER_2_31, "f16"), 60 << 20) == 1


@pytest.mark.parametrize("limit", [1, 16, 33, 80, 10**6])
def test_blocks_cover_a_tensor_once(limit: int) -> None:
    seen = torch.zeros(3, 2, 5, 16)
    for place in tensors.blocks((3, 2, 5, 16), limit):
        seen[place] += 1
        assert seen[place].numel() <= max(limit, 16)
    assert torch.equal(seen, torch.ones_like(seen))


# ---- right and wrong

CHECKED = [
    *(Cell("", (2, 3, 5, 33), dtype, mask) for dtype in ("f16", "f32") for mask in ("none", "causal", "padding")),
    *(Cell("", (2, 3, 5, 33), "bf16", mask) for mask in ("bool", "like", "bias")),
    *(Cell("", (2, 3, 5, 33), "f16", mask, "bwd") for mask in ("none", "causal")),
]
ASKING = [
    *(Cell("", (2, 3, 5, 33), dtype, asks=asks) for dtype in ("f16", "bf16") for asks in ("f32", "temperature")),
    Cell("", (2, 3, 5, 33), "f16", asks="lengths"),
    *(Cell("", (2, 3, 5, 33), "f32", direction=direction, asks="log") for direction in ("fwd", "bwd")),
]
TAKEN = [
    (one, cell)
    for one in (ours.PROVIDER, *torch_chain.PROVIDERS[:2])
    for cell in CHECKED + ASKING
    if not one.refuses(cell)
]


def worst(cell: Cell, made: Tensors, result: Tensor, plain: bool = False) -> float:
    (error,) = correctness.worst(cell, made, [result], plain)
    return error


def result_of(one: Provider, cell: Cell, made: Tensors) -> Tensor:
    return one.prepare(cell)(made)


@pytest.mark.parametrize(("one", "cell"), TAKEN, ids=lambda each: each.key if isinstance(each, Cell) else each.name)
def test_providers_are_right_and_a_flaw_is_seen(one: Provider, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several blocks. An error of a few units in the last place of the largest number is too much."""
    monkeypatch.setattr(tensors.blocks, "__defaults__", (100,))
    (made,) = tensors.make(cell, "cpu", 1, seed=1)
    result = result_of(one, cell, made)
    assert worst(cell, made, result, one.plain) <= one.allowed
    place = result.abs().argmax()
    result.view(-1)[place] *= 1 + 4 * one.allowed * max(correctness.UNIT[cell.dtype], 2.0**-18)
    assert worst(cell, made, result, one.plain) > one.allowed
    result.view(-1)[place] = torch.nan
    assert worst(cell, made, result, one.plain) == correctness.HOPELESS


def test_a_mask_that_is_ignored_is_seen() -> None:
    for cell in CHECKED:
        if cell.mask != "none" and cell.direction == "fwd":
            (made,) = tensors.make(cell, "cpu", 1, seed=2)
            unmasked = replace(made, mask=None, bias=None, causal=False)
            result = result_of(torch_chain.PROVIDERS[0], replace(cell, mask="none"), unmasked)
            assert worst(cell, made, result) > 16


@pytest.mark.parametrize("cell", ASKING, ids=lambda cell: cell.key)
def test_what_is_asked_and_ignored_is_seen(cell: Cell) -> None:
    (made,) = tensors.make(cell, "cpu", 1, seed=2)
    plain = replace(made, scales=None, lengths=None)
    result = result_of(torch_chain.PROVIDERS[0], replace(cell, asks=""), plain)
    assert worst(cell, made, result) > 16


@pytest.mark.parametrize("cell", CHECKED, ids=lambda cell: cell.key)
def test_ours_unmasked_stands_beside_what_a_goal_compares_with_it(cell: Cell) -> None:
    """It computes the softmax of the same scores, whatever the mask."""
    one = ours.UNMASKED_PROVIDER
    compared = ("padding", "bool", "bias") if cell.direction == "fwd" else ("causal",)
    assert (one.refuses(cell) is None) == (cell.mask in compared)
    (made,) = tensors.make(cell, "cpu", 1, seed=2)
    assert worst(cell, made, result_of(one, cell, made), one.plain) <= 1


@pytest.mark.parametrize("asks", ASKS)
def test_peers_say_what_they_lack(asks: str) -> None:
    cell = Cell("", (1, 1, 4, 64), "f16", asks=asks)
    refusing = {one.name: why for one in every() if one.name != UNMASKED and (why := one.refuses(cell))}
    assert set(refusing) == {"torch.softmax", "triton", "liger", "quack"}
    assert all(ASKS[asks] in why for why in refusing.values())


def test_limits_of_peers() -> None:
    cell = Cell("", (1, 1, 4, 1004), "f16")
    quack = quack_objects.refuses
    assert quack(cell) and not quack(replace(cell, dtype="f32"))
    assert liger.refuses(Cell("", (1, 1, 1, 65537), "f16")) and not liger.refuses(Cell("", (1, 1, 1, 65536), "f16"))


def test_quack_from_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If QuACK is not installed, a library built elsewhere serves the lengths that it contains."""
    monkeypatch.setattr(quack, "find_spec", lambda name: None if name == "quack" else object())
    monkeypatch.setattr(quack_objects, "LIBRARY", tmp_path / "none.so")
    assert "python -m benchmarks quack" in str(quack.absent())
    (tmp_path / "none.so").touch()
    assert quack.absent() is None
    called: list[torch.Size] = []
    functions = {"quack_bwd_f16_16": lambda *tensors: called.extend(tensor.shape for tensor in tensors)}
    monkeypatch.setattr(quack_objects, "load", lambda: functions.get)
    cell = Cell("", (2, 3, 5, 16), "f16", "none", "bwd")
    (made,) = tensors.make(cell, "cpu", 1, seed=0)
    assert quack.prepare(cell)(made) is made.out and called == [torch.Size((30, 16))] * 3
    with pytest.raises(LookupError, match="quack_fwd_f16_16"):
        quack.prepare(replace(cell, direction="fwd"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("program", "interpret"), [("triton_interpreted.py", "1"), ("triton_compiled.py", "0")])
def test_triton_kernels(program: str, interpret: str) -> None:
    """In a separate process, because the decorators read the variable when the module is imported."""
    command = [sys.executable, str(Path(__file__).parent / "support" / program)]
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
