"""What is fuzzed: for each reader sound files, ways to spoil them, and what must hold after."""

import hashlib
import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import safetensors.torch
import SimpleITK
import torch

from attunet3d import checkpoint, conversion, nnunet_splits, results
from attunet3d.cached_case import ARRAYS, CacheError, load_case
from attunet3d.config import Config
from attunet3d.manifest import Manifest
from attunet3d.network import AttentionUNet3D
from attunet3d.volume import Volume, read_label, read_volume
from benchmarks.reliability.mutations import (
    gzipped,
    json_text,
    mutated,
    packed,
    rezipped,
    yaml_text,
)

nib.imageglobals.logger.setLevel("CRITICAL")  # it tells of every header that it mends
Files = dict[str, bytes]  # by name; the first is what the reader is given
MOST_VOXELS = 1 << 24
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


class DisagreementError(Exception):
    """Ours and another reader read different things."""


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


# --- NIfTI ---------------------------------------------------------------------------------------

NIFTI1 = {"sizeof_hdr": (0, "i"), "dim_info": (39, "b"), "datatype": (70, "h"), "bitpix": (72, "h")}
NIFTI1 |= {f"dim{i}": (40 + 2 * i, "h") for i in range(8)}
NIFTI1 |= {f"pixdim{i}": (76 + 4 * i, "f") for i in range(8)}
NIFTI1 |= {"vox_offset": (108, "f"), "slope": (112, "f"), "inter": (116, "f"), "units": (123, "b")}
NIFTI1 |= {"qform": (252, "h"), "sform": (254, "h"), "magic": (344, "i"), "extension": (348, "i")}
NIFTI1 |= {f"float{i}": (256 + 4 * i, "f") for i in range(18)}  # quaternion, offsets, rows
NIFTI1 |= {"extension size": (352, "i"), "extension code": (356, "i")}
NIFTI2 = {"sizeof_hdr": (0, "i"), "magic": (4, "q"), "datatype": (12, "h"), "bitpix": (14, "h")}
NIFTI2 |= {f"dim{i}": (16 + 8 * i, "q") for i in range(8)}
NIFTI2 |= {f"pixdim{i}": (104 + 8 * i, "d") for i in range(8)}
NIFTI2 |= {"vox_offset": (168, "q"), "slope": (176, "d"), "inter": (184, "d"), "units": (500, "i")}
NIFTI2 |= {"qform": (344, "i"), "sform": (348, "i"), "extension": (540, "i")}
NIFTI2 |= {f"float{i}": (352 + 8 * i, "d") for i in range(18)}
DATATYPES = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2304, -4]


@cache
def nifti_seeds() -> tuple[bytes, ...]:
    """Sound files, not packed: both versions and byte orders, several types and affines."""
    found = []
    affine = np.array([[-0.8, 0.1, 0, 30], [0.1, -0.9, 0.2, 20], [0, 0.3, 2.5, -50], [0, 0, 0, 1]])
    values = np.random.default_rng(0).integers(0, 200, (5, 4, 3))
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for number, dtype in enumerate(("i2", "u1", "f4", "f8", "i4", "u2", "i8", "i1")):
            header = kind.header_class(endianness="<>"[number % 2])
            array = (values - 100 * (dtype == "i1")).astype(dtype)
            array = array[..., None] if number == 3 else array
            image = kind(array, affine, header)
            image.header.set_data_dtype(dtype)
            image.header.set_xyzt_units(("mm", "micron", "meter", "unknown")[number % 4])
            image.set_sform(affine, number % 3)
            image.set_qform(affine, (number + 1) % 3, strip_shears=True)
            if number % 2:
                image.header.set_slope_inter(0.5 * number, -1024 + number)
            if number == 4:
                image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"hello"))
            found.append(image.to_bytes())
    return tuple(found)


