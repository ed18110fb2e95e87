"""The deterministic preprocessing and its inverse as MONAI transforms, for other pipelines.

    chain = Compose([
        LoadImaged(["image", "label"], ensure_channel_first=True),
        ToNetworkGridd(["image", "label"], config, label_keys=["label"], values=[0, 1]),
        ...                                                  # data["logits"] = network(image)
        ToSourceGridd(["logits"], like="image", values=[0, 1]),
    ])

The results are `MetaTensor`s with the affine of their voxels, in RAS. The inverse uses the two
grids and not MONAI's history, so both transforms leave `applied_operations` empty, and MONAI's
`Invertd` raises an error instead of inverting half a chain.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from attunet3d.core import DataError, LabelMap, PreprocessingConfig
from attunet3d.imaging import (
    Grid,
    Volume,
    label_to_network_grid,
    network_grid,
    normalise_,
    resample,
)
from attunet3d.inference import DiceDecision, PostProcessing, Slab, background, decide

SOURCE_AFFINE, SOURCE_SHAPE = "source_affine", "source_shape"  # in `MetaTensor.meta`


class ToNetworkGridd(MapTransform):  # type: ignore[misc]  # MONAI is untyped here
    """Crop to the body, reorient to RAS, resample, window and normalise; labels become classes.

    Args:
        keys: Entries to bring to the network's grid, each (1, I, J, K) with an affine; the body is
            found in the first one that is not a label.
        config: The model's preprocessing.
        label_keys: Those of `keys` that are label maps; they become uint8 class indices.
        values: Label values, background first; class c is `values[c]`.
        allow_missing_keys: Skip entries that are not there.
    """

    def __init__(
        self,
        keys: Sequence[Hashable],
        config: PreprocessingConfig,
        *,
        label_keys: Sequence[Hashable] = (),
        values: Sequence[int] = (0, 1),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.config, self.label_keys, self.values = config, tuple(label_keys), tuple(values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the entries on the network's grid; `data` and its tensors are not changed.

        Raises:
            DataError: An entry has several channels or no affine, or no entry is an image.
            DataError: The grids' axes are not parallel.
        """
        result = dict(data)
        volumes = {key: _volume(key, data[key]) for key in self.key_iterator(result)}
        images = [volume for key, volume in volumes.items() if key not in self.label_keys]
        if not images:
            raise DataError(
                f"keys {list(self.keys)}: one must be an image, not a label",
                value=self.keys,
                cure="add the image's key, or take it out of label_keys",
            )
        box, target = network_grid(images[0], self.config)
        for key, volume in volumes.items():
            # On the image's own voxels all entries are cropped alike, as in inference.
            same = volume.grid.matches(images[0].grid)
            inner = volume.cropped(box) if same else volume
            if key in self.label_keys:
                label = _whole_numbers(inner, _path(data[key]))
                tensor = label_to_network_grid(label, target, self.values)[None]
            else:
                image = resample(torch.from_numpy(inner.array)[None], inner.grid, target)
                tensor = normalise_(image, self.config)
            result[key] = _placed(tensor, target, data[key], volume.grid)
        return result


