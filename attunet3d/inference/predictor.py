"""A trained model, or several, over a scan: build once, call many times, answer on the scan's grid.

The order of events: read, one step to the network's grid, the network over windows (or once over
the whole), then, slab by slab, one resample of the logits to the scan's grid and the decision.
Several models are averaged in their logits. With a locator, a coarse model of its own, the network
sees only the box where the labels lie. What was done and how long it took is in the record.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attunet3d.core import Box, Float32s, LabelMap, ModelError, label_values, machine
from attunet3d.imaging import (
    Grid,
    NetworkImage,
    Segmentation,
    Volume,
    hounsfield_warnings,
    read_volume,
    to_network_grid,
)
from attunet3d.inference import ensemble
from attunet3d.inference.decision import decide, to_source_grid
from attunet3d.inference.localisation import Faces, box_around
from attunet3d.inference.passes import Account, Passes
from attunet3d.inference.sliding_window import Slab
from attunet3d.models import Checkpoint, load_model


@dataclass(frozen=True, eq=False)
class Prediction:
    """What came of one scan.

    Args:
        segmentation: The label map on the scan's grid.
        record: Model fingerprint, settings, what was done, seconds by stage and warnings; plain
            values for JSON, none of them from the scan's header.
        probabilities: (I, J, K, classes - 1) of the foreground labels in order, when asked for.
        attention: (I, J, K, maps) coefficients in [0, 1], finest level first, when asked for.
    """

    segmentation: Segmentation
    record: dict[str, Any]
    probabilities: Float32s | None = None
    attention: Float32s | None = None


class Predictor:
    """Segments scans with one model or the mean of several; may be called from any thread.

    Args:
        members: Loaded checkpoints; labels, preprocessing and window must agree.
        device: Where the networks run; None: CUDA where there is one, else the CPU.
        settings: `inference.name=value`, over what the models were saved with.
        locator: A coarse model of the same labels; only the box that it finds is segmented.

    Raises:
        ModelError: The members do not belong together, or a setting is not inference's.
    """

    def __init__(
        self,
        members: Sequence[Checkpoint],
        device: str | torch.device | None = None,
        settings: Sequence[str] = (),
        locator: Checkpoint | None = None,
    ) -> None:
        self.config = ensemble.common_config(members, settings)
        self.labels = members[0].labels
        self.keep_largest = label_values(self.config.inference.keep_largest, self.labels)
        self.fingerprint = ensemble.fingerprint(members)
        self.device = machine.pick_device(None if device is None else str(device))
        networks = [member.network for member in members]
        self.passes = Passes(networks, self.config, len(self.labels), self.device)
        self.locator: Predictor | None = None
        if locator is not None:
            ensemble.agree(locator.path, "labels", locator.labels, self.labels)
            self.locator = Predictor([locator], self.device)

    @classmethod
    def load(
        cls,
        models: str | Path | Sequence[str | Path],
        device: str | torch.device | None = None,
        settings: Sequence[str] = (),
        locator: str | Path | None = None,
    ) -> "Predictor":
        """Load run folders or `.safetensors` files; several make an ensemble.

        Raises:
            UserError: A model cannot be read, or the models do not belong together.
        """
        paths = [models] if isinstance(models, str | Path) else list(models)
        if not paths:
            raise ModelError("no model was given; name a run folder or a .safetensors file")
        members = [load_model(Path(path)) for path in paths]
        coarse = None if locator is None else load_model(Path(locator))
        return cls(members, device, settings, coarse)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the model on which a label map depends, as JSON holds it."""
        values = asdict(self.config.inference)
        for name in ("window_batch", "max_voxels"):  # of memory, not of the outcome
            del values[name]
        settings = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        return settings | {"locator": None if self.locator is None else self.locator.fingerprint}

    def read(self, path: str | Path) -> Volume:
        """Read a scan as `predict` does; made for a thread that reads ahead."""
        return read_volume(Path(path), max_voxels=self.config.inference.max_voxels)

    def predict(self, scan: str | Path | Volume) -> Segmentation:
        """Return the label map of one scan, on that scan's grid.

        Raises:
            UserError: The scan cannot be read, or the network's output is not finite.
        """
        return self.segment(scan if isinstance(scan, Volume) else self.read(scan)).segmentation

    @torch.inference_mode()
    def segment(
        self, volume: Volume, *, probabilities: bool = False, attention: bool = False
    ) -> Prediction:
        """Segment one scan and tell how.

        Args:
            volume: The scan, in Hounsfield units.
            probabilities: Give the foreground labels' probabilities as well.
            attention: Give the gates' coefficients as well.

        Raises:
            ModelError: The network gave NaN or infinity for this scan, or has no gates.
            torch.OutOfMemoryError: Not even one window fits the GPU.
        """
        work = _Work(volume, probabilities, attention)
        with work.watch.stage("preprocessing"):
            image = to_network_grid(volume, self.config.preprocessing, self.device)
        box = None if self.locator is None else self._locate(work, image.grid)
        if box is not None:
            faces = Faces(box, image.grid.shape, len(self.labels))
            part = NetworkImage(image.tensor[:, *box], image.grid.cropped(box))
            array, maps = self._answer(work, part, faces)
            if faces.touched:
                work.account.fallbacks.append("the answer reached the located box: whole scan")
                box = None
        if box is None:
            array, maps = self._answer(work, image)
        segmentation = Segmentation(array, volume.grid, self.labels, volume.geometry)
        return Prediction(segmentation, self._record(work), *maps)

    def _locate(self, work: "_Work", grid: Grid) -> Box | None:
        """The box of `grid` where the locator sees labels; None: the whole must be done."""
        assert self.locator is not None
        with work.watch.stage("locating"):
            image = to_network_grid(
                work.volume, self.locator.config.preprocessing, self.locator.device
            )
            account = Account()
            slabs = self.locator.passes.slabs(image.tensor, account)
            labels = decide(slabs, image.grid, image.grid, sorted(self.labels))
            work.account.fallbacks += [f"locator: {text}" for text in account.fallbacks]
            box = box_around(labels, image.grid, grid, self.passes.window)
        if box is None:
            work.account.fallbacks.append("the locator found nothing: whole scan")
        return box

    def _answer(
        self, work: "_Work", image: NetworkImage, faces: Faces | None = None
    ) -> tuple[LabelMap, list[Float32s | None]]:
        """The label map of `image` on the scan's grid, and the maps that are wanted."""
        everything = work.probabilities or work.attention
        slabs = self.passes.slabs(
            image.tensor, work.account, all_channels=everything, attention=work.attention
        )
        slabs = work.watch.watch(slabs, work.volume.name)
        slabs = slabs if faces is None else faces.watch(slabs)
        maps: list[Float32s | None] = [None, None]
        if everything:
            with work.watch.stage("maps"):
                kept = list(slabs)  # of the network's grid: small beside the maps asked for
                maps = self._maps(work, kept, image.grid)
            slabs = _first(kept, len(self.labels))
        with work.watch.stage("decision"):
            source, values = work.volume.grid, sorted(self.labels)
            return decide(slabs, image.grid, source, values, self.keep_largest), maps

    def _maps(self, work: "_Work", slabs: list[Slab], network: Grid) -> list[Float32s | None]:
        """Foreground probabilities and attention on the source grid, those that are wanted."""
        classes, source = len(self.labels), work.volume.grid
        probabilities = attention = None
        if work.probabilities:
            probabilities = np.zeros((*source.shape, classes - 1), np.float32, order="F")
            for box, logits in to_source_grid(_first(slabs, classes), network, source):
                probabilities[box] = logits.softmax(0)[1:].permute(1, 2, 3, 0).cpu().numpy()
        if work.attention:
            count = slabs[0].logits.shape[0] - classes
            if count == 0:
                raise ModelError("this model has no attention gates; leave attention maps out")
            attention = np.zeros((*source.shape, count), np.float32, order="F")
            rest = [Slab(slab.start, slab.logits[classes:]) for slab in slabs]
            for box, values in to_source_grid(rest, network, source):
                attention[box] = values.clamp(0, 1).permute(1, 2, 3, 0).cpu().numpy()
        return [probabilities, attention]

    def _record(self, work: "_Work") -> dict[str, Any]:
        volume, account = work.volume, work.account
        return {
            "model": self.fingerprint,
            "members": len(self.passes.networks),
            "settings": self.settings,
            "mode": account.mode,
            "precision": account.precision,
            "device": self.device.type,
            "fallbacks": account.fallbacks,
            "warnings": [*volume.warnings, *hounsfield_warnings(volume)],
            "seconds": {name: round(value, 4) for name, value in work.watch.seconds.items()},
        }


