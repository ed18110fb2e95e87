"""Headers name patients and hospitals; nothing that is written or said afterwards does.

Scans whose every free field holds a mark go through all commands; then every byte of every file
and of both streams is searched, packed files unpacked.
"""

import contextlib
import gzip
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from attunet3d import __main__ as command
from attunet3d.core import command_line
from attunet3d.phantoms.dataset import write_phantoms

MARK = "QXZVWK"  # in no file of ours, nor by chance in packed bytes
NIFTI_FIELDS = {"descrip": 80, "aux_file": 24, "db_name": 18, "intent_name": 16, "data_type": 10}
TAGS = {
    "0010|0010": "QXZVWKDOE^JANE",
    "0010|0020": "QXZVWK-4711",
    "0010|0030": "19500101",
    "0010|4000": "QXZVWK patient comment",
    "0008|0080": "QXZVWK Hospital",
    "0008|0081": "QXZVWK Street",
    "0008|0090": "QXZVWK^REFERRING",
    "0008|1030": "QXZVWK study",
    "0008|103e": "QXZVWK series",
    "0008|1050": "QXZVWK^PERFORMING",
    "0018|1030": "QXZVWK protocol",
    "0020|0010": "QXZVWK-study-id",
    "0020|4000": "QXZVWK image comment",
}
TINY = ["network.channels=[4,8,8]", "network.strides=[[2,2,2],[2,2,2]]", "training.steps=2"]
TINY += ["training.validate_every=1", "training.patch_size=[16,16,16]"]
TINY += ["preprocessing.spacing_mm=[8,8,8]"]


def mark(path: Path, version: int = 1) -> None:
    """Fill every free field of a NIfTI file, and add extensions."""
    found = nib.load(path)
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = kind(np.asarray(found.dataobj), found.affine, found.header)
    for name, size in NIFTI_FIELDS.items():
        if name in image.header:
            image.header[name] = f"{MARK} {name}".encode()[:size]
    for code, text in (
        ("comment", b"QXZVWK born 1950"),
        ("afni", b"<QXZVWK/>"),
        ("dicom", dicom()),
    ):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, text))
    nib.save(image, path)


def dicom() -> bytes:
    """A DICOM data set as a NIfTI extension holds it: one tag, explicit little endian."""
    text = b"QXZVWKDOE^JANE"
    return b"\x10\x00\x10\x00PN" + len(text).to_bytes(2, "little") + text


