"""A trained model, or several, over a scan: build once, call many times, answer on the scan's grid.

The order of events: read, one step to the network's grid, the network over windows (or once over
the whole), then, slab by slab, one resample of the logits to the scan's grid and the decision.
Several models are averaged in their logits. What was done and how long it took is in the record.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from attunet3d import runtime
from attunet3d.checkpoint import Checkpoint, load_model
from attunet3d.config import Config, Size
from attunet3d.decision import decide, to_source_grid
from attunet3d.errors import UserError
from attunet3d.forward import Account, Passes
from attunet3d.geometry import Grid
from attunet3d.hounsfield import hounsfield_warnings
from attunet3d.preprocessing import to_network_grid
from attunet3d.sliding_window import Slab
from attunet3d.volume import Segmentation, Volume, read_volume

Map = npt.NDArray[np.float32]


class InferenceError(UserError):
    """Models that do not belong together, settings that are not inference's, or broken logits."""


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
    probabilities: Map | None = None
    attention: Map | None = None


class Predictor:
    """Segments scans with one model or the mean of several; may be called from any thread.

    Args:
        members: Loaded checkpoints; labels, preprocessing and window must agree.
        device: Where the networks run; None: CUDA where there is one, else the CPU.
        settings: `inference.name=value`, over what the models were saved with.

    Raises:
        InferenceError: The members do not belong together, or a setting is not inference's.
    """

    def __init__(
        self,
        members: Sequence[Checkpoint],
        device: str | torch.device | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        self.config = _common_config(members, settings)
        self.labels = members[0].labels
        self.fingerprint = _fingerprint(members)
        self.device = runtime.pick_device(None if device is None else str(device))
        networks = [member.network for member in members]
        self.passes = Passes(networks, self.config, len(self.labels), self.device)

    @classmethod
    def load(
        cls,
        models: str | Path | Sequence[str | Path],
        device: str | torch.device | None = None,
        settings: Sequence[str] = (),
    ) -> "Predictor":
        """Load run folders or `.safetensors` files; several make an ensemble.

        Raises:
            UserError: A model cannot be read, or the models do not belong together.
        """
        paths = [models] if isinstance(models, str | Path) else list(models)
        if not paths:
            raise InferenceError("no model was given; name a run folder or a .safetensors file")
        return cls([load_model(Path(path)) for path in paths], device, settings)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the model on which a label map depends, as JSON holds it."""
        values = asdict(self.config.inference)
        for name in ("window_batch", "max_voxels"):  # of memory, not of the outcome
            del values[name]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

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
            InferenceError: The network gave NaN or infinity for this scan, or has no gates.
            torch.OutOfMemoryError: Not even one window fits the GPU.
        """
        watch, account = _Stopwatch(), Account()
        with watch.stage("preprocessing"):
            image = to_network_grid(volume, self.config.preprocessing, self.device)
        everything = probabilities or attention
        slabs = self.passes.slabs(
            image.tensor, account, all_channels=everything, attention=attention
        )
        slabs = watch.watch(slabs, volume.name)
        maps: list[Map | None] = [None, None]
        if everything:
            with watch.stage("maps"):
                kept = list(slabs)  # of the network's grid: small beside the maps asked for
                maps = self._maps(kept, image.grid, volume.grid, (probabilities, attention))
            slabs = _first(kept, len(self.labels))
        with watch.stage("decision"):
            values, largest = sorted(self.labels), self.config.inference.keep_largest
            array = decide(slabs, image.grid, volume.grid, values, largest)
        segmentation = Segmentation(array, volume.grid, self.labels, volume.geometry)
        return Prediction(segmentation, self._record(volume, account, watch.seconds), *maps)

    def _maps(
        self, slabs: list[Slab], network: Grid, source: Grid, wanted: tuple[bool, bool]
    ) -> list[Map | None]:
        """Foreground probabilities and attention on the source grid, those that are wanted."""
        classes = len(self.labels)
        probabilities = attention = None
        if wanted[0]:
            probabilities = np.zeros((*source.shape, classes - 1), np.float32, order="F")
            for box, logits in to_source_grid(_first(slabs, classes), network, source):
                probabilities[box] = logits.softmax(0)[1:].permute(1, 2, 3, 0).cpu().numpy()
        if wanted[1]:
            count = slabs[0].logits.shape[0] - classes
            if count == 0:
                raise InferenceError("this model has no attention gates; leave attention maps out")
            attention = np.zeros((*source.shape, count), np.float32, order="F")
            rest = [Slab(slab.start, slab.logits[classes:]) for slab in slabs]
            for box, values in to_source_grid(rest, network, source):
                attention[box] = values.clamp(0, 1).permute(1, 2, 3, 0).cpu().numpy()
        return [probabilities, attention]

    def _record(
        self, volume: Volume, account: Account, seconds: dict[str, float]
    ) -> dict[str, Any]:
        return {
            "model": self.fingerprint,
            "members": len(self.passes.networks),
            "settings": self.settings,
            "mode": account.mode,
            "precision": account.precision,
            "device": self.device.type,
            "fallbacks": account.fallbacks,
            "warnings": [*volume.warnings, *hounsfield_warnings(volume)],
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
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
        self.seconds[name] = time.perf_counter() - begin - waited

    def watch(self, slabs: Iterator[Slab], name: str) -> Iterator[Slab]:
        """The slabs, each seen to be finite."""
        while True:
            begin = time.perf_counter()
            slab = next(slabs, None)
            # NaN and infinity survive a sum: one pass, and the GPU has finished when it is known.
            if slab is not None and not math.isfinite(float(slab.logits.sum())):
                raise InferenceError(
                    f"{name}: the network gave NaN or infinity for this scan; check the scan's"
                    " values and the model, or try --set inference.precision=float32"
                )
            spent = time.perf_counter() - begin
            self.seconds["network"] = self.seconds.get("network", 0.0) + spent
            if slab is None:
                return
            yield slab


def _first(slabs: list[Slab], classes: int) -> Iterator[Slab]:
    """The class logits alone."""
    for slab in slabs:
        yield Slab(slab.start, slab.logits[:classes])


def _common_config(members: Sequence[Checkpoint], settings: Sequence[str]) -> Config:
    """The configuration that all members share, with `settings` applied.

    The window is that of inference, or else the training patch.
    """
    wrong = [text for text in settings if not text.strip().startswith("inference.")]
    if wrong:
        raise InferenceError(
            f"--set {wrong[0]}: only inference.* can be set here; the rest is part of the model"
        )
    configs = [member.config.with_overrides(settings) for member in members]
    for member, config in zip(members[1:], configs[1:], strict=True):
        _agree(member.path, "labels", member.labels, members[0].labels)
        _agree(member.path, "preprocessing", config.preprocessing, configs[0].preprocessing)
        _agree(member.path, "window", _window(config), _window(configs[0]))
    window = _window(configs[0])
    if window is None:
        raise InferenceError(
            f"{members[0].path}: holds no window; give one by --set inference.window=[x,y,z]"
        )
    return replace(configs[0], inference=replace(configs[0].inference, window=window))


def _window(config: Config) -> Size | None:
    return config.inference.window or config.training.patch_size


def _agree(path: Path, name: str, here: object, first: object) -> None:
    if here != first:
        raise InferenceError(
            f"{path}: its {name} {here} differ from {first} of the first model;"
            " the models of an ensemble must agree"
        )


def _fingerprint(members: Sequence[Checkpoint]) -> str:
    """The member's own, or one of all members whatever their order."""
    if len(members) == 1:
        return members[0].fingerprint
    joined = "\n".join(sorted(member.fingerprint for member in members))
    return sha256(joined.encode()).hexdigest()
