"""Plausible mistakes in the templates, each of which the checks of an executed kernel must catch: `mutations.txt`.

A mutation replaces one piece of text in a copy of the templates. The kernel is compiled from that copy and runs its
variant's cases. It is a failure if nothing catches a mutation or a check other than those named does, if it does not
compile, or if its text no longer occurs exactly once.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda.bindings import nvrtc

from codegen import render, toolchain, variants
from codegen.spec import Spec
from tests.ptx import Fault
from tests.support import targets
from tests.support.cases import cases
from tests.support.engines import InterpreterEngine
from tests.support.far import judge_far_rows
from tests.support.outcomes import Wrong, judge
from tests.support.targets import Target

pytestmark = pytest.mark.kernels

PRECOMPILED = 1 << 29
"""Bytes for the precompiled header, more than CuTe takes."""


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in a file of templates/; `variant` must then raise Wrong or Fault of a kind in `caught`."""

    name: str
    file: str
    variant: str
    caught: tuple[str, ...]
    old: str
    new: str

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def _parsed(entry: str) -> Mutation:
    """Parses the lines `# name`, `@ file, variant: kind, kind`, `-old`, `+new`."""
    name, place, *lines = entry.strip().splitlines()
    where = re.fullmatch(r"@ (\S+), (\w+): (.+)", place)
    assert where is not None and name.startswith("# "), entry
    old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
    return Mutation(name[2:], where[1], where[2], tuple(where[3].split(", ")), old, new)


MUTATIONS = [_parsed(entry) for entry in Path(__file__).with_name("mutations.txt").read_text().split("\n\n")[1:]]


def mutated(mutation: Mutation, directory: Path) -> Path:
    """A copy of the templates with the mutation applied."""
    templates = directory / "templates"
    shutil.copytree(render.TEMPLATES, templates)
    path = templates / mutation.file
    text = path.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.file} has this {text.count(mutation.old)} times:\n{mutation.old}"
    path.write_text(text.replace(mutation.old, mutation.new))
    return templates


INCLUDE = re.compile(r"#include <(\S+)>")


def flattened(source: str, include: Path) -> str:
    """The source with the project's headers pasted in, because the compiler's search path leads to those of the
    checkout. It begins with all other headers, like that of every other mutation."""
    pasted: set[str] = set()
    headers = {path.relative_to(include).as_posix(): path.read_text() for path in include.glob("softmax/*.cuh")}
    others = sorted({name for text in headers.values() for name in INCLUDE.findall(text)} - {*headers})

    def paste(match: re.Match) -> str:
        if match[1] in pasted or match[1] in others:
            return ""
        pasted.add(match[1])
        return expanded(headers[match[1]].replace("#pragma once", ""))

    def expanded(text: str) -> str:
        return INCLUDE.sub(paste, text)

    return "\n".join([*(f"#include <{name}>" for name in others), "#pragma nv_hdrstop", expanded(source)])


@pytest.fixture(scope="module")
def precompiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This process's folder for the precompiled header of that common beginning, with a heap of the size above."""
    toolchain._check(nvrtc.nvrtcSetPCHHeapSize(PRECOMPILED))
    folder = tmp_path_factory.mktemp("precompiled")
    yield folder
    shutil.rmtree(folder)


def engine(spec: Spec, templates: Path, precompiled: Path) -> InterpreterEngine:
    source = flattened(render.render(spec, templates), templates / "include")
    options = (*toolchain._KIND_OPTIONS["ptx"], "-pch", f"-pch-dir={precompiled}", "-pch-messages=false")
    ir = toolchain._front_end(source, toolchain.family(targets.WHOLE), options)
    return InterpreterEngine({spec.name: toolchain._cubin(spec.name, source, targets.WHOLE, "ptx", ir)})


def what_catches(spec: Spec, interpreter: InterpreterEngine) -> str:
    """The kind of the first failed check; "nothing" if the variant passes them all."""
    try:
        for case in cases(spec):
            call = case.call()
            judge(call, interpreter.run(call.plan, call.operands))
        if not spec.flat:
            judge_far_rows(spec, interpreter)
    except (Wrong, Fault) as failure:
        return failure.kind
    return "nothing"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_mutation_is_caught(mutation: Mutation, tmp_path: Path, precompiled: Path) -> None:
    spec = variants.by_name()[mutation.variant]
    caught = what_catches(spec, engine(spec, mutated(mutation, tmp_path), precompiled))
    assert caught in mutation.caught, f"{mutation.name} on {mutation.variant}: caught by {caught}"


VARIANTS = sorted({mutation.variant for mutation in MUTATIONS})


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> InterpreterEngine:
    specs = [variants.by_name()[variant] for variant in VARIANTS]
    chosen = [Target(targets.WHOLE, spec) for spec in specs]
    return InterpreterEngine(targets.images(chosen, "ptx", tmp_path_factory.getbasetemp().parent)[targets.WHOLE])


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_mutation_nothing_is_caught(variant: str, shipped: InterpreterEngine, precompiled: Path) -> None:
    """The kernel is the one that ships, instruction by instruction, whose cases are those of test_kernels.py."""
    spec = variants.by_name()[variant]
    copy = engine(spec, render.TEMPLATES, precompiled).program(variant)
    assert [each.text for each in copy.instructions] == [each.text for each in shipped.program(variant).instructions]
    if not spec.flat:
        judge_far_rows(spec, shipped)
