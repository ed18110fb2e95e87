"""What a scan costs around its network: file → 1.5 mm grid → null network → labels → file.

Usage: python -m benchmarks.speed.around_network [--small] [--repeats N] [--out FOLDER]

The null network is a threshold, logits (-x, x) of the normalised scan, called once on the whole
(`stitching.py` measures windows). Ours does all that `attunet3d infer` does: checked read, body box
(or none, as the peer), decision, read-back write, sidecar with checksums; but for the statistics of
the labels, which a threshold of noise lacks (`end_to_end` has them). MONAI's is the chain of
its tutorials (LoadImaged … Invertd of the logits, AsDiscreted, SaveImaged). Labels are held to a
plain float64 computation of our own rule on every tenth plane.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from attunet3d.cohort import case_files, write_sidecar
from attunet3d.imaging import (
    Segmentation,
    hounsfield_warnings,
    read_label,
    read_volume,
    to_network_grid,
)
from attunet3d.inference import decide, whole_volume
from benchmarks import measure
from benchmarks.speed.clinical_scan import (
    CLINICAL,
    GRID_MM,
    HU,
    SMALL,
    preprocessing,
    write_clinical_scan,
)
from benchmarks.speed.monai_chain import tutorial_chain

LABELS = {0: "background", 1: "above the middle"}
LEAST_AGREEMENT = 0.9995
PLANES = slice(None, None, 10)


def null_network(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([-x, x], 1)


def ours(scan: Path, folder: Path, crop_to_body: bool) -> Callable[[], str]:
    config = preprocessing(crop_to_body)
    files = case_files(folder, f"ours_{crop_to_body}")

    @torch.inference_mode()
    def work() -> str:
        volume = read_volume(scan)
        image = to_network_grid(volume, config)
        slabs = whole_volume(image.tensor, null_network, divisor=(1, 1, 1))
        array = decide(slabs, image.grid, volume.grid, sorted(LABELS))
        segmentation = Segmentation(array, volume.grid, LABELS, volume.geometry)
        segmentation.save(files.mask)
        record = {"settings": {}, "warnings": hounsfield_warnings(volume)}
        write_sidecar(files, segmentation, [files.mask], record)
        return str(files.mask)

    return work


def monai(scan: Path, folder: Path) -> Callable[[], str]:
    return tutorial_chain(scan, folder, GRID_MM, HU, null_network)


def reference(scan: Path) -> np.ndarray:
    """Our rule in float64 on some planes: positions by the affines, linear, clipped, linear."""
    volume = read_volume(scan)
    target = volume.grid.oriented("RAS").with_spacing((GRID_MM,) * 3)
    assert max(GRID_MM / size for size in volume.grid.spacing_mm) < 2  # no mean: see `taps`
    image = sample(volume.array.astype(np.float64), volume.grid, target, slice(None))
    image = (np.clip(image, *HU) - sum(HU) / 2) / ((HU[1] - HU[0]) / 2)
    return (sample(image, target, volume.grid, PLANES) > 0).astype(np.uint8)


def sample(array: np.ndarray, source: Any, target: Any, planes: slice) -> np.ndarray:
    """Trilinear samples of `array` at the voxels of `target`'s `planes`; the border goes on."""
    result = []
    for k in range(target.shape[2])[planes]:
        index = np.stack(np.meshgrid(*map(np.arange, target.shape[:2]), [k], indexing="ij"), -1)
        where = np.moveaxis(source.to_index(target.to_world(index)), -1, 0)
        where = where.round(6)  # products of affines miss whole indices by rounding
        result.append(ndimage.map_coordinates(array, where, order=1, mode="nearest"))
    return np.concatenate(result, 2)


def main() -> None:
    options = measure.parser(__doc__, repeats=5).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = write_clinical_scan(folder, SMALL if options.small else CLINICAL)
        ways = [
            measure.Way("attunet3d", ours, (scan, folder, False), command_line=True),
            measure.Way("attunet3d, malloc as it is", ours, (scan, folder, False)),
            measure.Way("attunet3d, body box", ours, (scan, folder, True), command_line=True),
            measure.Way("MONAI, tutorial chain", monai, (scan, folder)),
        ]
        outcomes = measure.compare(ways, options.repeats)
        exact = reference(scan)
        labels = {o.name: read_label(Path(o.result)).array[..., PLANES] for o in outcomes}
    agreement = {way: float((array == exact).mean()) for way, array in labels.items()}
    print(measure.table(outcomes))
    print(f"\n{100 * exact.mean():.1f} % of voxels are labelled; same label as in float64:")
    for way, share in agreement.items():
        print(f"  {way}: {100 * share:.4f} %")
    content = {
        "scan": list(SMALL if options.small else CLINICAL),
        "rows": measure.rows(outcomes),
        "same_label_as_float64": agreement,
    }
    print(measure.save("around_network", content, options.out))
    if agreement[outcomes[0].name] < LEAST_AGREEMENT:
        raise SystemExit("our labels part from the float64 reference")


if __name__ == "__main__":
    main()
