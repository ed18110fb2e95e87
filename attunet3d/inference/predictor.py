"""A trained model, or several, over a scan: build once, call many times, answer on the scan's grid.

The order of events: read, one step to the network's grid, the network over windows (or once over
the whole), then, slab by slab, one resample of the logits to the scan's grid and the decision.
Several models are averaged in their logits. With a locator, a coarse model of its own, the network
sees only the box where the labels lie. What was done and how long it took is in the record.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import torch

from attunet3d.core import Box, LabelMap, ModelError, machine
from attunet3d.imaging import (
    Grid,
    NetworkImage,
    Segmentation,
    Volume,
    as_kind_of,
    as_volume,
    read_volume,
    scan_warnings,
    to_network_grid,
)
from attunet3d.inference import ensemble
from attunet3d.inference.agreement import class_regions
from attunet3d.inference.decision import decide
from attunet3d.inference.inferer import Inferer
from attunet3d.inference.labelling import Labelling, MapArrays, Maps, OpenMaps, ScanRun
from attunet3d.inference.localisation import Faces, box_around
from attunet3d.inference.memory import default_budget
from attunet3d.inference.post_processing import PostProcessing
from attunet3d.inference.record import Execution, Prediction, Record
from attunet3d.inference.sliding_window import Slab
from attunet3d.models import Checkpoint, load_model

MEMORY_ONLY = ("window_batch", "max_voxels")  # settings on which no label map depends


class Predictor:
    """Segments scans with one model or the mean of several; may be called from any thread.

    Args:
        members: Loaded checkpoints; labels, preprocessing and window must agree.
        device: Where the networks run; None: CUDA where there is one, else the CPU.
        settings: `inference.name=value`, over what the models were saved with.
        locator: A coarse model of the same labels; only the box that it finds is segmented.
        memory: Budget in bytes that decides between one pass and windows; None: the class of
            machines that the device belongs to by its total memory.

    Raises:
        ModelError: The members do not belong together, or a setting is not inference's.
    """

    def __init__(
        self,
        members: Sequence[Checkpoint],
        device: str | torch.device | None = None,
        settings: Sequence[str] = (),
        locator: Checkpoint | None = None,
        memory: int | None = None,
    ) -> None:
        self.config = ensemble.common_config(members, settings)
        self.labels = members[0].labels
        self.regions = self.config.regions
        self.post_processing = PostProcessing.of(self.config.inference, self.labels, self.regions)
        self.notes = members[0].notes
        self.checksum = ensemble.checksum(members)
        self.device = machine.pick_device(None if device is None else str(device))
        self.budget = memory or default_budget(self.device)
        self.activation = ensemble.activation(self.config)
        mirror = self.config.inference.mirror
        self.inferer = Inferer(
            [ensemble.as_member(member, mirror=mirror) for member in members],
            self.config.inference,
            len(self.labels),
            self.device,
            self.budget,
            self.activation,
            class_regions(sorted(self.labels), self.regions),
        )
        self.locator: Predictor | None = None
        if locator is not None:
            ensemble.require_equal(locator.path, "labels", locator.labels, self.labels)
            self.locator = Predictor([locator], self.device, memory=memory)

    @classmethod
    def load(
        cls,
        models: str | Path | Sequence[str | Path],
        device: str | torch.device | None = None,
        settings: Sequence[str] = (),
        locator: str | Path | None = None,
        memory: int | None = None,
    ) -> "Predictor":
        """Load run folders, a cross-validation or `.safetensors` files; several make an ensemble.

        Raises:
            UserError: A model cannot be read, or the models do not belong together.
        """
        paths = [models] if isinstance(models, str | Path) else list(models)
        if not paths:
            raise ModelError("no model was given", cure="name a run folder or a .safetensors file")
        members, own = ensemble.load_members(paths)
        coarse = None if locator is None else load_model(Path(locator))
        return cls(members, device, [*own, *settings], coarse, memory)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the model on which a label map depends, as JSON holds it."""
        values = asdict(self.config.inference)
        for name in MEMORY_ONLY:
            del values[name]
        settings = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        return settings | {"locator": None if self.locator is None else self.locator.checksum}

    def require_attention(self) -> None:
        """Refuse attention maps where a network has no gates, by a ModelError."""
        if not self.inferer.has_gates:
            raise ModelError("this model has no attention gates", cure="leave attention maps out")

    def read(self, path: str | Path, series: str | None = None) -> Volume:
        """Read a scan as `predict` does; made for a thread that reads ahead."""
        most = self.config.inference.max_voxels
        return read_volume(Path(path), max_voxels=most, series=series)

    @overload
    def predict(self, scan: str | Path | Volume) -> Segmentation: ...

    @overload
    def predict(self, scan: Any) -> Any: ...

    def predict(self, scan: Any) -> Any:
        """Return the label map of one scan, on that scan's grid.

        Args:
            scan: A path, a `Volume`, a nibabel or SimpleITK image, a MONAI `MetaTensor`
                (1, I, J, K), or a pair of an array (I, J, K) in HU and its affine to RAS mm.

        Returns:
            A `Segmentation` for a path or a volume, else the kind of object that was given.

        Raises:
            UserError: The scan cannot be read, or the network's output is not finite.
        """
        if isinstance(scan, str | Path):
            return self.segment(self.read(scan)).segmentation
        return as_kind_of(self.segment(as_volume(scan)).segmentation, scan)

    def segment(
        self, volume: Volume, *, probabilities: bool = False, attention: bool = False
    ) -> Prediction:
        """Segment one scan in HU, with maps in memory: 4 bytes per voxel and map.

        Raises:
            UserError: As `segment_into`.
        """
        kinds = ["probabilities"] * probabilities + ["attention"] * attention
        kept: dict[str, MapArrays] = {}

        def open_maps(kind: str, count: int) -> Maps:
            kept[kind] = MapArrays(volume.grid.shape, count)
            return kept[kind]

        segmentation, record = self.segment_into(volume, kinds, open_maps)
        return Prediction(segmentation, record, **{kind: kept[kind].array for kind in kept})

    @torch.inference_mode()
    def segment_into(
        self,
        volume: Volume,
        kinds: Sequence[str],
        open_maps: OpenMaps,
        progress: Callable[[float], None] = lambda share: None,
    ) -> tuple[Segmentation, Record]:
        """Segment one scan and hand its maps on while they are computed, a few planes at a time.

        Args:
            volume: The scan, in Hounsfield units.
            kinds: "probabilities" of the foreground labels, "attention" of the gates, or both.
            open_maps: Called for each kind when the first planes of it are there.
            progress: Called with the share of the scan that is done, in [0, 1].

        Raises:
            ModelError: The network gave NaN or infinity for this scan, or has no gates.
            DeviceError: Less memory is free than this takes.
            torch.OutOfMemoryError: Not even one window fits the GPU.
        """
        if "attention" in kinds:
            self.require_attention()
        run = ScanRun(volume, kinds, open_maps, progress)
        with run.watch.stage("preprocessing"):
            image = to_network_grid(volume, self.config.preprocessing, self.device)
        box = None if self.locator is None else self._locate(run, image.grid)
        labels = None
        if box is not None:
            faces = Faces(box, image.grid.shape)
            part = NetworkImage(image.tensor[:, *box], image.grid.cropped(box))
            labels = self._label_map(run, part, faces)
            if faces.touched:
                run.execution.fallbacks.append("the answer reached the located box: whole scan")
                labels = None
        if labels is None:
            labels = self._label_map(run, image)
        segmentation = Segmentation(labels, volume.grid, self.labels, volume.geometry, self.regions)
        return segmentation, self._record(run)

    def _locate(self, run: ScanRun, grid: Grid) -> Box | None:
        """The box of `grid` where the locator sees labels; None: the whole must be done."""
        assert self.locator is not None
        with run.watch.stage("locating"):
            volume, coarse = run.volume, self.locator
            image = to_network_grid(volume, coarse.config.preprocessing, coarse.device)
            execution = Execution()
            slabs = coarse.inferer.slabs(image.tensor, execution)
            labels = decide(slabs, image.grid, image.grid, sorted(self.labels))
            run.execution.fallbacks += [f"locator: {text}" for text in execution.fallbacks]
            box = box_around(labels, image.grid, grid, self.inferer.window)
        if box is None:
            run.execution.fallbacks.append("the locator found nothing: whole scan")
        return box

    def _label_map(self, run: ScanRun, image: NetworkImage, faces: Faces | None = None) -> LabelMap:
        """The label map of `image` on the scan's grid; maps are handed on along the way."""
        labelling = Labelling(
            run,
            image.grid,
            sorted(self.labels),
            self.config.inference,
            self.activation,
            self.inferer.regions,
        )
        slabs = self.inferer.slabs(
            image.tensor,
            run.execution,
            all_logits="probabilities" in run.kinds,
            attention="attention" in run.kinds,
        )
        for slab in run.watch.items("network", slabs):
            with run.watch.stage("network"):  # a GPU has finished only when the sum is known
                _require_finite(slab, run.volume.name)
            if faces is not None:
                faces.note(slab)
            labelling.add(slab)
            run.progress((slab.start + slab.logits.shape[3]) / image.grid.shape[2])
        labelling.finish()
        with run.watch.stage("decision"):
            self.post_processing.apply_(labelling.labels, run.volume.grid)
        return labelling.labels

    def _record(self, run: ScanRun) -> Record:
        execution = run.execution
        names = [name for value, name in sorted(self.labels.items()) if value]
        members = [] if execution.agreement is None else execution.agreement.dice()
        return Record(
            model=self.checksum,
            members=len(self.inferer.members),
            settings=self.settings,
            activation=self.activation,
            mode=execution.mode,
            precision=execution.precision,
            memory_budget_gb=round(self.budget / 1e9, 1),
            device=self.device.type,
            fallbacks=execution.fallbacks,
            warnings=scan_warnings(run.volume),
            seconds={name: round(value, 4) for name, value in run.watch.seconds.items()},
            expected_dice=dict(zip(names, run.expected_dice, strict=True)),
            member_dice=dict(zip(names, members, strict=False)),
        )


def _require_finite(slab: Slab, name: str) -> None:
    # NaN and infinity survive a sum: one pass over the values.
    if not math.isfinite(float(slab.logits.sum())):
        raise ModelError(
            "the network gave NaN or infinity for this scan",
            path=name,
            cure="check the scan's values and the model, or try --set inference.precision=float32",
        )