class ToSourceGridd(MapTransform):  # type: ignore[misc]  # MONAI is untyped here
    """Logits on the network's grid → labels on the grid that `ToNetworkGridd` was given.

    Args:
        keys: Entries of logits (K, X, Y, Z); K = 1 is the margin of two classes.
        like: The entry that `ToNetworkGridd` made, on whose grid the logits lie.
        values: The label value of each class, background first.
        keep_largest: Label values of which only the largest connected component is kept.
        smallest_ml: Pairs of a label value and the volume that a component of it must have.
        order: Label values of overlapping regions; each is written over the ones before.
        regions: The label values that make up each of these regions.
        decision: As `inference.decision`: the largest logit, or the largest expected Dice.
        sigmoid: Each class has a sigmoid of its own; else there is one softmax.
        allow_missing_keys: Skip entries that are not there.
    """

    def __init__(
        self,
        keys: Sequence[Hashable],
        like: Hashable,
        *,
        values: Sequence[int] = (0, 1),
        keep_largest: Sequence[int] = (),
        smallest_ml: Sequence[tuple[int, float]] = (),
        order: Sequence[int] = (),
        regions: Sequence[Sequence[int]] = (),
        decision: Literal["argmax", "dice"] = "argmax",
        sigmoid: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.like, self.values = like, tuple(values)
        self.post_processing = PostProcessing(
            keep_largest=tuple(keep_largest),
            smallest_ml=dict(smallest_ml),
            regions=dict(zip(order, map(tuple, regions), strict=True)) if regions else {},
        )
        self.order = tuple(order)
        self.decision, self.sigmoid = decision, sigmoid

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The entries as uint8 label maps (1, I, J, K) on the source grid.

        Raises:
            DataError: `like` did not come from `ToNetworkGridd`, or shapes do not belong.
        """
        result = dict(data)
        network, source = _grids(self.like, data[self.like])
        for key in self.key_iterator(result):
            logits = torch.as_tensor(data[key]).detach()
            classes = 2 if len(logits) == 1 else len(logits)
            if tuple(logits.shape[1:]) != network.shape or classes != len(self.values):
                raise DataError(
                    f"{key}: logits of shape {tuple(logits.shape)} do not fit the grid of"
                    f" {self.like} {network.shape} with {len(self.values)} labels",
                    value=tuple(logits.shape),
                    cure=f"give the network's logits for {self.like}, and a value per class",
                )
            labels = self._decided(Slab(0, _plain(logits)), network, source)
            self.post_processing.apply_(labels, source)
            result[key] = _placed(torch.from_numpy(labels)[None], source, data[self.like], None)
        return result

    def _decided(self, logits: Slab, network: Grid, source: Grid) -> LabelMap:
        """The label map (I, J, K) on the source grid, by the rule that `infer` has."""
        if self.decision == "argmax":
            return decide([logits], network, source, self.values, order=self.order)
        labels = background(source)
        rule = DiceDecision(
            network, source, self.values, labels, "sigmoid" if self.sigmoid else "softmax"
        )
        rule.add(logits)
        rule.decide()
        return labels


def _plain(tensor: Tensor) -> Tensor:
    """Without MONAI's metadata, which every operation would carry along."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _volume(key: Hashable, entry: Any) -> Volume:
    if not isinstance(entry, MetaTensor) or entry.ndim != 4 or len(entry) != 1:
        shape = tuple(getattr(entry, "shape", ()))
        raise DataError(
            f"{key}: must be a MetaTensor of one channel (1, I, J, K), got {type(entry).__name__}"
            f" {shape}",
            path=_path(entry),
            value=shape,
            cure="load it with LoadImaged and ensure_channel_first=True",
        )
    affine = np.asarray(entry.affine.cpu(), dtype=np.float64)
    if str(entry.meta.get("space", "RAS")).endswith("LPS"):
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    i, j, k = entry.shape[1:]
    return Volume(_plain(entry)[0].cpu().numpy(), Grid((i, j, k), affine), name=str(key))


def _path(entry: Any) -> str | None:
    """The file that MONAI loaded an entry from, if any."""
    path = entry.meta.get("filename_or_obj") if isinstance(entry, MetaTensor) else None
    return path if isinstance(path, str) else None


def _whole_numbers(label: Volume, path: str | None) -> Volume:
    """The label as uint8; MONAI's readers make it float32."""
    array = label.array.astype(np.uint8)
    if not (same := array == label.array).all():
        raise DataError(
            f"{label.name}: label values must be whole numbers from 0 to 255",
            path=path,
            value=label.array[~same].flat[0],
            cure="load the label map without resampling or scaling it",
        )
    return Volume(array, label.grid, name=label.name)


def _placed(tensor: Tensor, grid: Grid, like: Any, source: Grid | None) -> Any:
    """`tensor` (C, X, Y, Z) with the affine of `grid` and all other metadata of `like`.

    So `spatial_shape` and `original_affine` stay the file's: MONAI Label resizes results to them.
    """
    meta = {name: value for name, value in like.meta.items() if name != "affine"}
    meta["space"] = "RAS"
    meta.pop(SOURCE_AFFINE, None)
    meta.pop(SOURCE_SHAPE, None)
    if source is not None:
        meta[SOURCE_AFFINE] = torch.tensor(source.affine)
        meta[SOURCE_SHAPE] = torch.tensor(source.shape)
    return MetaTensor(tensor, affine=torch.tensor(grid.affine), meta=meta)


def _grids(key: Hashable, entry: Any) -> tuple[Grid, Grid]:
    """The network's and the source's grid of a result of `ToNetworkGridd`."""
    if not isinstance(entry, MetaTensor) or SOURCE_AFFINE not in entry.meta:
        raise DataError(
            f"{key}: is not a result of ToNetworkGridd",
            path=_path(entry),
            value=type(entry).__name__,
            cure="give the key of an entry that is one as `like`",
        )
    x, y, z = entry.shape[1:]
    network = Grid((x, y, z), np.asarray(entry.affine.cpu(), dtype=np.float64))
    i, j, k = (int(size) for size in entry.meta[SOURCE_SHAPE])
    return network, Grid((i, j, k), np.asarray(entry.meta[SOURCE_AFFINE], dtype=np.float64))
