"""Plausible mistakes in the templates, each of which the checks of an executed kernel must catch: `mutations.txt`.

A mutation replaces one piece of text in a copy of the templates. The kernel is compiled from that copy and runs its
variant's cases. It is a failure if nothing catches a mutation or a check other than those named does, or if its text
no longer occurs exactly once. If one does not compile, all fail.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from codegen import build, render, variants
from codegen.spec import Spec
from softmax_ops.artifacts.cache import user_cache
from softmax_ops.artifacts.cubin import Cubin
from tests.ptx import Fault
from tests.support import targets
from tests.support.cases import cases
from tests.support.engines import InterpreterEngine
from tests.support.far import judge_far_rows
from tests.support.outcomes import Wrong, judge
from tests.support.targets import Target

pytestmark = pytest.mark.kernels

UNIT_KERNELS = 16
"""Mutated kernels per translation unit. They share nothing but the headers of CuTe and CUDA."""


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

    @property
    def kernel(self) -> str:
        """The name of the mutated kernel."""
        return f"{self.variant}_{re.sub(r'[^a-z0-9]+', '_', self.name.lower())}"

    @property
    def text(self) -> str:
        """The file that it changes."""
        return (render.TEMPLATES / self.file).read_text()


def _parsed(entry: str) -> Mutation:
    """Parses the lines `# name`, `@ file, variant: kind, kind`, `-old`, `+new`."""
    name, place, *lines = entry.strip().splitlines()
    where = re.fullmatch(r"@ (\S+), (\w+): (.+)", place)
    assert where is not None and name.startswith("# "), entry
    old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
    return Mutation(name[2:], where[1], where[2], tuple(where[3].split(", ")), old, new)


MUTATIONS = [_parsed(entry) for entry in Path(__file__).with_name("mutations.txt").read_text().split("\n\n")[1:]]

UNCHANGED = [
    Mutation("nothing", "include/softmax/rows.cuh", variant, (), "#pragma once", "#pragma once")
    for variant in sorted({mutation.variant for mutation in MUTATIONS})
]


def source_of(mutation: Mutation, directory: Path) -> str:
    """The mutated kernel, with a name and a namespace of its own, so that it can share a translation unit."""
    templates = directory / "templates"
    shutil.copytree(render.TEMPLATES, templates)
    (templates / mutation.file).write_text(mutation.text.replace(mutation.old, mutation.new))
    text = render.render(variants.by_name()[mutation.variant], templates).replace(mutation.variant, mutation.kernel)
    others, own = flattened(text, templates / "include")
    return f"{others}\nnamespace of_{mutation.kernel} {{\n{own}\n}}\n"


INCLUDE = re.compile(r"#include <(\S+)>")


def flattened(source: str, include: Path) -> tuple[str, str]:
    """The source with the project's headers pasted in, because the compiler's search path leads to those of the
    checkout; and before it, by itself, the inclusion of all other headers."""
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

    return "\n".join(f"#include <{name}>" for name in others), expanded(source)


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cubin]:
    """Linked PTX of the mutations that this run tests, by the name of the kernel."""
    items = (item for item in request.session.items if item.path == request.path and hasattr(item, "callspec"))
    chosen = [item.callspec.params["mutation"] for item in items]
    applicable = [mutation for mutation in chosen if mutation.text.count(mutation.old) == 1]
    sources = {each.kernel: source_of(each, tmp_path_factory.mktemp("mutated")) for each in applicable}
    wanted = {targets.WHOLE: [*sources]}
    with targets.one_worker(tmp_path_factory.getbasetemp().parent, "mutations"):
        report = build.build_sources(
            sources, wanted, user_cache(), kind="ptx", progress=False, unit_kernels=UNIT_KERNELS
        )
    return {cubin.variant: cubin for cubin in report.cubins}


def engine(mutation: Mutation, compiled: dict[str, Cubin]) -> InterpreterEngine:
    """The mutated kernel under its variant's name, also in the mangled names of its variables, with the length."""
    kernel, variant, cubin = mutation.kernel, mutation.variant, compiled[mutation.kernel]
    text = cubin.code.decode().replace(f"{len(kernel)}{kernel}", f"{len(variant)}{variant}").replace(kernel, variant)
    return InterpreterEngine({variant: replace(cubin, code=text.encode())})


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
def test_mutation_is_caught(mutation: Mutation, compiled: dict[str, Cubin]) -> None:
    found = mutation.text.count(mutation.old)
    assert found == 1, f"{mutation.file} has this {found} times:\n{mutation.old}"
    caught = what_catches(variants.by_name()[mutation.variant], engine(mutation, compiled))
    assert caught in mutation.caught, f"{mutation.name} on {mutation.variant}: caught by {caught}"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> InterpreterEngine:
    chosen = [Target(targets.WHOLE, variants.by_name()[mutation.variant]) for mutation in UNCHANGED]
    return InterpreterEngine(targets.images(chosen, "ptx", tmp_path_factory.getbasetemp().parent)[targets.WHOLE])


@pytest.mark.parametrize("mutation", UNCHANGED, ids=lambda mutation: mutation.variant)
def test_without_a_mutation_nothing_is_caught(
    mutation: Mutation, compiled: dict[str, Cubin], shipped: InterpreterEngine
) -> None:
    """The kernel is the one that ships, instruction by instruction, whose cases are those of test_kernels.py."""
    spec = variants.by_name()[mutation.variant]
    copy, original = engine(mutation, compiled).program(spec.name), shipped.program(spec.name)
    assert [each.text for each in copy.instructions] == [each.text for each in original.instructions]
    if not spec.flat:
        judge_far_rows(spec, shipped)