def nifti(rng: random.Random) -> Files:
    """A spoilt NIfTI file, packed in one of many ways or not."""
    data = rng.choice(nifti_seeds())
    fields = (
        NIFTI1 if 348 in struct.unpack("<i", data[:4]) + struct.unpack(">i", data[:4]) else NIFTI2
    )
    endian = "<" if int.from_bytes(data[:4], "little") in (348, 540) else ">"
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        name = rng.choice(list(fields))
        place, code = fields[name]
        value = packed(code, endian, rng)
        if name == "datatype":
            value = struct.pack(endian + code, rng.choice(DATATYPES))
        elif name in ("qform", "sform", "units", "dim0") or name.startswith("dim"):
            value = struct.pack(endian + code, rng.choice((-1, 0, 1, 2, 3, 4, 5, 7, 8, 10)))
        data = data[:place] + value + data[place + len(value) :]
    if rng.random() < 0.3:
        data = mutated(data, rng, rng.choice(nifti_seeds()))
    if rng.random() < 0.1:
        data += rng.choice((bytes(1), bytes(4096), rng.randbytes(100), bytes(2 << 20)))
    return {"a.nii.gz": gzipped(data, rng)} if rng.random() < 0.6 else {"a.nii": data}


def check_nifti(path: Path) -> None:
    """What ours and nibabel both take must be the same scan, by the rules of `nifti_header`."""
    found = read_volume(path, max_voxels=MOST_VOXELS)
    try:
        image = nib.load(path)
        shape = image.shape
        affine = np.diag([UNIT_MM[int(image.header["xyzt_units"]) & 7]] * 3 + [1.0]) @ image.affine
        terms = _terms(image)
    except Exception:  # nibabel refuses, in its many ways
        return
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if shape != found.array.shape or shape != found.grid.shape:
        raise DisagreementError(f"shape {found.array.shape}, nibabel {shape}")
    if _placed_alike(found) and not np.array_equal(found.grid.affine, affine):
        raise DisagreementError(f"affine {found.grid.affine.tolist()}, nibabel's {affine.tolist()}")
    _compare(found, *(part.reshape(shape) for part in terms))


def _placed_alike(found: Volume) -> bool:
    """Whether ours and nibabel go by the same rule.

    nibabel takes a form code that the standard does not know for 0, and a qfac it does not know for
    1; ours, as ITK, goes by the sign of either.
    """
    assert found.geometry is not None
    fields = found.geometry.fields
    codes = {int(fields[name]) for name in ("qform_code", "sform_code")}
    return codes <= set(range(5)) and float(fields["pixdim"][0]) in (-1, 0, 1)


