"""What the wheel carries when it is there: the bundle that `make bundle` built, its signature, a module of one file."""

import hashlib
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):
    """A bundle of other kernels than those of generated/ would never serve beside them: that fails the build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        included = {root / "transformer_softmax_lib.py": "transformer_softmax_lib.py"}
        bundle = root / "build" / "softmax_ops.bundle"
        if bundle.exists():
            _check(root, bundle)
            for path in (bundle, bundle.with_name(f"{bundle.name}.sig")):
                included[path] = f"softmax_ops/{path.name}"
        build_data["force_include"].update({str(path): name for path, name in included.items() if path.exists()})


def _check(root: Path, bundle: Path) -> None:
    sys.path.insert(0, str(root))
    from softmax_ops.artifacts.bundle import Bundle

    findings = Bundle(bundle).verify()
    if findings:
        raise RuntimeError(f"build/softmax_ops.bundle cannot be shipped: {'; '.join(findings)}")
    catalog = (root / "generated" / "catalog.json").read_bytes()
    if Bundle(bundle).facts().catalog_sha256 != hashlib.sha256(catalog).hexdigest():
        raise RuntimeError("build/softmax_ops.bundle holds other kernels than generated/: `make bundle`, or remove it")
