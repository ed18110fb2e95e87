"""One clinical scan from file to label map on a CPU: attunet3d against MONAI's AttentionUnet.

Usage: python -m benchmarks.speed.end_to_end [--small] [--repeats N] [--out FOLDER]

Both have 16 to 256 channels, a 1.5 mm grid, windows of 96³ at overlap 0.5 with Gaussian weights,
linear resampling of the logits to the scan's grid and the largest one's label. Weights are random:
this is about time. "same windows" leaves our crop to the body out, so both run as many windows;
"body box" is what `attunet3d infer` does; "whole" is one pass over that box, in float32 and, where
the processor computes in it, in bfloat16. MONAI's takes minutes a turn: one measured turn by
default, and none but that with --repeats 0.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from attunet3d.cohort import case_files, write_case
from attunet3d.core import Config, InferenceConfig
from attunet3d.imaging import network_grid, read_volume
from attunet3d.inference import Predictor, window_starts
from attunet3d.models import AttentionUNet3D, save_model
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

WINDOW, SMALL_WINDOW = 96, 32
CHANNELS = (16, 32, 64, 128, 256)
OVERLAP = 0.5
WINDOWS = ("inference.mode=window",)
WHOLE = ("inference.mode=whole",)
WHOLE_BFLOAT16 = (*WHOLE, "inference.precision=bfloat16")
LABELS = {0: "background", 1: "pancreas"}


def config(crop_to_body: bool, window: int) -> Config:
    plain = Config()
    return replace(
        plain,
        network=replace(plain.network, channels=CHANNELS),
        preprocessing=preprocessing(crop_to_body),
        inference=InferenceConfig(window=(window,) * 3, overlap=OVERLAP),
    )


def ours(
    scan: Path, folder: Path, window: int, crop_to_body: bool, settings: tuple[str, ...]
) -> Callable[[], str]:
    """What `attunet3d infer` does for one scan; the model is loaded beforehand."""
    torch.manual_seed(0)
    files = case_files(folder, "_".join((f"ours_{crop_to_body}", *settings)).replace("=", "_"))
    model = folder / f"{files.case_id}.safetensors"
    settled = config(crop_to_body, window)
    save_model(model, AttentionUNet3D(channels=CHANNELS).state_dict(), settled, LABELS)
    predictor = Predictor.load(model, "cpu", settings)

    def work() -> str:
        volume = predictor.read(scan)
        prediction = predictor.segment(volume)
        write_case(files, prediction.segmentation, prediction.record)
        return str(files.mask)

    return work


def monai_network() -> torch.nn.Module:
    from monai.networks.nets import AttentionUnet

    torch.manual_seed(0)
    strides = (2,) * (len(CHANNELS) - 1)
    network: torch.nn.Module = AttentionUnet(3, 1, len(LABELS), channels=CHANNELS, strides=strides)
    return network.eval()


def monai(scan: Path, folder: Path, window: int) -> Callable[[], str]:
    from monai.inferers import SlidingWindowInferer

    network = monai_network()
    inferer = SlidingWindowInferer((window,) * 3, 1, overlap=OVERLAP, mode="gaussian")
    return tutorial_chain(scan, folder, GRID_MM, HU, lambda image: inferer(image, network))


def gigaflops(network: torch.nn.Module, window: int) -> float:
    """Of one window."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 1, *(window,) * 3))
    return round(float(counter.get_total_flops()) / 1e9, 1)


def number_of_windows(scan: Path, window: int, crop_to_body: bool) -> int:
    _, grid = network_grid(read_volume(scan), config(crop_to_body, window).preprocessing)
    return math.prod(len(window_starts(size, window, OVERLAP)) for size in grid.shape)


def main() -> None:
    options = measure.parser(__doc__, repeats=1).parse_args()
    window = SMALL_WINDOW if options.small else WINDOW
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = write_clinical_scan(folder, SMALL if options.small else CLINICAL)
        parts = scan, folder, window
        ways = [
            measure.Way("attunet3d, same windows", ours, (*parts, False, WINDOWS), True),
            measure.Way("attunet3d, body box", ours, (*parts, True, WINDOWS), True),
            measure.Way("attunet3d, whole", ours, (*parts, True, WHOLE), True),
            measure.Way("attunet3d, whole, bfloat16", ours, (*parts, True, WHOLE_BFLOAT16), True),
            measure.Way("MONAI AttentionUnet", monai, parts),
        ]
        outcomes = measure.compare(ways, options.repeats)
        shapes = {read_volume(Path(outcome.result)).grid.shape for outcome in outcomes}
        windows = {crop: number_of_windows(scan, window, crop) for crop in (False, True)}
    work = {
        "windows": windows[False],
        "windows_in_body_box": windows[True],
        "our_gflop_a_window": gigaflops(AttentionUNet3D(channels=CHANNELS), window),
        "monai_gflop_a_window": gigaflops(monai_network(), window),
    }
    print(measure.table(outcomes))
    print("\n" + "\n".join(f"{name}: {value}" for name, value in work.items()))
    last = outcomes[-1].median
    faster = {outcome.name: round(last / outcome.median, 2) for outcome in outcomes}
    print("times as fast as MONAI:", faster)
    content = {"work": work, "times_as_fast": faster, "rows": measure.rows(outcomes)}
    print(measure.save("end_to_end", content, options.out))
    if len(shapes) != 1:
        raise SystemExit(f"label maps of different shapes: {shapes}")


if __name__ == "__main__":
    main()
