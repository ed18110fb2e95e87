"""What is fuzzed: for each reader how an input is made, and what must hold after it is read."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability import fuzz_models, fuzz_nifti, fuzz_scans, fuzz_texts
from benchmarks.reliability.fuzz_input import Files


@dataclass(frozen=True)
class Target:
    """A reader under attack.

    Args:
        name: As the table shows it.
        share: Of all inputs.
        make: Draws an input.
        check: Reads it from the path given; what it raises besides `UserError` is a failure.
    """

    name: str
    share: float
    make: Callable[[random.Random], Files]
    check: Callable[[Path], None]


TARGETS = [
    Target("NIfTI scan, compared with nibabel", 0.36, fuzz_nifti.nifti, fuzz_nifti.check_nifti),
    Target("NIfTI label map", 0.08, fuzz_nifti.nifti, fuzz_nifti.check_label),
    Target("NRRD and MetaImage", 0.03, fuzz_scans.other_scan, fuzz_scans.check_scan),
    Target("DICOM series", 0.02, fuzz_scans.series, fuzz_scans.check_series),
    Target("manifest", 0.14, fuzz_texts.manifest, fuzz_texts.check_manifest),
    Target("settings (YAML, JSON)", 0.10, fuzz_texts.config, fuzz_texts.check_config),
    Target("nnU-Net splits", 0.03, fuzz_texts.splits, fuzz_texts.check_splits),
    Target("sidecar", 0.05, fuzz_texts.sidecar, fuzz_texts.check_sidecar),
    Target("model (safetensors)", 0.08, fuzz_models.model, fuzz_models.check_model),
    Target("state of a run (torch)", 0.04, fuzz_models.state, fuzz_models.check_state),
    Target(
        "authors' weights (torch)",
        0.02,
        fuzz_models.authors_weights,
        fuzz_models.check_authors_weights,
    ),
    Target("prepared case (NumPy)", 0.05, fuzz_models.prepared, fuzz_models.check_prepared),
]
