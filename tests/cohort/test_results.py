"""Names that stay in their folder, sidecars that say what stands, failures with their reasons."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from attunet3d.cohort import results
from attunet3d.cohort.case_writer import write_label_masks
from attunet3d.cohort.outcome import Outcome, failure_reason, write_failures
from attunet3d.cohort.results import CaseFiles, case_files, is_done
from attunet3d.core import FileError, WriteError
from attunet3d.core.errors import UserError
from attunet3d.imaging.geometry import Grid
from attunet3d.imaging.volume import Segmentation
from tests.known_network import AFFINE, SHAPE, ball

ORIGIN = {"model": "f" * 64, "settings": {"overlap": 0.5}}


def segmentation() -> Segmentation:
    array = np.asfortranarray((ball() == 300).astype(np.uint8) * 5)
    return Segmentation(array, Grid(SHAPE, AFFINE), {0: "background", 5: "ball", 6: "cube"}, None)


@pytest.fixture
def done(tmp_path: Path) -> CaseFiles:
    """A case that stands whole."""
    files = case_files(tmp_path, "case")
    files.mask.write_bytes(b"a label map")
    results.write_sidecar(files, segmentation(), [files.mask], ORIGIN)
    return files


@pytest.mark.parametrize("case_id", ["case_7", "-leading-dash", "UPPER CASE ünïcode 名前", "a.b"])
def test_plain_names_stay_in_the_folder(tmp_path: Path, case_id: str) -> None:
    files = case_files(tmp_path, case_id)
    for path in (files.mask, files.sidecar, files.maps("probabilities"), files.maps("attention")):
        assert path.resolve().is_relative_to(tmp_path.resolve())
    assert files.mask.name == f"{case_id}.nii.gz"


@pytest.mark.parametrize(
    "case_id",
    [
        *("", ".", "..", "../x", "/etc/x", "a/b", "a\\b", "C:x", "a\0b", "a\nb", ".hidden", " a"),
        *("a ", "failures", "Failures", "x" * 201, "é" * 101),
    ],
)
def test_other_names_are_refused(tmp_path: Path, case_id: str) -> None:
    with pytest.raises(WriteError, match="case id"):
        case_files(tmp_path, case_id)


def test_sidecar_gives_names_and_volumes(done: CaseFiles) -> None:
    content = json.loads(done.sidecar.read_text(encoding="utf-8"))
    voxels = np.count_nonzero(ball() == 300)
    assert content["labels"] == {"0": "background", "5": "ball", "6": "cube"}
    assert content["volumes"] == {
        "ball": {"value": 5, "voxels": voxels, "ml": pytest.approx(voxels * 0.008)},
        "cube": {"value": 6, "voxels": 0, "ml": 0},
    }
    assert set(content["files"]) == {"case.nii.gz"}
    assert content["versions"]["torch"] == torch.__version__
    assert results.read_sidecar(done.sidecar) == content


def test_regions_are_recorded_and_read_back(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint8, order="F")
    array[2:8, 2:4, 2:4], array[4:6, 2:4, 2:4] = 1, 2
    names = {0: "background", 1: "whole", 2: "mass"}
    regions = {1: (1, 2), 2: (2,)}
    ours = Segmentation(array, Grid(SHAPE, AFFINE), names, None, regions)
    files = case_files(tmp_path, "case")
    ours.save(files.mask)
    results.write_sidecar(files, ours, [files.mask], ORIGIN)
    content = results.read_sidecar(files.sidecar)
    assert content["regions"] == {"1": [1, 2], "2": [2]}
    assert [content["volumes"][name]["voxels"] for name in ("whole", "mass")] == [24, 8]
    assert results.read_segmentation(files, content).regions == regions
    paths = write_label_masks(files, ours)
    masks = [np.asarray(nibabel.load(path).dataobj) for path in paths]
    assert np.array_equal(masks[0], array > 0)
    assert np.array_equal(masks[1], array == 2)


@pytest.mark.parametrize(
    "regions", ["[1, 2]", '{"1": 2}', '{"x": [1]}', '{"1": ["x"]}', '{"1": []}']
)
def test_regions_that_are_none_are_refused(done: CaseFiles, regions: str) -> None:
    content = json.loads(done.sidecar.read_text()) | {"regions": json.loads(regions)}
    done.sidecar.write_text(json.dumps(content))
    with pytest.raises(FileError, match=r"case\.json: .*its regions must be lists"):
        results.read_sidecar(done.sidecar)


def test_done_case_is_not_repeated(done: CaseFiles) -> None:
    assert is_done(done, [done.mask], ORIGIN)


def test_case_whose_files_are_not_what_the_sidecar_says_is_not_done(done: CaseFiles) -> None:
    assert not is_done(done, [done.mask, done.maps("probabilities")], ORIGIN)
    done.mask.write_bytes(b"a label maq")
    assert not is_done(done, [done.mask], ORIGIN)
    done.mask.unlink()
    assert not is_done(done, [done.mask], ORIGIN)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {}}', "[" * 100_000])
def test_sidecar_that_is_none_leaves_the_case_undone(done: CaseFiles, text: str) -> None:
    done.sidecar.write_text(text)
    assert not is_done(done, [done.mask], ORIGIN)
    with pytest.raises(FileError, match=r"case\.json"):
        results.read_sidecar(done.sidecar)


def test_oversized_sidecar_is_not_read(done: CaseFiles) -> None:
    done.sidecar.write_text(" " * (results.SIDECAR_BYTES + 1))
    with pytest.raises(FileError, match="larger than"):
        results.read_sidecar(done.sidecar)


def test_case_of_another_model_is_neither_kept_nor_overwritten_silently(done: CaseFiles) -> None:
    with pytest.raises(WriteError, match=r"made with another model; use --overwrite"):
        is_done(done, [done.mask], {**ORIGIN, "model": "0" * 64})
    with pytest.raises(WriteError, match="made with other settings"):
        is_done(done, [done.mask], {**ORIGIN, "settings": {"overlap": 0.25}})


def test_failures_are_listed_and_an_older_list_goes(tmp_path: Path) -> None:
    write_failures(tmp_path, {"b": "why b", "a": "why a"})
    assert json.loads((tmp_path / "failures.json").read_text(encoding="utf-8")) == {
        "a": "why a",
        "b": "why b",
    }
    write_failures(tmp_path, {})
    write_failures(tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("a.nii.gz: torn; load it again"), "a.nii.gz: torn; load it again"),
        (FileNotFoundError(2, "No such file", "x.nii"), "x.nii: No such file"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory (OutOfMemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory (Runtime"),
        (ZeroDivisionError("by\nzero"), "internal error (ZeroDivisionError: by zero)"),
    ],
)
def test_reason_is_one_line(error: Exception, text: str) -> None:
    assert failure_reason(error).startswith(text)
    assert "\n" not in failure_reason(error)


def test_memory_that_runs_out_is_told_with_what_took_it() -> None:
    assert "; use a smaller --memory" in failure_reason(MemoryError())
    assert "; leave the probabilities and attention maps out" in failure_reason(
        MemoryError(), maps=True
    )


def test_outcome_counts() -> None:
    assert str(Outcome(["a", "b"], ["c"], {"d": "why"})) == "2 done, 1 already done, 1 failed"
    assert str(Outcome()) == "no cases"
