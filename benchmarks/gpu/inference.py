"""Sections of the GPU benchmark on inference: how fast is a pass, a scan, a folder of scans."""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from attunet3d.cohort import segment_cohort
from attunet3d.inference import Execution
from attunet3d.models import checkpoint
from benchmarks.gpu.convolutions import Convolutions
from benchmarks.gpu.correctness import PATCH, SMALL_PATCH, model_path, predictor, scan_path
from benchmarks.gpu.timing import (
    BusyShare,
    Result,
    Section,
    Setting,
    kernels,
    milliseconds,
    peak_memory,
    rounded,
    timed,
)

# An abdomen of 384×384×250 mm on grids of 2, 1.5 and 1 mm.
ABDOMENS = {"2 mm": (192, 192, 125), "1.5 mm": (256, 256, 167), "1 mm": (384, 384, 250)}
SMALL_ABDOMENS = {"small": (24, 24, 17)}
WHOLE, WINDOWS = "inference.mode=whole", "inference.mode=window"
SCANS, SMALL_SCANS = 64, 2
WINDOW_BATCHES = (1, 2, 4, 8)


def passes(setting: Setting) -> Section:
    """Windows a second, passes over whole volumes, and the bare convolutions of both."""
    part = predictor(setting, WHOLE).inferer
    size = SMALL_PATCH if setting.small else PATCH
    batches = WINDOW_BATCHES[:1] if setting.small else WINDOW_BATCHES
    for number in batches:
        x = torch.randn(number, 1, *size, device=setting.device)
        yield f"windows, {number} a pass", partial(windows, setting, part.forward_pass, x)
    for name, shape in (SMALL_ABDOMENS if setting.small else ABDOMENS).items():
        image = torch.randn(1, *shape, device=setting.device)
        yield f"whole {name}", partial(whole, setting, image)
        if name in ("2 mm", "small"):
            forward, x = part.forward_pass(torch.bfloat16), padded(image, part.divisor)
            yield f"operations {name}", partial(kernels, partial(forward, x), setting.device)


def trials(setting: Setting) -> Section:
    """A whole pass and its bare convolutions where cuDNN tries its algorithms on each new shape.

    In a process of its own: what cuDNN once took for a shape it keeps.
    """
    torch.backends.cudnn.benchmark = True
    name, shape = next(iter((SMALL_ABDOMENS if setting.small else ABDOMENS).items()))
    image = torch.randn(1, *shape, device=setting.device)
    yield f"whole {name}", lambda: whole(setting, image)
    yield f"ceiling {name}", lambda: bare(setting, image)


def windows(
    setting: Setting, make: Callable[[torch.dtype], Callable[..., torch.Tensor]], x: torch.Tensor
) -> Result:
    """The network alone on windows that lie on the device."""
    forward = make(torch.bfloat16)
    with peak_memory(setting.device) as record:
        record |= milliseconds(timed(lambda: forward(x), setting))
    return record | {"windows_a_second": rounded(1e3 * len(x) / record["ms"])}


def padded(image: torch.Tensor, divisor: Sequence[int]) -> torch.Tensor:
    """(1, 1, x, y, z) of sizes that the network's strides divide."""
    missing = [-size % part for size, part in zip(image.shape[1:], divisor, strict=True)]
    x, y, z = missing
    return torch.nn.functional.pad(image, (0, z, 0, y, 0, x))[None]


def whole(setting: Setting, image: torch.Tensor) -> Result:
    """The network alone over all, and the same as `infer` calls it."""
    part = predictor(setting, WHOLE, "inference.precision=bfloat16").inferer
    forward, x = part.forward_pass(torch.bfloat16), padded(image, part.divisor)
    execution = Execution()

    def as_infer_does() -> None:
        for _ in part.slabs(image, execution):
            pass

    with peak_memory(setting.device) as record:
        record |= milliseconds(timed(lambda: forward(x), setting))
    record["as_infer_does_ms"] = milliseconds(timed(as_infer_does, setting))["ms"]
    return record | {"mode": execution.mode, "fallbacks": sorted(set(execution.fallbacks))}


def bare(setting: Setting, image: torch.Tensor) -> Result:
    """The convolutions of one pass of the network as it is written, in bfloat16."""
    network = checkpoint.load_model(model_path(setting)).network.to(setting.device)
    mixed = torch.autocast(setting.device.type, torch.bfloat16)
    x = padded(image, network.divisor)
    with torch.no_grad(), mixed, Convolutions(setting.device) as convolutions:
        network(x)
    found: Result = convolutions.seconds(setting)
    return found


def cohort(setting: Setting) -> Section:
    """One scan at a time, then a folder of them by `segment_cohort`."""
    yield "one scan, whole", lambda: one_scan(setting, WHOLE)
    yield "one scan, windows", lambda: one_scan(setting, WINDOWS)
    count = SMALL_SCANS if setting.small else SCANS
    yield "cohort, whole", lambda: folder(setting, WHOLE, count)
    yield "cohort, windows", lambda: folder(setting, WINDOWS, count // 2)


def one_scan(setting: Setting, mode: str) -> Result:
    """File to file with a model that is loaded and has run once."""
    model, path = predictor(setting, mode), scan_path(setting)
    target = setting.work / "one.nii.gz"
    stages: list[dict[str, float]] = []

    def work() -> None:
        prediction = model.segment(model.read(path))
        prediction.segmentation.save(target)
        stages.append(prediction.record.seconds)

    record = milliseconds(timed(work, setting, warm=2))
    names = stages[-1]
    medians = {
        n: rounded(1e3 * statistics.median(s[n] for s in stages[2:] or stages)) for n in names
    }
    return record | {"stages_ms": medians}


def folder(setting: Setting, mode: str, count: int) -> Result:
    """Scans a second; all scans are one file under `count` names, read from memory."""
    scans = []
    for number in range(count):
        path = setting.work / "scans" / f"scan_{number:03}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            os.link(scan_path(setting), path)
        scans.append((path.name.split(".")[0], path))
    model = predictor(setting, mode)
    model.predict(scans[0][1])
    target = setting.work / f"labels_{mode.split('=')[1]}"
    shutil.rmtree(target, ignore_errors=True)  # of an earlier call: it would count as done
    with BusyShare(setting) as busy:
        began = time.perf_counter()
        segment_cohort(model, scans, target)
        seconds = time.perf_counter() - began
    records = [json.loads((target / f"{name}.json").read_text()) for name, _ in scans]
    stages = {
        name: rounded(1e3 * statistics.fmean(record["seconds"][name] for record in records))
        for name in records[0]["seconds"]
    }
    return {
        "scans": count,
        "scans_a_second": rounded(count / seconds),
        "seconds": rounded(seconds),
        "gpu_busy_share_by_nvidia_smi": busy.share,
        "stages_ms": stages,
        "precision": records[0]["precision"],
        "mode": records[0]["mode"],
        "fallbacks": sorted({text for record in records for text in record["fallbacks"]}),
    }
