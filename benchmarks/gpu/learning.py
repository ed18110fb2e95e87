"""The section of the GPU benchmark that trains by `Trainer.fit`, on phantoms read from disk.

What data costs is told twice: by the time between two steps, and by how much longer a step takes
than on a batch that is there already (which also holds the GPU's time for the augmentation). The
model that comes of it is what `inference` runs.
"""

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from attunet3d.core import Config
from attunet3d.datasets import Case
from attunet3d.phantoms import LABELS
from attunet3d.training import Batch, PatchBatches, Trainer, TrainingData, build_cache
from benchmarks.gpu.timing import (
    BusyShare,
    Result,
    Section,
    Setting,
    attempt,
    peak_memory,
    rounded,
    synchronise,
    timed,
)
from benchmarks.gpu.training import preset

STEPS = 400
FEWER_STEPS = 150  # of the run with one thread


class Watched(Trainer):
    """Notes when each step begins and ends, and keeps the last batch."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.moments: list[tuple[float, float]] = []
        self.last: Sequence[Batch] = ()

    def _train_step(self, batches: Sequence[Batch]) -> Any:
        began, self.last = time.perf_counter(), batches
        value = super()._train_step(batches)
        self.moments.append((began, time.perf_counter()))
        return value

    def again(self) -> Any:
        """One more step on the last batch, without waiting for another."""
        return super()._train_step(self.last)


def learning(setting: Setting) -> Section:
    """As many threads prepare batches as is the default, and one."""
    config = learning_config(setting, 2 if setting.small else STEPS)
    data = attempt(lambda: prepare(setting, config))
    if not isinstance(data, TrainingData):
        yield "data", lambda: data
        return
    yield "batches as on the CPU", lambda: same_batches(setting, data, config)
    yield "fit", lambda: fit(setting, data, config)
    yield "data alone", lambda: supply(setting, data, config)
    if not setting.small:
        shorter = [f"training.{name}={FEWER_STEPS}" for name in ("steps", "validate_every")]
        one = config.with_overrides([*shorter, "training.workers=1"])
        yield "fit, one thread", lambda: fit(setting, data, one)
        yield "data alone, one thread", lambda: supply(setting, data, one)


def same_batches(setting: Setting, data: TrainingData, config: Config) -> Result:
    """A batch made on the device against one made on the CPU, all augmentations at once.

    But noise, which each device draws for itself.
    """
    names = ("affine", "elastic", "blur", "brightness", "contrast", "gamma", "low_resolution")
    every = [f"augmentation.{name}_probability=1" for name in names]
    batches = PatchBatches(data.training, config.with_overrides(every))
    ours, reference = (batches.batch(0, device) for device in (setting.device, "cpu"))
    return {
        "largest_difference": rounded(float((ours.image.cpu() - reference.image).abs().max())),
        "mean_difference": rounded(float((ours.image.cpu() - reference.image).abs().mean())),
        "same_label": rounded(float((ours.label.cpu() == reference.label).float().mean())),
    }


def fit(setting: Setting, data: TrainingData, config: Config) -> Result:
    """Train; the first quarter of the steps warms up."""
    run_dir = setting.work / f"run_{config.training.workers}"
    run_dir.mkdir(exist_ok=True)
    trainer = Watched(data, config, run_dir, setting.device)
    with peak_memory(setting.device) as record, BusyShare(setting) as busy:
        result = trainer.fit()
    settled = trainer.moments[len(trainer.moments) // 4 :]
    span, count = settled[-1][0] - settled[0][0], len(settled) - 1
    between = sum(later[0] - earlier[1] for earlier, later in pairwise(settled))
    alone = min(timed(trainer.again, setting, batch=1 if setting.small else 20))
    return record | {
        "steps_a_second": rounded(count / span),
        "ms_a_step": rounded(1e3 * span / count),
        "ms_a_step_on_the_same_batch": rounded(1e3 * alone),
        "share_between_steps": rounded(between / span),
        "share_lost_to_data": rounded(max(0.0, 1 - alone * count / span)),
        "gpu_busy_share_by_nvidia_smi": busy.share,  # validation and the first steps included
        "best_dice_network_grid": result.best_dice,
        "seconds": result.seconds,
    }


def supply(setting: Setting, data: TrainingData, config: Config) -> Result:
    """Batches a second with nobody training."""
    count = 3 if setting.small else 100
    stream = PatchBatches(data.training, config).iterate(0, setting.device, count)
    next(stream)
    synchronise(setting.device)
    began = time.perf_counter()
    rest = sum(1 for _ in stream)
    synchronise(setting.device)
    seconds = (time.perf_counter() - began) / rest
    return {"ms_a_batch": rounded(1e3 * seconds), "batches_a_second": rounded(1 / seconds)}


def learning_config(setting: Setting, steps: int) -> Config:
    """`oktay2018` with its augmentation; a loss and rate that learn something in so few steps."""
    settings = [
        f"training.steps={steps}",
        f"training.validate_every={steps}",
        f"training.save_every={steps}",
        "training.loss=dice_ce",
        "training.schedule=polynomial",
        "training.learning_rate=2e-3",
        "training.foreground_fraction=0.5",
        "preprocessing.hu_window=[-160,240]",
    ]
    coarse = ["preprocessing.spacing_mm=[12,12,12]"] if setting.small else []
    config = preset("oktay2018", setting.small).with_overrides([*settings, *coarse])
    window = json.dumps(config.training.patch_size)
    return config.with_overrides([f"inference.window={window}"])


def prepare(setting: Setting, config: Config) -> TrainingData:
    """Phantoms that lie in the work folder, on the network's grid; the last is for validation."""
    scans = sorted(setting.work.glob("phantoms_*/imagesTr/*.nii.gz"))
    cases = [
        Case(id=path.name.split(".")[0], image=path, label=path.parents[1] / "labelsTr" / path.name)
        for path in scans
    ]
    cached = build_cache(cases, LABELS, config, setting.work / "cache")
    return TrainingData(training=cached[:-1], validation=cached[-1:], labels=LABELS)
