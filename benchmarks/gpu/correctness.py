"""The section of the GPU benchmark that asks whether the device computes what the CPU does.

The model is the one that `learning` trained, or one of random weights where that failed (then
bfloat16 is off in more voxels, as margins lie near 0 everywhere).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attunet3d.core import find_config
from attunet3d.imaging import read_volume, to_network_grid
from attunet3d.inference import Execution, Predictor, Slab, decide, deviation
from attunet3d.models import build_network, checkpoint
from benchmarks.gpu.timing import Result, Section, Setting, rounded

PATCH, SMALL_PATCH = (160, 160, 96), (16, 16, 16)


def model_path(setting: Setting) -> Path:
    """The trained model, or one of random weights, made here."""
    trained = setting.work / "run_0" / checkpoint.MODEL
    if trained.is_file():
        return trained
    path = setting.work / "random.safetensors"
    if not path.is_file():
        window = json.dumps(SMALL_PATCH if setting.small else PATCH)
        sizes = (
            ["network.channels=[4,8,8]", "network.strides=[[2,2,2],[2,2,2]]"]
            if setting.small
            else []
        )
        config = find_config("oktay2018").with_overrides([*sizes, f"inference.window={window}"])
        torch.manual_seed(0)
        network = build_network(config.network, 1, 2)
        checkpoint.save_model(path, network.state_dict(), config, {0: "background", 1: "organ"})
    return path


def predictor(setting: Setting, *settings: str) -> Predictor:
    """Of that model on the device, with its self-test of bfloat16."""
    return Predictor.load(model_path(setting), str(setting.device), settings)


def scan_path(setting: Setting) -> Path:
    """The clinical-size phantom."""
    return setting.work / "scan" / "scan.nii.gz"


def patch(setting: Setting) -> torch.Tensor:
    """The middle of a real scan on the network's grid, (1, 1, x, y, z) on the CPU."""
    config = predictor(setting).config
    size = SMALL_PATCH if setting.small else PATCH
    image = to_network_grid(read_volume(scan_path(setting)), config.preprocessing).tensor
    sides = zip(image.shape[1:], size, strict=True)
    starts = [max(0, (length - side) // 2) for length, side in sides]
    box = [slice(start, start + side) for start, side in zip(starts, size, strict=True)]
    return image[None, :, box[0], box[1], box[2]].contiguous()


def correctness(setting: Setting) -> Section:
    """Logits, resampling and decision of the device against float32 on the CPU."""
    image = patch(setting)
    network = checkpoint.load_model(model_path(setting)).network
    with torch.inference_mode():
        exact = network(image)  # (1, K, x, y, z)
    inferer = predictor(setting).inferer

    def against(dtype: torch.dtype) -> Result:
        fast = inferer.forward_pass(dtype)(image.to(setting.device)).cpu()
        margin, reference = (part[:, 1] - part[:, 0] for part in (fast, exact))
        return {
            "relative_error": rounded(float((fast - exact).abs().max() / exact.abs().max())),
            "same_class": rounded(float(((margin > 0) == (reference > 0)).float().mean())),
            "foreground_share": rounded(float((reference > 0).float().mean())),
            "deviation": deviation(fast, exact),
        }

    def exactly() -> Result:
        with tensor_float_32(allowed=False):
            return against(torch.float32)

    yield "weights", lambda: model_path(setting).stem
    yield "float32 without TF32", exactly
    yield "bfloat16", lambda: against(torch.bfloat16)
    yield "self-test on the real patch", lambda: self_test(setting, image)
    yield "resampling", lambda: resampling(setting)
    yield "decision", lambda: decision(setting)


@contextmanager
def tensor_float_32(*, allowed: bool) -> Iterator[None]:
    """Convolutions and products in float32 with or without TF32."""
    flags: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = allowed
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def self_test(setting: Setting, image: torch.Tensor) -> Result:
    """What `infer` finds at its start, and what it then computes in."""
    execution = Execution()
    for _ in predictor(setting).inferer.slabs(image[0].to(setting.device), execution):
        pass
    return vars(execution)


def resampling(setting: Setting) -> Result:
    """A scan on the network's grid, made on the device and on the CPU."""
    volume, config = read_volume(scan_path(setting)), predictor(setting).config.preprocessing
    ours, reference = (to_network_grid(volume, config, d).tensor for d in (setting.device, "cpu"))
    return {"largest_difference": rounded(float((ours.cpu() - reference).abs().max()))}


def decision(setting: Setting) -> Result:
    """Labels of smooth random margins, decided on the device and on the CPU."""
    volume, config = read_volume(scan_path(setting)), predictor(setting).config.preprocessing
    grid = to_network_grid(volume, config).grid
    coarse = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    margin = torch.nn.functional.interpolate(coarse, grid.shape, mode="trilinear")[0]
    maps = [
        decide([Slab(0, margin.to(device))], grid, volume.grid, [0, 1])
        for device in (setting.device, "cpu")
    ]
    return {"voxels": maps[0].size, "different": int(np.count_nonzero(maps[0] != maps[1]))}
