"""Training items from the same phantom CTs: attunet3d's way, MONAI's and nnU-Net's.

`training_items.py` times them, and tells what each does and how they differ.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SPACING = (1.0, 1.0, 1.0)
WINDOW = (-160.0, 240.0)
Cases = tuple[Path, int, int]  # folder, number of cases, patch edge
Item = tuple[Any, Any]  # image and label, (2, 1, X, Y, Z)


def write_cases(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """`count` scans and labels, of two patients in turn: CASE.nii and CASE_label.nii."""
    from attunet3d.imaging import Grid, write_nifti
    from attunet3d.phantoms import make_phantom

    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2
    pair = [make_phantom(seed, grid=Grid(shape, affine)) for seed in (3, 7)]
    for number in range(count):
        scan, label = pair[number % 2]
        write_nifti(folder / f"case{number:03}.nii", scan.array, None, scan.grid)
        write_nifti(folder / f"case{number:03}_label.nii", label.array, None, label.grid)


def _pairs(folder: Path, count: int) -> list[tuple[str, Path, Path]]:
    names = [f"case{number:03}" for number in range(count)]
    return [(name, folder / f"{name}.nii", folder / f"{name}_label.nii") for name in names]


# ---------------------------------------------------------------------------- ours


def prepared_batches(cases: Cases, workers: int) -> Any:
    from attunet3d.core import Config, PreprocessingConfig, TrainingConfig
    from attunet3d.datasets import Case
    from attunet3d.training import PatchBatches, build_cache

    folder, count, edge = cases
    config = Config(
        preprocessing=PreprocessingConfig(
            spacing_mm=SPACING, hu_window=WINDOW, mean_hu=40.0, std_hu=100.0
        ),
        training=TrainingConfig(patch_size=(edge,) * 3, batch_size=2, workers=workers),
    )
    listed = [Case(id=n, image=image, label=label) for n, image, label in _pairs(folder, count)]
    labels = {0: "background", 1: "pancreas"}
    return PatchBatches(build_cache(listed, labels, config, folder / "cache"), config)


def ours(cases: Cases, workers: int) -> Iterator[Item]:
    batches = prepared_batches(cases, workers)
    made = batches.iterate() if workers else map(batches.batch, itertools.count())
    return ((batch.image, batch.label) for batch in made)


# ---------------------------------------------------------------------------- MONAI


def _monai_random(edge: int, *, indices: bool) -> list[Any]:
    """The random part, with the probabilities of our `AugmentationConfig`."""
    from monai import transforms as T

    from attunet3d.core import AugmentationConfig

    ours, both = AugmentationConfig(), ("image", "label")
    keys = {f"{at}_indices_key": f"label_{at}_indices" for at in ("fg", "bg")} if indices else {}
    size = (edge,) * 3
    return [
        T.RandCropByPosNegLabeld(both, "label", size, pos=1, neg=1, num_samples=2, **keys),
        T.RandAffined(
            both,
            prob=ours.affine_probability,
            rotate_range=[math.radians(most) for most in ours.rotation_degrees],
            scale_range=[(low - 1, high - 1) for low, high in [ours.scale] * 3],
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        *(T.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in ours.flip_axes),
        T.RandGaussianNoised("image", prob=ours.noise_probability, std=0.3),
        T.RandGaussianSmoothd("image", *[(0.5, 1.25)] * 3, prob=ours.blur_probability),
        T.RandScaleIntensityd("image", factors=0.25, prob=ours.brightness_probability),
        T.RandScaleIntensityFixedMeand("image", factors=0.25, prob=ours.contrast_probability),
        T.RandSimulateLowResolutiond(
            "image", prob=ours.low_resolution_probability, zoom_range=(0.5, 1.0)
        ),
        T.RandAdjustContrastd("image", prob=ours.gamma_probability, gamma=(0.7, 1.5)),
    ]


def _monai_dataset(cases: Cases, *, tuned: bool) -> Any:
    import torch
    from monai import transforms as T
    from monai.data import CacheDataset

    both = ("image", "label")
    fixed: list[Any] = [
        T.LoadImaged(both, ensure_channel_first=True),
        T.Orientationd(both, axcodes="RAS", labels=None),
        T.Spacingd(both, pixdim=SPACING, mode=("bilinear", "nearest")),
        T.ScaleIntensityRanged("image", *WINDOW, (WINDOW[0] - 40) / 100, (WINDOW[1] - 40) / 100),
        T.CropForegroundd(both, "image", select_fn=_is_body, allow_smaller=True),
        T.EnsureTyped(both, dtype=(torch.float32, torch.uint8), track_meta=not tuned),
    ]
    if tuned:
        fixed.append(T.FgBgToIndicesd("label", image_key="image"))
    folder, count, edge = cases
    listed = [{"image": image, "label": label} for _, image, label in _pairs(folder, count)]
    return CacheDataset(
        listed,
        T.Compose([*fixed, *_monai_random(edge, indices=tuned)]),
        progress=False,
        copy_cache=not tuned,
        num_workers=1,
    )


def _is_body(image: Any) -> Any:
    return image > -1.9


def monai_items(cases: Cases, workers: int, *, tuned: bool = False) -> Iterator[Item]:
    from monai.data import DataLoader
    from torch.utils.data import RandomSampler

    dataset = _monai_dataset(cases, tuned=tuned)
    endless = RandomSampler(dataset, replacement=True, num_samples=10**7)
    kind = {"multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(dataset, batch_size=1, sampler=endless, num_workers=workers, **kind)
    return ((item["image"], item["label"]) for item in loader)


# ---------------------------------------------------------------------------- nnU-Net


class _InMemory:
    """What `nnUNetDataLoader` asks a dataset for, from arrays in RAM."""

    def __init__(self, cases: Cases) -> None:
        self.cases = {}
        for case in prepared_batches(cases, 0).cases:
            points = case.foreground().astype(np.int64)
            locations = {1: np.concatenate([np.zeros_like(points[:, :1]), points], axis=1)}
            image = case.image().astype(np.float32)[None]
            label = case.label().astype(np.int8)[None]
            self.cases[case.id] = (image, label, None, {"class_locations": locations})
        self.identifiers = list(self.cases)

    def load_case(self, identifier: str) -> Any:
        return self.cases[identifier]


def _compressed(cases: Cases) -> Any:
    """nnU-Net's own dataset: Blosc2 files, chunked for the patch as its preprocessor does."""
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )

    folder = cases[0] / "nnunet"
    if not folder.exists():
        folder.mkdir()
        for name, (image, label, _, properties) in _InMemory(cases).cases.items():
            arrays = (image, label.astype(np.int16))
            sizes = [comp_blosc2_params(a.shape, (cases[2],) * 3, a.itemsize) for a in arrays]
            (blocks, chunks), (blocks_seg, chunks_seg) = sizes
            nnUNetDatasetBlosc2.save_case(
                *arrays, properties, str(folder / name), chunks, blocks, chunks_seg, blocks_seg
            )
    return nnUNetDatasetBlosc2(str(folder))


