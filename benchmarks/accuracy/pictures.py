"""Pictures of a material to look at: one axial and one coronal slice per case, organs outlined.

Usage: python -m benchmarks.accuracy.pictures MATERIAL_DIR PICTURE.png [--organ VALUE] [--cases N]
       [--predictions DIR]

The slices are those that hold most of the organ. With --predictions only segmented cases are
shown, the prediction dashed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes

from attunet3d.core import Array

HU_WINDOW = (-160, 240)


def upright(path: Path) -> tuple[Array, tuple[float, ...]]:
    """An array with its axes along R, A, S, and its spacing."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj), image.header.get_zooms()[:3]


def draw(axes: Axes, plane: Array, labels: Sequence[Array], aspect: float) -> None:
    """One slice as radiologists see it, the patient's right on the left."""
    axes.imshow(
        plane[::-1].T,
        cmap="gray",
        vmin=HU_WINDOW[0],
        vmax=HU_WINDOW[1],
        origin="lower",
        aspect=aspect,
    )
    for label, style in zip(labels, ("solid", "dashed"), strict=False):
        for value in np.unique(label[label > 0]):
            outline = (label == value)[::-1].T
            if outline.any() and not outline.all():
                colour = plt.cm.tab10(int(value) % 10)
                axes.contour(outline, [0.5], colors=[colour], linewidths=0.7, linestyles=style)
    axes.axis("off")


@dataclass(frozen=True)
class Column:
    """A case to draw."""

    title: str
    scan: Path
    reference: Path
    prediction: Path | None = None


def sheet(columns: Sequence[Column], organ: int) -> plt.Figure:
    """The slices of each case that hold most of an organ's reference: axial above coronal."""
    figure, rows = plt.subplots(
        2, len(columns), figsize=(2.6 * len(columns), 4.6), squeeze=False, layout="constrained"
    )
    for number, column in enumerate(columns):
        scan, spacing = upright(column.scan)
        labels = [upright(column.reference)[0]]
        if column.prediction is not None:
            labels.append(upright(column.prediction)[0])
        inside = labels[0] == organ
        k, j = int(inside.sum(axis=(0, 1)).argmax()), int(inside.sum(axis=(0, 2)).argmax())
        axial, coronal = rows[:, number]
        draw(axial, scan[:, :, k], [part[:, :, k] for part in labels], spacing[1] / spacing[0])
        draw(coronal, scan[:, j], [part[:, j] for part in labels], spacing[2] / spacing[0])
        axial.set_title(column.title, fontsize=7)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("material", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--organ", type=int, default=1)
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--predictions", type=Path)
    arguments = parser.parse_args()
    folder = arguments.predictions or arguments.material / "imagesTr"
    names = sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))
    shown = names[:: max(1, len(names) // arguments.cases)][: arguments.cases]
    columns = [
        Column(
            name,
            arguments.material / "imagesTr" / f"{name}.nii.gz",
            arguments.material / "labelsTr" / f"{name}.nii.gz",
            arguments.predictions and arguments.predictions / f"{name}.nii.gz",
        )
        for name in shown
    ]
    sheet(columns, arguments.organ).savefig(arguments.picture, dpi=80)


if __name__ == "__main__":
    main()
