"""One clinical scan by two commands on a CPU: `attunet3d infer` against `nnUNetv2_predict`.

Usage: python -m benchmarks.speed.nnunet [--small] [--repeats N] [--out FOLDER]

Equal grid (1.5 mm), equal windows (96³, half of each shared), no mirroring. nnU-Net's network is
the one its planner gives such patches: five stages of 32 to 320 channels, InstanceNorm. Weights are
random: this is about time and memory. As the networks differ in size, seconds are also told per
network FLOP, counted by torch. Memory is the largest process's peak, so nnU-Net's helpers, which
live beside it, are not added up. Needs `nnunetv2` (extra [benchmarks]); nnU-Net takes minutes.
Beside a CPU build of torch, `pip uninstall torchvision` first: the one that comes with nnunetv2 is
made for CUDA, does not load, and is not needed here.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attunet3d.imaging import read_label
from attunet3d.models import AttentionUNet3D, save_model
from benchmarks import measure
from benchmarks.speed.clinical_scan import CLINICAL, SMALL, write_clinical_scan
from benchmarks.speed.end_to_end import (
    CHANNELS,
    LABELS,
    WINDOWS,
    config,
    gigaflops,
    number_of_windows,
)

WINDOW, SMALL_WINDOW = 96, 64  # nnU-Net's InstanceNorm needs more than one voxel at the bottom
DATASET = "Dataset900_Benchmark"
PLANS = Path(__file__).with_name("nnunet_plans.json")
BFLOAT16 = (*WINDOWS, "inference.precision=bfloat16")


def plans(window: int) -> dict[str, Any]:
    """What nnU-Net's planner writes for such scans on this grid, for patches of `window`³."""
    content: dict[str, Any] = json.loads(PLANS.read_text(encoding="utf-8"))
    content["configurations"]["3d_fullres"]["patch_size"] = [window] * 3
    return content


def nnunet_network(window: int) -> torch.nn.Module:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = plans(window)["configurations"]["3d_fullres"]["architecture"]
    torch.manual_seed(0)
    network: torch.nn.Module = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        input_channels=1,
        output_channels=len(LABELS),
        deep_supervision=False,
    )
    return network


def nnunet(scan: Path, folder: Path, window: int) -> Callable[[], float]:
    """A model folder in nnU-Net's own format, and the command over it."""
    model = folder / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans(window)))
    names = {name: value for value, name in LABELS.items()}
    dataset = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 1}
    (model / "dataset.json").write_text(json.dumps({**dataset, "file_ending": ".nii.gz"}))
    checkpoint = {
        "network_weights": nnunet_network(window).state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    source, target = folder / "nnunet_in", folder / "nnunet_out"
    source.mkdir()
    (source / "scan_0000.nii.gz").symlink_to(scan)
    program = Path(sys.executable).with_name("nnUNetv2_predict")
    call: list[Any] = [program, "-i", source, "-o", target, "-d", DATASET, "-c", "3d_fullres"]
    call += ["-f", 0, "-device", "cpu", "--disable_tta", "-step_size", 0.5]
    places = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    return lambda: measure.launched(call, dict.fromkeys(places, str(folder)))[1]


def ours(scan: Path, folder: Path, window: int, settings: tuple[str, ...]) -> Callable[[], float]:
    model, out = folder / "ours.safetensors", folder / f"ours_{len(settings)}"
    torch.manual_seed(0)
    network = AttentionUNet3D(channels=CHANNELS)
    save_model(model, network.state_dict(), config(False, window), LABELS)
    call: list[Any] = [sys.executable, "-m", "attunet3d", "infer", model, scan, out, "--overwrite"]
    call += ["--device", "cpu", *(part for setting in settings for part in ("--set", setting))]
    return lambda: measure.launched(call)[1]


def main() -> None:
    options = measure.parser(__doc__, repeats=1, small="a run of a minute").parse_args()
    window = SMALL_WINDOW if options.small else WINDOW
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = write_clinical_scan(folder, SMALL if options.small else CLINICAL)
        parts = scan, folder, window
        ways = [
            measure.Way("attunet3d infer, float32", ours, (*parts, WINDOWS)),
            measure.Way("attunet3d infer, bfloat16", ours, (*parts, BFLOAT16)),
            measure.Way("nnUNetv2_predict", nnunet, parts),
        ]
        outcomes = measure.compare(ways, options.repeats)
        outcomes = [replace(outcome, peak_mb=outcome.result) for outcome in outcomes]
        windows = number_of_windows(scan, window, crop_to_body=False)
        labels = [folder / "ours_1", folder / "nnunet_out"]
        shapes = {read_label(part / "scan.nii.gz").grid.shape for part in labels}
    networks = nnunet_network(window), AttentionUNet3D(channels=CHANNELS)
    theirs, own = (gigaflops(network, window) for network in networks)
    print(measure.table(outcomes))
    counts = {"windows": windows, "nnunet_gflop_a_window": theirs, "our_gflop_a_window": own}
    peer = outcomes[-1]
    goals = {
        outcome.name: {
            "times_as_fast": round(peer.median / outcome.median, 2),
            "times_as_fast_per_flop": round(peer.median / outcome.median * own / theirs, 2),
            "share_of_memory": round(outcome.peak_mb / peer.peak_mb, 3),
        }
        for outcome in outcomes[:-1]
    }
    print(f"\n{counts}\n{json.dumps(goals, indent=1)}\n{time.perf_counter() - began:.0f} s in all")
    content = {"work": counts, "against_nnunet": goals, "rows": measure.rows(outcomes)}
    print(measure.save("nnunet", content, options.out))
    if len(shapes) != 1:
        raise SystemExit(f"label maps of different shapes: {shapes}")


if __name__ == "__main__":
    main()