def _same_probabilities(edge: int) -> Any:
    """batchgeneratorsv2's transforms with the probabilities of our `AugmentationConfig`."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform
    from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

    from attunet3d.core import AugmentationConfig

    ours = AugmentationConfig()
    once = {"synchronize_channels": True, "p_per_channel": 1}
    spread = BGContrast((0.75, 1.25))
    share = 1 - math.sqrt(1 - ours.affine_probability)
    steps = [
        (GaussianNoiseTransform((0, 0.09), **once), ours.noise_probability),
        (GaussianBlurTransform((0.5, 1.25), **once, benchmark=True), ours.blur_probability),
        (MultiplicativeBrightnessTransform(spread, **once), ours.brightness_probability),
        (ContrastTransform(spread, preserve_range=False, **once), ours.contrast_probability),
        (
            SimulateLowResolutionTransform((0.5, 1), True, True, None, None, 1),
            ours.low_resolution_probability,
        ),
        (
            GammaTransform(BGContrast((0.7, 1.5)), 0, True, 1, p_retain_stats=0),
            ours.gamma_probability,
        ),
    ]
    moved = SpatialTransform(
        (edge,) * 3,
        0,
        False,
        p_rotation=share,
        rotation=(-math.radians(20), math.radians(20)),
        p_scaling=share,
        scaling=ours.scale,
        p_synchronize_scaling_across_axes=1,
        mode_seg="nearest",
        border_mode_seg="zeros",
    )
    randoms = [RandomTransform(step, apply_probability=p) for step, p in steps]
    return ComposeTransforms(
        [moved, *randoms, MirrorTransform(ours.flip_axes), RemoveLabelTansform(-1, 0)]
    )


def _its_own(edge: int) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    turn = (-math.radians(30), math.radians(30))
    return nnUNetTrainer.get_training_transforms((edge,) * 3, turn, None, (0, 1, 2), False)


def _nnunet_items(
    dataset: Callable[[Cases], Any],
    transforms: Callable[[int], Any],
    cases: Cases,
    workers: int,
) -> Iterator[Item]:
    from types import SimpleNamespace

    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
        NonDetMultiThreadedAugmenter,
    )
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

    size, turn = np.array((cases[2],) * 3), (-math.radians(30), math.radians(30))
    names = SimpleNamespace(all_labels=[1], has_ignore_label=False)
    loader = nnUNetDataLoader(
        dataset(cases),
        2,
        get_patch_size(size, turn, turn, turn, (0.85, 1.25)),
        size,
        names,
        oversample_foreground_percent=0.5,
        probabilistic_oversampling=True,
        transforms=transforms(cases[2]),
    )
    made = (
        NonDetMultiThreadedAugmenter(loader, None, workers, num_cached=6, wait_time=0.002)
        if workers
        else SingleThreadedAugmenter(loader, None)
    )
    return ((item["data"], item["target"]) for item in made)


WAYS: dict[str, Callable[[Cases, int], Iterator[Item]]] = {
    "attunet3d": ours,
    "MONAI CacheDataset": monai_items,
    "MONAI, tuned": partial(monai_items, tuned=True),
    "nnU-Net": partial(_nnunet_items, _compressed, _its_own),
    "nnU-Net, cases in RAM": partial(_nnunet_items, _InMemory, _its_own),
    "nnU-Net, cases in RAM, our probabilities": partial(
        _nnunet_items, _InMemory, _same_probabilities
    ),
}