def write_series(folder: Path, count: int = 12) -> Path:
    """A DICOM series of a phantom's size, all text tags marked."""
    folder.mkdir()
    array = np.random.default_rng(0).integers(-1000, 400, (count, 24, 24)).astype(np.int16)
    for k in range(count):
        image = SimpleITK.GetImageFromArray(array[k : k + 1])
        image.SetSpacing((8.0, 8.0, 8.0))
        image.SetOrigin((0.0, 0.0, 8.0 * k))
        places = {
            "0008|0060": "CT",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.3.{k + 1}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.2",
            "0020|0013": str(k + 1),
            "0020|0032": f"0\\0\\{8 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in (TAGS | places).items():
            image.SetMetaData(tag, value)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(image)
    return folder


def damage(folder: Path, good: Path) -> Path:
    """Marked scans that fail, each in its own way."""
    folder.mkdir()
    raw = gzip.decompress(good.read_bytes())
    for name, place, value in (
        ("magic", 344, MARK.encode()),
        ("type", 70, b"\x80\x00"),
        ("bits", 72, b"\x03\x00"),
        ("size", 42, b"\xff\x7f"),
        ("affine", 280, b"\xff" * 48),
        ("offset", 108, b"\xff" * 4),
        ("units", 123, b"\x07"),
    ):
        changed = raw[:place] + value + raw[place + len(value) :]
        (folder / f"{name}.nii.gz").write_bytes(gzip.compress(changed, 1))
    packed = good.read_bytes()
    (folder / "cut.nii.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "text.nii").write_bytes(b"QXZVWKDOE^JANE" * 100)
    (folder / "other.nrrd").write_bytes(b"NRRD0004\ntype: QXZVWKDOE\ndimension: 3\n\n")
    (folder / "second.mha").write_bytes(b"ObjectType = Image\nPatientName = QXZVWKDOE\nNDims = Q\n")
    return folder


def mix(source: Path, bad: Path) -> Path:
    """A data set of the bad scans and a good one, each with a marked label."""
    images, labels = source / "mixed" / "images", source / "mixed" / "labels"
    shutil.copytree(bad, images)
    labels.mkdir()
    scan, label = (
        sorted((source / "data" / part).iterdir())[0] for part in ("imagesTr", "labelsTr")
    )
    shutil.copy(scan, images / "good.nii.gz")
    for path in images.iterdir():
        shutil.copy(label, labels / f"{path.name.split('.')[0]}.nii.gz")
    return source / "mixed"


@contextlib.contextmanager
def streams_in(path: Path) -> Iterator[None]:
    """Both streams of this process into a file, those of C++ libraries, too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            with (
                contextlib.redirect_stdout(os.fdopen(os.dup(1), "w", encoding="utf-8")) as out,
                contextlib.redirect_stderr(os.fdopen(os.dup(2), "w", encoding="utf-8")) as err,
                out,
                err,
            ):
                yield
        finally:
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All commands on marked scans: sources in `in`, what was written in `out`."""
    home = tmp_path_factory.mktemp("marked")
    source, out = home / "in", home / "out"
    out.mkdir()
    write_phantoms(source / "data", 3, 1, matrix=48)
    for number, path in enumerate(sorted((source / "data").rglob("*.nii.gz"))):
        mark(path, 1 + number % 2)
    scans = source / "data" / "imagesTr"
    series = write_series(source / "series")
    torn = write_series(source / "torn")
    for path in torn.iterdir():
        path.write_bytes(path.read_bytes()[:-700])
    lost = write_series(source / "lost")
    (lost / "5.dcm").unlink()
    bad = damage(source / "bad", sorted(scans.iterdir())[0])
    mixed = mix(source, bad)
    sets = [part for setting in TINY for part in ("--set", setting)]
    run, probabilities = out / "run", ["--save-probabilities", "--save-attention"]
    calls = [
        (0, "manifest", source / "data", "--out", out / "m.json", "--folds", 3),
        (0, "train", out / "m.json", "demo_cpu", run, "--device", "cpu", *sets),
        (0, "infer", run, scans, out / "labels", "--device", "cpu", *probabilities),
        (0, "infer", run, series, out / "of_series", "--device", "cpu", *probabilities),
        (1, "infer", run, torn, out / "of_torn", "--device", "cpu"),
        (1, "infer", run, lost, out / "of_lost", "--device", "cpu"),
        (1, "infer", run, bad, out / "of_bad", "--device", "cpu"),
        (0, "evaluate", out / "labels", source / "data" / "labelsTr", out / "scores"),
        (0, "export", out / "labels", out / "exported"),
        (1, "manifest", mixed, "--out", out / "mixed.json"),
        (2, "train", scans / "none.json", "demo_cpu", out / "none"),
    ]
    with streams_in(out / "streams.txt"):
        found = [command_line.run(command.dispatch, [str(part) for part in c[1:]]) for c in calls]
    assert found == [call[0] for call in calls], (out / "streams.txt").read_text(encoding="utf-8")
    return home


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and of what is packed in it."""
    data = path.read_bytes()
    yield data
    if data.startswith(b"\x1f\x8b"):
        with contextlib.suppress(EOFError):  # those that are cut off
            yield gzip.decompress(data)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def marked(folder: Path) -> set[str]:
    """Files that hold the mark as bytes or in UTF-16, by name or by content."""
    needles = [MARK.encode(), MARK.encode("utf-16-le"), MARK.encode("utf-16-be")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix()
        for path in files
        if MARK in path.name or any(n in data for data in contents(path) for n in needles)
    }


def test_the_sources_are_marked(done: Path) -> None:
    found = marked(done / "in")
    assert {f"series/{k}.dcm" for k in range(12)} <= found
    assert len([name for name in found if name.startswith("data/imagesTr/")]) == 4 - 1
    assert {"bad/magic.nii.gz", "bad/text.nii", "bad/second.mha"} <= found


def test_nothing_that_was_written_or_said_holds_the_mark(done: Path) -> None:
    assert marked(done / "out") == set()


def test_all_that_could_hold_it_was_written(done: Path) -> None:
    out = done / "out"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    case = sorted(path.name for path in (done / "in" / "data" / "imagesTr").iterdir())[0]
    case = case.removesuffix(".nii.gz")
    for folder in ("labels", "of_series"):
        name = case if folder == "labels" else "series"
        wanted = {f"{name}.nii.gz", f"{name}.json", f"probabilities/{name}.nii.gz"}
        assert {f"{folder}/{file}" for file in wanted | {f"attention/{name}.nii.gz"}} <= names
    assert {"of_torn/failures.json", "of_lost/failures.json", "of_bad/failures.json"} <= names
    assert {"run/model.safetensors", "run/last.pt", "run/config.json", "m.json"} <= names
    assert any(name.startswith("run/cache/") for name in names)
    assert f"exported/{case}.nii.gz" in names
    said = (out / "streams.txt").read_text(encoding="utf-8")
    for name in ("cut", "magic", "type", "torn", "lost", "other", "second"):
        assert f"{name}: error: " in said
