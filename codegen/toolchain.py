"""Source -> LTO IR -> cubin and PTX. The only importer of NVRTC and nvJitLink.

CuTe under NVRTC leaves about 1,300 constants in a plain cubin. Compiling to LTO IR and linking with pruning leaves the
kernel: 8 to 40 KB instead of 200 to 300. One front-end run serves every kernel of a translation unit and every
architecture of a family.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from cuda.bindings import nvjitlink, nvrtc
from cuda.pathfinder import find_nvidia_header_directory

from softmax_ops.artifacts.cubin import Cubin

from .sources import Headers, project_headers, project_headers_changed, source_digest
from .variants import ARCHITECTURES

SCHEMA = 1
"""Raised when the meaning of a fingerprint's ingredients changes."""

DEFAULT_ARCHITECTURE = "sm_90"
"""The architecture to build for if none is named and there is no GPU."""

_FAMILIES = (70, 75, 80, 90, 100, 103, 120)
"""Front-end targets: the LTO IR of compute_N links for every architecture from N up to the next one in this list."""

_COMPILE_OPTIONS = ("-std=c++17", "-default-device", "-dlto", "-rdc=true")
_LINK_OPTIONS = ("-lto", "-optimize-unused-variables", "-verbose")
_KIND_OPTIONS = {"cubin": (), "ptx": ("-lineinfo",)}
"""Line numbers serve the readers of the PTX; in a cubin they would take four times the space of the code."""


_DEPRECATION = re.compile(r"nvrtc: warning: Architectures prior to .* are deprecated.*\n?")
"""Printed for sm_70 whatever the options; everything else in NVRTC's log fails the build."""


class ToolchainError(RuntimeError):
    """The toolchain is incomplete, lacks an architecture, or refused a source."""


class Spills(ToolchainError):
    """A kernel needs more registers than its budget. Arguments: its name, the architecture, ptxas's report."""

    def __str__(self) -> str:
        variant, arch, report = self.args
        return f"{variant} for {arch} spills registers:\n{report}"


@cache
def headers() -> tuple[Headers, ...]:
    """The include directories in search order. Raises ToolchainError naming the package of a missing one."""
    found = [project_headers()]
    for name, package in (
        ("cutlass", "nvidia-cutlass"),
        ("cudart", "nvidia-cuda-runtime"),
        ("cccl", "nvidia-cuda-cccl"),
    ):
        root = find_nvidia_header_directory(name)
        if root is None:
            raise ToolchainError(f"The headers of {package} are missing: install the toolchain with `make generate`.")
        found.append(Headers(package, Path(root)))
    return tuple(found)


