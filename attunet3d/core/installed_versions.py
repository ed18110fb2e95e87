"""Versions of installed packages, found without importing them."""

import platform
import re
from importlib import metadata

NAMES = ("attunet3d", "torch", "monai", "numpy", "nibabel", "SimpleITK")


def versions() -> dict[str, str]:
    """Versions of Python, this package and its numerical libraries, for sidecars and summaries."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in NAMES}}


def version_of(name: str) -> str:
    """The version of an installed distribution, or "absent"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def cuda_of_torch() -> str | None:
    """The version of CUDA that torch was built with; None if there is no CUDA or no torch."""
    try:
        path = metadata.distribution("torch").locate_file("torch/version.py")
        with open(str(path), encoding="utf-8") as file:
            found = re.search(r"^cuda\b.*= *'([^']+)'", file.read(), re.M)
    except (metadata.PackageNotFoundError, OSError):
        return None
    return found[1] if found else None


def version_text() -> str:
    """The lines of `attunet3d --version`.

    Example:
        >>> [line.split()[0] for line in version_text().splitlines()]
        ['attunet3d', 'Python', 'torch', 'CUDA', 'MONAI']
    """
    from attunet3d import __version__

    lines = {
        "attunet3d": __version__,
        "Python": platform.python_version(),
        "torch": version_of("torch"),
        "CUDA": cuda_of_torch() or "none: torch was built for CPUs",
        "MONAI": version_of("monai"),
    }
    return "\n".join(f"{name} {version}" for name, version in lines.items())
