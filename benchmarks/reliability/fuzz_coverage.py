"""Fuzz the NIfTI reader guided by coverage: inputs that reach new lines are kept and changed on.

    pip install atheris                                        (Linux, Python 3.11 to 3.13)
    python -m benchmarks.reliability.fuzz FOLDER --atheris 200000

The first byte of an input says how the rest is packed. What must hold is what `fuzz_targets` asks
for, nibabel's answer included. A failure stops the run with its input in FOLDER/crash-….
"""

import contextlib
import gzip
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["attunet3d"]):
    from attunet3d.imaging import geometry, nifti, nifti_header, volume

from attunet3d.core import UserError
from benchmarks.reliability.fuzz_nifti import check_nifti, nifti_seeds

INSTRUMENTED = (geometry, nifti, nifti_header, volume)
MOST_MEMORY_MB = 2048
HANG_SECONDS = 5


def main() -> None:
    """Fuzz; atheris ends the process."""
    folder, runs = Path(sys.argv[1]), int(sys.argv[2])
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(nifti_seeds()):
        (corpus / f"seed{number}").write_bytes(bytes([number % 3]) + data)
    limits = [f"-rss_limit_mb={MOST_MEMORY_MB}", f"-timeout={HANG_SECONDS}", "-max_len=4096"]
    options = [f"-runs={runs}", "-seed=1", f"-artifact_prefix={folder}/", *limits, str(corpus)]

    def one(data: bytes) -> None:
        kind, body = (data or b"\0")[0] % 3, data[1:]
        if kind == 1:
            body = gzip.compress(body, 1, mtime=0)
        elif kind == 2:  # two members, the second cut off where the input ends
            body = gzip.compress(body[:400], 1, mtime=0) + gzip.compress(body[400:], 1)[:-8]
        path = folder / ("a.nii.gz" if kind else "a.nii")
        path.write_bytes(body)
        with contextlib.suppress(UserError):
            check_nifti(path)

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