@cache
def compiler_build() -> str:
    """Version and build ID of compiler and linker, from the PTX that each of them writes for an empty kernel.

    A version number alone is not enough: packages of one version can contain different builds.
    """
    compute = family(supported_architectures()[0])
    probe = 'extern "C" __global__ void probe() {}'
    compiled = _compile(probe, [f"-arch=compute_{compute}"], nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    linked = _link(_front_end(probe, compute), f"sm_{compute}", "probe", "ptx").code
    return f"NVRTC {_build(compiled)}, nvJitLink {_build(linked)}"


def _build(ptx: bytes) -> str:
    build = re.search(rb"Compiler Build ID: (\S+)", ptx)
    release = re.search(rb"release [\d.]+, (V[\d.]+)", ptx)
    if build is None or release is None:
        raise ToolchainError("The compiler does not state its build in the PTX that it writes; fingerprints need it.")
    return f"{release[1].decode()} {build[1].decode()}"


@cache
def supported_architectures() -> tuple[str, ...]:
    """The architectures of ARCHITECTURES that this NVRTC can target."""
    return tuple(arch for arch in ARCHITECTURES if _supports(int(arch[3:])))


def _supports(compute: int) -> bool:
    return compute in _check(nvrtc.nvrtcGetSupportedArchs())


def check_architectures(architectures: Iterable[str]) -> tuple[str, ...]:
    """The architectures, sorted by number. Raises ToolchainError with one sentence for one that cannot be built."""
    chosen = sorted(set(architectures), key=lambda arch: int(arch[3:]) if re.fullmatch(r"sm_\d+", arch) else 0)
    for arch in chosen:
        if arch not in ARCHITECTURES:
            raise ToolchainError(f"{arch!r} is not a supported architecture: choose from {', '.join(ARCHITECTURES)}.")
        if arch not in supported_architectures():
            raise ToolchainError(
                f"NVRTC {_version()} cannot target {arch} (it starts at {supported_architectures()[0]}): "
                f"build it with the CUDA 12.9 toolchain, `make generate CUDA=12 ARCH={arch}`."
            )
    return tuple(chosen)


def family(arch: str) -> int:
    """The N of the front-end target compute_N from which an architecture is linked."""
    number = int(arch[3:])
    return max(compute for compute in _FAMILIES if compute <= number and _supports(compute))


def fingerprint(source: str, arch: str, kind: str) -> str:
    """Digest of everything that goes into the bytes: compiler, options, headers, source, schema. No path, no clock."""
    ingredients = [
        f"schema {SCHEMA}",
        f"compiler {compiler_build()}",
        f"options {' '.join(_COMPILE_OPTIONS + _LINK_OPTIONS + _KIND_OPTIONS[kind])}",
        f"target compute_{family(arch)} {arch} {kind}",
        *(f"headers {tree.package} {tree.digest}" for tree in headers()),
        f"source {hashlib.sha256(source.encode()).hexdigest()}",
    ]
    return hashlib.sha256("\n".join(ingredients).encode()).hexdigest()


def compile_unit(sources: Mapping[str, str], architectures: Iterable[str], kind: str = "cubin") -> list[Cubin]:
    """Compiles the sources of one translation unit (variant name -> text) for architectures of one family.

    `kind` is "cubin", or "ptx" for the linked PTX with line numbers. Raises ToolchainError, with options and numbered
    source, when the front end says anything at all or a kernel spills registers; and when a header was edited since
    this process began, because the cubins would pass for those of the old one.
    """
    architectures = list(architectures)
    (compute,) = {family(arch) for arch in architectures}
    ir = _front_end("\n".join(sources.values()), compute, _KIND_OPTIONS[kind])
    if project_headers_changed():
        raise ToolchainError(f"a header in {project_headers().root} was edited while it was compiled: compile again")
    return [
        Cubin(
            variant=variant,
            arch=arch,
            code=image.code,
            registers=image.registers,
            shared_bytes=image.shared_bytes,
            source=source_digest(sources[variant]),
            fingerprint=fingerprint(sources[variant], arch, kind),
            kind=kind,
        )
        for arch in architectures
        for variant, image in _images(ir, arch, list(sources), kind).items()
    ]


@dataclass(frozen=True)
class _Image:
    code: bytes
    registers: int
    shared_bytes: int


def _front_end(source: str, compute: int, extra: tuple[str, ...] = ()) -> bytes:
    options = [f"-arch=compute_{compute}", *_COMPILE_OPTIONS, *extra, *(f"-I{tree.root}" for tree in headers())]
    return _compile(source, options, nvrtc.nvrtcGetLTOIRSize, nvrtc.nvrtcGetLTOIR)


def _compile(source: str, options: list[str], size, read) -> bytes:
    program = _check(nvrtc.nvrtcCreateProgram(source.encode(), b"softmax.cu", 0, [], []))
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])[0]
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode()
        log = _DEPRECATION.sub("", log).strip("\0 \n")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS or log:
            raise ToolchainError(f"{status.name}\n{log}\noptions: {' '.join(options)}\n{_numbered(source)}")
        return _read(size, read, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _images(ir: bytes, arch: str, variants: list[str], kind: str) -> dict[str, _Image]:
    """Each kernel of a unit, linked by itself: only then does a cubin hold nothing else. PTX can be taken apart, which
    takes half the time, and has the same instructions unless kernels share functions or variables."""
    if kind == "ptx":
        together = _link(ir, arch, ",".join(variants), kind).code
        if not _SHARED.search(together):
            return {variant: _Image(code, 0, 0) for variant, code in _taken_apart(together).items()}
    return {variant: _link(ir, arch, variant, kind) for variant in variants}


_SHARED = re.compile(rb"^(?:\.visible \.func|\.(?:func|weak|global|const|shared))\b", re.M)
"""What kernels of a unit may share. (Shared memory whose size the launch decides is declared for each by itself.)"""

_ENTRY = re.compile(rb"^(?=\.visible \.entry (\w+))", re.M)
_LABELLED = re.compile(rb"^(?:\.extern \.shared [^\n]* (\w+)\[\];\n|(\$L__info_string\d+):\n(?:\.b8 [^\n]*\n)*)", re.M)
"""A declaration of that memory, or an inlined function's name."""


def _taken_apart(ptx: bytes) -> dict[str, bytes]:
    """The PTX of each kernel of a unit, its labels numbered as if it were alone, with all file names and what else it
    mentions."""
    head, *rest = _ENTRY.split(ptx)
    *_, last = rest
    rest[-1], separator, tables = last.partition(b"\t.file\t")

    def alone(entry: bytes) -> bytes:
        mentioned = {*re.findall(rb"[\w$]+", entry)}
        used = partial(_LABELLED.sub, lambda match: match[0] if match[match.lastindex] in mentioned else b"")
        return used(head) + re.sub(rb"\$L__BB\d+_", b"$L__BB0_", entry) + separator + used(tables)

    return {name.decode(): alone(entry) for name, entry in zip(rest[::2], rest[1::2], strict=True)}


def _link(ir: bytes, arch: str, entry: str, kind: str) -> _Image:
    """One kernel of a unit, or as PTX several, whose names are separated by commas."""
    options = [f"-arch={arch}", *_LINK_OPTIONS, f"-kernels-used={entry}", *_KIND_OPTIONS[kind]]
    if kind == "ptx":
        options.append("-ptx")
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, ir, len(ir), "softmax")
        try:
            nvjitlink.complete(handle)
        except nvjitlink.nvJitLinkError as error:
            log = _linker_text(nvjitlink.get_error_log_size, nvjitlink.get_error_log, handle)
            raise ToolchainError(f"nvJitLink: {error}\n{log}\noptions: {' '.join(options)}") from None
        if kind == "ptx":
            return _Image(
                _linker_bytes(nvjitlink.get_linked_ptx_size, nvjitlink.get_linked_ptx, handle).rstrip(b"\0"), 0, 0
            )
        report = _linker_text(nvjitlink.get_info_log_size, nvjitlink.get_info_log, handle)
        code = _linker_bytes(nvjitlink.get_linked_cubin_size, nvjitlink.get_linked_cubin, handle)
        return _Image(code, *_resources(report, entry, arch))
    finally:
        nvjitlink.destroy(handle)


