"""Sliding window and decision around a trivial network: attunet3d against MONAI.

Usage: python -m benchmarks.speed.stitching [--small] [--repeats N] [--out FOLDER]

An image of 500×512×512 voxels, windows of 160×160×96 at overlap 0.5, labels on the same grid. The
network is a polynomial of the image, of 2 and of 14 classes, so every window has the same answer
where windows overlap and the labels of both sides must agree but for rounding. Peak memory counts
above the input, which is there before the work begins, as is the network's output of one window
(20 and 138 MB; JSON has them). The 14 classes are left to us alone unless --peer-many is given:
MONAI's takes some 17 GB.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from attunet3d.imaging import Grid
from attunet3d.inference import decide, sliding_window_slabs
from benchmarks import measure

FULL = (500, 512, 512)
SMALL = (100, 96, 110)
WINDOW = (160, 160, 96)
SMALL_WINDOW = (32, 32, 24)
OVERLAP = 0.5
LEAST_AGREEMENT = 0.9999


def image_of(shape: tuple[int, int, int]) -> torch.Tensor:
    """Smooth noise (1, X, Y, Z) of about unit deviation, Fortran order as scans have it."""
    coarse = torch.randn(
        1, 1, *(max(2, n // 16) for n in shape[::-1]), generator=torch.Generator().manual_seed(0)
    )
    fine = torch.nn.functional.interpolate(coarse, shape[::-1], mode="trilinear")[0]
    return fine.permute(0, 3, 2, 1)


class Network:
    """Logits 2·a·x − a² (a = the class's own value): the class whose value is nearest to x.

    Its output's memory is its own, taken once and laid out as `image` is.
    """

    def __init__(self, classes: int, image: torch.Tensor, window: tuple[int, ...]) -> None:
        self.values = torch.linspace(-1.5, 1.5, classes).reshape(-1, 1, 1, 1)
        like = image[None, :, : window[0], : window[1], : window[2]]
        self.output = torch.ones_like(like).expand(-1, classes, -1, -1, -1).clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of one window, or one plane: the shape it was made for."""
        return torch.mul(x, 2 * self.values, out=self.output).sub_(self.values**2)


def ours(
    shape: tuple[int, int, int], window: tuple[int, int, int], classes: int, answer: Path
) -> Callable[[], str]:
    image = image_of(shape)
    forward = Network(classes, image, window).forward
    grid = Grid(shape, np.eye(4))

    def work() -> str:
        slabs = sliding_window_slabs(image, forward, window=window, overlap=OVERLAP)
        labels = decide(slabs, grid, grid, range(classes))
        return keep(labels, answer)

    return work


def monai(
    shape: tuple[int, int, int], window: tuple[int, int, int], classes: int, answer: Path
) -> Callable[[], str]:
    from monai.inferers import sliding_window_inference

    image = image_of(shape).contiguous()
    forward = Network(classes, image, window).forward

    @torch.no_grad()
    def work() -> str:
        logits = sliding_window_inference(
            image[None], window, 1, forward, overlap=OVERLAP, mode="gaussian"
        )
        return keep(logits.argmax(1)[0].to(torch.uint8).numpy(), answer)

    return work


def keep(labels: np.ndarray, answer: Path) -> str:
    """Write the labels of the first turn, which is not timed."""
    if not answer.exists():
        np.save(answer, labels)
    return str(answer)


def agreement(outcome: measure.Outcome, shape: tuple[int, int, int], classes: int) -> float:
    """Share of voxels labelled as the network of the whole image, plane by plane."""
    labels, image = np.load(outcome.result, mmap_mode="r"), image_of(shape)
    network, same = Network(classes, image, (*shape[:2], 1)), 0
    for k in range(shape[2]):
        exact = network.forward(image[None, ..., k : k + 1])[0, ..., 0].argmax(0).numpy()
        same += int((labels[..., k] == exact).sum())
    return same / int(labels.size)


def main() -> None:
    parser = measure.parser(__doc__, repeats=5)
    parser.add_argument("--peer-many", action="store_true", help="MONAI with 14 classes, too")
    options = parser.parse_args()
    shape, window = (SMALL, SMALL_WINDOW) if options.small else (FULL, WINDOW)
    content: dict[str, object] = {"image": list(shape), "window": list(window), "overlap": OVERLAP}
    parted = []
    with tempfile.TemporaryDirectory() as name:
        for classes in (2, 14):
            sizes = shape, window, classes
            answers = [Path(name, f"{who}_{classes}.npy") for who in ("ours", "monai")]
            ways = [measure.Way(f"attunet3d, {classes} classes", ours, (*sizes, answers[0]), True)]
            if classes == 2 or options.peer_many or options.small:
                way = f"MONAI, {classes} classes"
                ways.append(measure.Way(way, monai, (*sizes, answers[1])))
            outcomes = measure.compare(ways, options.repeats)
            same = {o.name: agreement(o, shape, classes) for o in outcomes}
            print(measure.table(outcomes), "\n")
            for way, share in same.items():
                print(f"{way}: {100 * share:.4f} % as the network on the whole")
            output_mb = round(4e-6 * classes * math.prod(window), 1)
            content[f"{classes}_classes"] = {
                "rows": measure.rows(outcomes),
                "same_label": same,
                "network_output_mb": output_mb,
            }
            parted += [way for way, share in same.items() if share < LEAST_AGREEMENT]
    print(measure.save("stitching", content, options.out))
    if parted:
        raise SystemExit(f"labels part from the network's on the whole image: {parted}")


if __name__ == "__main__":
    main()