class _Stopwatch:
    """Seconds by stage; the network's share is taken out of what asks for its slabs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin, network = time.perf_counter(), self.seconds.get("network", 0.0)
        yield
        waited = self.seconds.get("network", 0.0) - network
        spent = time.perf_counter() - begin - waited
        self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def watch(self, slabs: Iterator[Slab], name: str) -> Iterator[Slab]:
        """The slabs, each seen to be finite."""
        while True:
            begin = time.perf_counter()
            slab = next(slabs, None)
            # NaN and infinity survive a sum: one pass, and the GPU has finished when it is known.
            if slab is not None and not math.isfinite(float(slab.logits.sum())):
                raise ModelError(
                    f"{name}: the network gave NaN or infinity for this scan; check the scan's"
                    " values and the model, or try --set inference.precision=float32"
                )
            spent = time.perf_counter() - begin
            self.seconds["network"] = self.seconds.get("network", 0.0) + spent
            if slab is None:
                return
            yield slab


@dataclass(frozen=True, eq=False)
class _Work:
    """One scan, what is wanted of it, and what was done so far."""

    volume: Volume
    probabilities: bool
    attention: bool
    account: Account = field(default_factory=Account)
    watch: _Stopwatch = field(default_factory=_Stopwatch)


def _first(slabs: list[Slab], classes: int) -> Iterator[Slab]:
    """The class logits alone."""
    for slab in slabs:
        yield Slab(slab.start, slab.logits[:classes])