def _resources(report: str, entry: str, arch: str) -> tuple[int, int]:
    """Registers per thread and static shared bytes, from ptxas's report. A spill is an error."""
    used = re.search(r"Used (\d+) registers", report)
    if used is None:
        raise ToolchainError(f"{entry} for {arch}: the linker's report does not state the registers:\n{report}")
    spilled = [int(count) for count in re.findall(r"(\d+) bytes (?:stack frame|spill \w+)", report)]
    if any(spilled):
        raise Spills(entry, arch, report)
    shared = re.search(r"(\d+) bytes smem", report)
    return int(used[1]), int(shared[1]) if shared else 0


def _numbered(source: str) -> str:
    return "\n".join(f"{number:5} {line}" for number, line in enumerate(source.splitlines(), 1))


def _check(result: tuple):
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise ToolchainError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
    return values[0] if len(values) == 1 else values


def _read(size, read, program) -> bytes:
    buffer = bytes(_check(size(program)))
    _check(read(program, buffer))
    return buffer


def _linker_bytes(size, read, handle) -> bytes:
    buffer = bytearray(size(handle))
    read(handle, buffer)
    return bytes(buffer)


def _linker_text(size, read, handle) -> str:
    return _linker_bytes(size, read, handle).decode(errors="replace").strip("\0 \n")


def _version() -> str:
    return ".".join(map(str, _check(nvrtc.nvrtcVersion())))
