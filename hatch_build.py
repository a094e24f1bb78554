"""What the wheel contains besides Python: the compiled part, a bundle with its signature, and a single-file module.

Run as a program, it puts the compiled part into the checkout.
"""

import hashlib
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))  # of softmax_ops, whose modules used here need nothing installed


class Hook(BuildHookInterface):
    """Fails the build if the bundle's kernels are not those of generated/: the package would never use them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        included = {root / "transformer_softmax_lib.py": "transformer_softmax_lib.py"}
        bundle = root / "build" / "softmax_ops.bundle"
        if version != "editable" and bundle.exists():
            from softmax_ops.artifacts.signature import beside

            _check(root, bundle)
            for path in (bundle, beside(bundle)):
                included[path] = f"softmax_ops/{path.name}"
        self._folder = TemporaryDirectory()
        compiled = compile_native(root, root if version == "editable" else Path(self._folder.name))
        if compiled is not None and version != "editable":
            included[compiled] = f"softmax_ops/native/{compiled.name}"
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"cp311-abi3-{platform}")
        build_data["force_include"].update({str(path): name for path, name in included.items() if path.exists()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._folder.cleanup()


def compile_native(root: Path, into: Path) -> Path | None:
    """Compiles softmax_ops/native/*.c into that package in `into`. Returns None, and warns, if that fails.

    Everything works without it, at a higher cost per call. The limited API makes one binary work with every Python.
    """
    from softmax_ops.native import digest_of_sources

    module = Extension(
        "softmax_ops.native.calls",
        sorted(str(path) for path in (root / "softmax_ops" / "native").glob("*.c")),
        extra_compile_args=[] if sys.platform == "win32" else ["-O2", "-g0", "-Wall", "-Wextra"],
        define_macros=[("SOURCES", f'"{digest_of_sources()}"')],
        py_limited_api=True,
        optional=True,
    )
    with TemporaryDirectory() as objects:
        command = build_ext(Distribution({"name": "softmax-ops", "ext_modules": [module]}))
        command.build_lib, command.build_temp = str(into), objects
        command.ensure_finalized()
        built = into / command.get_ext_filename(module.name)
        built.unlink(missing_ok=True)
        command.run()
    return built if built.exists() else None


def _check(root: Path, bundle: Path) -> None:
    from softmax_ops.artifacts.bundle import Bundle

    findings = Bundle(bundle).verify()
    if findings:
        raise RuntimeError(f"build/softmax_ops.bundle cannot be shipped: {'; '.join(findings)}")
    catalog = (root / "generated" / "catalog.json").read_bytes()
    if Bundle(bundle).facts().catalog_sha256 != hashlib.sha256(catalog).hexdigest():
        raise RuntimeError("build/softmax_ops.bundle holds other kernels than generated/: `make bundle`, or remove it")


if __name__ == "__main__":
    here = Path(__file__).parent
    sys.exit(compile_native(here, here) is None)
