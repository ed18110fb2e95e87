"""Fuzzed: scans in other formats than NIfTI (NRRD, MetaImage, DICOM series)."""

import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK

from attunet3d.imaging import read_volume
from benchmarks.reliability.fuzz_input import MOST_VOXELS, DisagreementError, Files
from benchmarks.reliability.mutations import mutated


@cache
def other_seeds(ending: str) -> bytes:
    """A sound NRRD or MetaImage file."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "a" + ending)
        array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((0.8, 0.9, 2.5))
        SimpleITK.WriteImage(image, str(path))
        return path.read_bytes()


def other_scan(rng: random.Random) -> Files:
    """A spoilt NRRD or MetaImage file; most changes hit the header, which is text."""
    ending = rng.choice((".nrrd", ".mha"))
    data = other_seeds(ending)
    head = data[:-120]
    return {
        "a" + ending: mutated(head, rng) + data[-120:] if rng.random() < 0.7 else mutated(data, rng)
    }


def check_scan(path: Path) -> None:
    """A finite grid of the array's shape."""
    found = read_volume(path, max_voxels=MOST_VOXELS)
    if found.array.shape != found.grid.shape:
        raise DisagreementError(f"shape {found.array.shape} on a grid of {found.grid.shape}")


@cache
def series_seed() -> tuple[tuple[str, bytes], ...]:
    """Three sound DICOM slices."""
    with TemporaryDirectory() as folder:
        for k in range(3):
            image = SimpleITK.GetImageFromArray(np.full((1, 4, 5), k, np.int16))
            image.SetSpacing((1.0, 1.0, 2.0))
            tags = {"0008|0060": "CT", "0020|000d": "1.2.3.1", "0020|000e": "1.2.3.2"}
            tags |= {"0008|0018": f"1.2.3.3.{k + 1}", "0020|0013": str(k + 1)}
            tags |= {"0020|0032": f"0\\0\\{2 * k}", "0020|0037": "1\\0\\0\\0\\1\\0"}
            for tag, value in tags.items():
                image.SetMetaData(tag, value)
            writer = SimpleITK.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(Path(folder, f"{k}.dcm")))
            writer.Execute(image)
        return tuple((path.name, path.read_bytes()) for path in sorted(Path(folder).iterdir()))


def series(rng: random.Random) -> Files:
    """A DICOM series, one slice of it spoilt."""
    files = dict(series_seed())
    name = rng.choice(list(files))
    files[name] = mutated(files[name], rng, files["0.dcm"])
    return files


def check_series(path: Path) -> None:
    """As other scans; the folder is what is read, and no slice of it is lost without a word."""
    check_scan(path.parent)
    found = read_volume(path.parent)
    if found.array.shape[2] != 3 and not found.warnings:
        raise DisagreementError(f"{found.array.shape[2]} of 3 slices are read, and nothing is said")