def _terms(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in float64, and how large the terms were that they are sums of."""
    proxy = image.dataobj
    raw = np.asarray(proxy.get_unscaled(), np.float64)
    with np.errstate(all="ignore"):
        scaled = raw * proxy.slope
        return scaled + proxy.inter, np.abs(raw) + np.abs(scaled) + np.abs(proxy.inter)


def _compare(found: Volume, wanted: np.ndarray, size: np.ndarray) -> None:
    """Finite voxels must be equal to within the rounding of float32."""
    finite = np.isfinite(wanted) & (size < np.finfo(np.float32).max / 2)
    slack = 4 * np.finfo(np.float32).eps * size + 1e-44
    with np.errstate(all="ignore"):
        apart = np.abs(found.array.astype(np.float64) - wanted) > slack
    if (apart & finite).any():
        place = tuple(int(n[0]) for n in np.nonzero(apart & finite))
        raise DisagreementError(f"voxel {place}: {found.array[place]}, nibabel {wanted[place]}")


def check_label(path: Path) -> None:
    """Labels come as uint8, each the value that stands in the file."""
    found = read_label(path, max_voxels=MOST_VOXELS)
    scan = read_volume(path, max_voxels=MOST_VOXELS)
    if found.array.dtype != np.uint8 or not np.array_equal(found.array, scan.array):
        raise DisagreementError("the label map is not what the scan of the same file is")


# --- other scans ---------------------------------------------------------------------------------


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


# --- lists, settings, records --------------------------------------------------------------------

CASES = [
    {"id": "a", "image": "images/a.nii.gz", "label": "labels/a.nii.gz", "fold": 0, "group": "p"},
    {
        "image": ["b.nii.gz"],
        "label": "labels/b.nii.gz",
        "label_flip": "ij",
        "sha256": {"image": "9f"},
    },
]
MANIFEST = {"name": "n", "labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}}
MANIFEST |= {"licence": "CC0", "source": "s", "root": "..", "training": CASES, "test": ["c.nii.gz"]}
SPLITS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
SIDECAR = {"case": "a", "labels": {"0": "background"}, "volumes": {}, "model": "ff", "settings": {}}
SIDECAR |= {"files": {"a.nii.gz": "0" * 64}, "warnings": [], "seconds": {"reading": 0.1}}
CONFIG = """
network:
  channels: [4, 8]
  gate: single
  strides: [[2, 2, 1]]
preprocessing:
  spacing_mm: [1.5, 1.5, 3]
  hu_window: [-160, 240]
  crop_to_body: true
augmentation: {flip_axes: [0, 2], scale: [0.7, 1.4]}
training:
  seed: 3
  patch_size: [48, 48, 32]
  learning_rate: 1e-4
  loss: dice_ce
  ignore_index: 255
inference: {mode: whole, overlap: 0.25, window: null}
"""


def manifest(rng: random.Random) -> Files:
    """A spoilt manifest."""
    return {"m.json": json_text(MANIFEST, rng)}


def check_manifest(path: Path) -> None:
    """All paths lie beneath the root; what was read can be written and read again."""
    root = path.parent.parent
    found = Manifest.load(path, root)
    for case in (*found.training, *found.validation, *found.test):
        for file in (case.image, case.label):
            if file is not None and not file.is_relative_to(root.resolve()):
                raise DisagreementError(f"{file} lies outside {root}")
    found.save(path.with_name("again.json"))
    if Manifest.load(path.with_name("again.json")).training != found.training:
        raise DisagreementError("what was read and written again is another manifest")


def config(rng: random.Random) -> Files:
    """Spoilt settings, as YAML or as JSON."""
    if rng.random() < 0.6:
        return {"c.yaml": yaml_text(CONFIG.strip(), rng)}
    return {"c.json": json_text(Config.from_dict({}).to_dict(), rng)}


def check_config(path: Path) -> None:
    """What was read can be written and read again."""
    found = Config.load(path)
    found.save(path.with_name("again.json"))
    if Config.load(path.with_name("again.json")) != found:
        raise DisagreementError("what was read and written again are other settings")


def splits(rng: random.Random) -> Files:
    """Spoilt nnU-Net splits."""
    return {"splits_final.json": json_text(SPLITS, rng)}


def check_splits(path: Path) -> None:
    """Folds are dealt to cases there are."""
    if not nnunet_splits.read_splits(path, ["a", "b", "c"]).keys() <= {"a", "b", "c"}:
        raise DisagreementError("a fold for a case that is not there")


def sidecar(rng: random.Random) -> Files:
    """A spoilt sidecar."""
    return {"a.json": json_text(SIDECAR, rng)}


def check_sidecar(path: Path) -> None:
    """Whatever it says, a case without its files is not done."""
    files = results.case_files(path.parent, "a")
    if results.is_done(files, [files.mask], {"model": "ff"}):
        raise DisagreementError("a case without its files counts as done")
    results.read_sidecar(path)


# --- models and states ---------------------------------------------------------------------------

SETTINGS = Config().with_overrides(["network.channels=[2, 4]", "network.gate=single"])


@cache
def weights() -> dict[str, torch.Tensor]:
    """Of a tiny network, always the same."""
    torch.manual_seed(0)
    return dict(AttentionUNet3D.from_config(SETTINGS.network, 1, 2).state_dict())


@cache
def model_seed() -> bytes:
    """A sound model."""
    about = {"format": checkpoint.FORMAT, "config": SETTINGS.to_dict(), "notes": {}}
    about["labels"] = {"0": "background", "1": "liver"}
    return bytes(safetensors.torch.save(weights(), {checkpoint.ABOUT: json.dumps(about)}))


def model(rng: random.Random) -> Files:
    """A spoilt safetensors file: its header, what we keep in the header, or its weights."""
    data = model_seed()
    length = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(5)
    if kind == 0:
        return {"m.safetensors": mutated(data, rng)}
    if kind == 1:
        body = mutated(body, rng)
    elif kind == 2:
        head = json_text(json.loads(head), rng)
    elif kind == 3:
        header = json.loads(head)
        about = json.loads(header["__metadata__"][checkpoint.ABOUT])
        text = json_text(about, rng).decode(errors="replace")
        header["__metadata__"][checkpoint.ABOUT] = text
        head = json.dumps(header).encode()
    else:
        head = mutated(head, rng)
    return {"m.safetensors": struct.pack("<Q", len(head)) + head + body}


def check_model(path: Path) -> None:
    """A network that computes numbers."""
    found = checkpoint.load_model(path)
    if any(not torch.isfinite(value).all() for value in found.network.parameters()):
        raise DisagreementError("weights that are no numbers")


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@cache
def state_seed() -> bytes:
    """The inner part of a sound state."""
    state = {"network": weights(), "step": 3, "best_dice": 0.5, "losses": [0.1, 2]}
    state["optimiser"] = {"state": {0: {"momentum": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return _saved(state)


def state(rng: random.Random) -> Files:
    """A spoilt state; often with a checksum that fits, so that the inner part is reached."""
    inner = rezipped(state_seed(), rng) if rng.random() < 0.6 else state_seed()
    payload = torch.frombuffer(bytearray(inner) or bytearray(1), dtype=torch.uint8)
    outer = _saved({"sha256": hashlib.sha256(inner).hexdigest(), "payload": payload})
    return {"last.pt": rezipped(outer, rng) if inner is state_seed() else outer}


def check_state(path: Path) -> None:
    """A state is a dictionary."""
    checkpoint.load_state(path)


def authors_weights(rng: random.Random) -> Files:
    """A spoilt file of `torch.save`."""
    return {"w.pth": rezipped(_saved(weights()), rng)}


def check_authors_weights(path: Path) -> None:
    """Weights by name."""
    conversion.load_state(path)


# --- prepared cases ------------------------------------------------------------------------------


@cache
def prepared_seed() -> tuple[tuple[str, bytes], ...]:
    """The four files of a sound prepared case."""
    shapes = ((4, 3, 2), (4, 3, 2), (2, 3))
    files: Files = {}
    for (name, dtype), shape in zip(ARRAYS.items(), shapes, strict=True):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(shape, dtype), allow_pickle=False)
        files[name] = buffer.getvalue()
    sizes = {name: len(data) for name, data in files.items()}
    meta = {"case": "a", "shape": [4, 3, 2], "air": -1.0, "starts": [0, 0, 2], "bytes": sizes}
    return (("meta.json", json.dumps(meta).encode()), *files.items())


def prepared(rng: random.Random) -> Files:
    """A prepared case, one of its files spoilt."""
    files = dict(prepared_seed())
    name = rng.choice(list(files))
    files[name] = (
        json_text(json.loads(files[name]), rng)
        if name == "meta.json"
        else mutated(files[name], rng, files["image.npy"])
    )
    return files


def check_prepared(path: Path) -> None:
    """A case that is taken has arrays of the shapes it says; another is prepared anew."""
    found = load_case("a", path.parent)
    if found is None:
        raise CacheError(f"{path}: is prepared anew")
    points, image, label = found.foreground(), found.image(), found.label()
    if image.shape != found.shape or label.shape != found.shape or points.shape[1:] != (3,):
        raise DisagreementError("arrays of other shapes than the case says")
    if found.starts[-1] != len(points):
        raise DisagreementError("other voxels than the case says")
    float(image.sum(dtype=np.float64)), int(label.sum())


TARGETS = [
    Target("NIfTI scan, compared with nibabel", 0.36, nifti, check_nifti),
    Target("NIfTI label map", 0.08, nifti, check_label),
    Target("NRRD and MetaImage", 0.03, other_scan, check_scan),
    Target("DICOM series", 0.02, series, check_series),
    Target("manifest", 0.14, manifest, check_manifest),
    Target("settings (YAML, JSON)", 0.10, config, check_config),
    Target("nnU-Net splits", 0.03, splits, check_splits),
    Target("sidecar", 0.05, sidecar, check_sidecar),
    Target("model (safetensors)", 0.08, model, check_model),
    Target("state of a run (torch)", 0.04, state, check_state),
    Target("authors' weights (torch)", 0.02, authors_weights, check_authors_weights),
    Target("prepared case (NumPy)", 0.05, prepared, check_prepared),
]
