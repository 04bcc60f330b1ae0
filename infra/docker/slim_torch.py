# ruff: noqa: INP001 - a script, not part of a package
"""Removes the CUDA libraries that a CPU does without. A step of the image's build, no more.

torch's wheel is linked against most of CUDA, so those libraries stay. What is loaded only when
there is a GPU goes: cuDNN's engines, cuSOLVER, device code, static libraries.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def main() -> None:
    """Keep what this process has loaded, remove the rest below site-packages/nvidia."""
    root = Path(torch.__file__).parent.parent / "nvidia"
    names = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    loaded = {Path(name).resolve() for name in names if name.startswith("/")}
    freed = 0
    for path in root.rglob("*"):
        binary = path.suffix in {".a", ".bc"} or ".so" in path.name
        if path.is_file() and path.resolve() not in loaded and (binary or "include" in path.parts):
            freed += path.stat().st_size
            path.unlink()
    if not any(root.rglob("*.so*")):
        sys.exit(f"{root}: nothing is left, so torch was loaded from elsewhere")
    sys.stdout.write(f"slim_torch: {freed / 1e9:.1f} GB removed\n")


if __name__ == "__main__":
    main()
