"""The corpus of the reliability benchmark, a part of it: read right, or refused by name."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attunet3d.core.errors import UserError
from attunet3d.imaging.nifti_writer import write_nifti
from attunet3d.imaging.scan_check import hounsfield_warnings
from attunet3d.imaging.volume import read_volume
from benchmarks.reliability import infer_verdicts
from benchmarks.reliability.command import Result
from benchmarks.reliability.corpus_files import Entry, load_index
from benchmarks.reliability.corpus_recipes import make_corpus
from benchmarks.reliability.nifti_bytes import qform_affine, raw_header, rotation
from benchmarks.reliability.verdicts import (
    BAD_ACCEPTED,
    GOOD_REFUSED,
    RIGHT,
    UNNAMED,
    WRONG,
    Verdict,
    loaded,
    names,
    refused,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, small=True)
    return folder


def verdict(entry: Entry, folder: Path) -> tuple[Verdict, list[str]]:
    path = folder / entry.file
    try:
        volume = read_volume(path)
    except UserError as error:
        return refused(entry, str(error)), []
    array = volume.array
    if entry.truth is not None:  # what is no number counts as air for us: compare what was stored
        with np.load(folder / entry.truth) as truth:
            array = np.where(np.isfinite(np.float64(truth["hu"])), array, truth["hu"])
    judged = loaded(entry, folder, array, volume.grid.affine)
    return judged, [*volume.warnings, *hounsfield_warnings(volume)]


def test_every_file_is_read_right_or_refused_by_name(corpus: Path) -> None:
    entries = load_index(corpus)
    judged = [verdict(entry, corpus) for entry in entries]
    assert [found for found, _ in judged if found.verdict != RIGHT] == []
    unwarned = [
        entry.file
        for entry, (_, warnings) in zip(entries, judged, strict=True)
        if entry.expect == "accept-warn" and not entry.either and not warnings
    ]
    assert unwarned == []


def test_the_part_holds_every_kind(corpus: Path) -> None:
    entries = load_index(corpus)
    assert set(Counter(entry.expect for entry in entries)) == {"accept", "accept-warn", "refuse"}
    assert len({entry.group for entry in entries}) >= 12
    for entry in entries:
        path = corpus / entry.file
        assert path.exists() or path.is_symlink()


def test_wrong_voxels_and_wrong_places_are_seen(corpus: Path) -> None:
    entry = next(e for e in load_index(corpus) if e.expect == "accept" and e.ball_centre_mm)
    assert entry.truth is not None
    with np.load(corpus / entry.truth) as truth:
        hu, affine = truth["hu"], truth["affine"]
    assert loaded(entry, corpus, hu, affine).verdict == RIGHT
    assert loaded(entry, corpus, hu[..., None], affine).verdict == RIGHT
    assert loaded(entry, corpus, hu[::-1], affine).verdict == WRONG
    assert loaded(entry, corpus, hu * 0, affine).verdict == WRONG
    assert loaded(entry, corpus, hu[1:], affine).verdict == WRONG
    shifted = affine.copy()
    shifted[0, 3] += 1
    assert loaded(entry, corpus, hu, shifted).verdict == WRONG
    assert refused(entry, entry.file).verdict == GOOD_REFUSED
    bad = Entry(file="scans/bad.nii.gz", expect="refuse", why="")
    assert loaded(bad, corpus, hu, affine).verdict == BAD_ACCEPTED
    assert refused(bad, "cannot read a file").verdict == UNNAMED
    assert refused(bad, "/x/bad.nii.gz: is bad").verdict == RIGHT


def test_label_maps_are_judged_by_place_header_and_words(corpus: Path, tmp_path: Path) -> None:
    entry = next(e for e in load_index(corpus) if e.expect == "accept" and e.ball_centre_mm)
    assert entry.truth is not None
    with np.load(corpus / entry.truth) as truth:
        array = np.asfortranarray((truth["hu"] > 170).astype(np.uint8))
    scan = read_volume(corpus / entry.file)
    called = Result(0, "", "", 1.0, 1.0, 100.0, timed_out=False)
    mask = tmp_path / f"{infer_verdicts.case_id(entry.file)}.nii.gz"

    def judged(status: Any = called) -> Any:
        return infer_verdicts.judge([entry], corpus, tmp_path, status)[0].verdict

    assert judged() == UNNAMED  # neither a mask nor a word
    write_nifti(mask, array, scan.geometry, scan.grid)
    assert judged() == RIGHT
    write_nifti(mask, np.roll(array, 2, 1), scan.geometry, scan.grid)
    assert judged() == WRONG
    write_nifti(mask, array * 0, scan.geometry, scan.grid)
    assert judged() == WRONG
    write_nifti(mask, array, None, scan.grid)
    assert judged() == WRONG  # the right place, but not the source's header bit for bit
    mask.unlink()
    case = infer_verdicts.case_id(entry.file)
    (tmp_path / "failures.json").write_text(json.dumps({case: f"{entry.file}: is bad"}))
    assert judged() == UNNAMED  # no line on stderr
    line = f"{case}: error: {entry.file}: is bad"
    assert judged(replace(called, errors=line)) == GOOD_REFUSED
    assert infer_verdicts.without_cure({case: f"{entry.file}: is bad"}) == [f"{entry.file}: is bad"]
    assert infer_verdicts.without_cure({case: f"{entry.file}: is bad; copy it"}) == []


def test_names_are_found_escaped_or_plain() -> None:
    assert names(r"x/new\nline.nii: no", "new\nline.nii")
    assert names("/x/ünï.nii: no", "ünï.nii")
    assert not names("/x/other.nii: no", "ünï.nii")


def test_the_standards_quaternion() -> None:
    half = np.sqrt(0.5)
    quarter_turn_about_z = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    np.testing.assert_allclose(rotation(0, 0, half), quarter_turn_about_z, atol=1e-12)
    left_handed = qform_affine((0, 0, 0), (1, 2, 3), -1)
    np.testing.assert_array_equal(left_handed, np.diag([1.0, 2, -3, 1]))


def test_header_fields_are_read_in_either_byte_order(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    for name in ("nifti1_big.nii", "nifti2_big_packed.nii.gz", "gzip_members.nii.gz"):
        header = raw_header(tmp_path / "scans" / name)
        assert header["dim"].tolist() == [3, 28, 32, 24, 1, 1, 1, 1]
