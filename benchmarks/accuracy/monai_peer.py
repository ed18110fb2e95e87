"""MONAI's networks trained as its tutorials do (spleen_segmentation_3d, unetr_btcv, dynunet).

Usage: python -m benchmarks.accuracy.monai_peer train|infer JOB     (JOB: JSON, see `Job`)

Transforms, patch sampling, loss and inference are MONAI's own: resampling by Spacingd, crops by
RandCropByPosNegLabeld, DiceCELoss, sliding_window_inference, Invertd. What the tutorials leave to
the reader (rate and schedule for a short training) is AdamW with a one-cycle schedule, which is
what attunet3d's small recipe has. The last weights are used. Every 100 steps the validation cases
are scored on the network's grid, for the curve of Dice against steps.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai import transforms as T
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import AttentionUnet, DynUNet, SegResNetDS
from monai.networks.utils import one_hot
from monai.utils import set_determinism
from torch import nn

BATCH = 2
VALIDATE_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained on what; spacing, window and channels as in attunet3d's small recipe."""

    network: str
    manifest: str
    run: str
    steps: int = 0
    seed: int = 0
    predictions: str = ""
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0)
    hu_window: tuple[float, float] = (-160.0, 240.0)
    patch: tuple[int, int, int] = (48, 48, 48)
    channels: tuple[int, ...] = (8, 16, 32, 64, 128)
    learning_rate: float = 5e-3
    intensity_shift: float = 0.1
    """Of RandShiftIntensityd, as a share of the window (unetr_btcv: 0.1, that is 40 HU)."""
    patches_per_case: int = 2
    """Patches that a batch of two has of one patient (the tutorials: 4, all of one); 1 or 2."""
    keep_largest: bool = False
    """Whether the answer keeps the largest component of each organ only."""

    @property
    def manifest_values(self) -> dict[str, Any]:
        """The manifest as it stands in its file."""
        values: dict[str, Any] = json.loads(Path(self.manifest).read_text(encoding="utf-8"))
        return values

    @property
    def classes(self) -> int:
        """Labels, background included."""
        return len(self.manifest_values["labels"])

    def files(self, part: str) -> list[dict[str, str]]:
        """Scans and labels of one list of the manifest."""
        root = Path(self.manifest).parent
        return [
            {"image": str(root / case["image"]), "label": str(root / case["label"])}
            for case in self.manifest_values[part]
        ]


def build_network(job: Job) -> nn.Module:
    levels = len(job.channels)
    network: nn.Module
    if job.network == "AttentionUnet":
        halved = (2,) * (levels - 1)
        network = AttentionUnet(3, 1, job.classes, channels=job.channels, strides=halved)
    elif job.network == "DynUNet":
        strides = (1,) + (2,) * (levels - 1)
        network = DynUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=job.classes,
            kernel_size=(3,) * levels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=job.channels,
            deep_supervision=True,
            deep_supr_num=2,
        )
    elif job.network == "SegResNetDS":
        network = SegResNetDS(
            init_filters=job.channels[0],
            out_channels=job.classes,
            blocks_down=(1, 2, 2, 4),
            dsdepth=3,
            norm="INSTANCE_NVFUSER" if torch.cuda.is_available() else "INSTANCE",
        )
    else:
        raise SystemExit(f"{job.network}: unknown network")
    return network


def fixed_transforms(job: Job, keys: tuple[str, ...]) -> list[Any]:
    modes = ("bilinear", "nearest")[: len(keys)]
    return [
        T.LoadImaged(keys),
        T.EnsureChannelFirstd(keys),
        T.Orientationd(keys, axcodes="RAS", labels=None),
        T.Spacingd(keys, pixdim=job.spacing_mm, mode=modes),
        T.ScaleIntensityRanged("image", *job.hu_window, b_min=0.0, b_max=1.0, clip=True),
        T.CropForegroundd(keys, source_key="image", allow_smaller=True),
    ]


def random_transforms(job: Job) -> list[Any]:
    both = ("image", "label")
    return [
        T.SpatialPadd(both, spatial_size=job.patch),
        T.RandCropByPosNegLabeld(
            both,
            label_key="label",
            spatial_size=job.patch,
            pos=1,
            neg=1,
            num_samples=job.patches_per_case,
            image_key="image",
            image_threshold=0,
        ),
        T.RandAffined(
            both,
            prob=0.5,
            rotate_range=(np.pi / 12,) * 3,
            scale_range=(0.1, 0.1, 0.1),
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        T.RandShiftIntensityd("image", offsets=job.intensity_shift, prob=0.5),
    ]


def criterion(logits: Any, label: torch.Tensor) -> torch.Tensor:
    """DiceCELoss; with deep supervision at every scale."""
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    if isinstance(logits, torch.Tensor) and logits.dim() == 6:  # DynUNet: (B, scales, C, X, Y, Z)
        logits = list(logits.unbind(1))
    if isinstance(logits, list | tuple):
        loss = DeepSupervisionLoss(loss)
    value: torch.Tensor = loss(logits, label)
    return value


def train(job: Job) -> None:
    set_determinism(job.seed)
    cached = CacheDataset(
        job.files("training"),
        T.Compose([*fixed_transforms(job, ("image", "label")), *random_transforms(job)]),
        num_workers=1,
        progress=False,
    )
    patients = BATCH // job.patches_per_case
    loader = DataLoader(cached, batch_size=patients, shuffle=True, drop_last=True)
    network = build_network(job)
    optimiser = torch.optim.AdamW(network.parameters(), job.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, job.learning_rate, total_steps=job.steps
    )
    validation = CacheDataset(
        job.files("validation"),
        T.Compose(fixed_transforms(job, ("image", "label"))),
        num_workers=1,
        progress=False,
    )
    step, curve = 0, ["step,dice_network_grid"]
    while step < job.steps:
        for batch in loader:
            optimiser.zero_grad()
            loss = criterion(network(batch["image"].as_tensor()), batch["label"].as_tensor())
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 12.0)
            optimiser.step()
            schedule.step()
            step += 1
            if step % VALIDATE_EVERY == 0 and len(validation):
                curve.append(f"{step},{validate(network, validation, job):.4f}")
            if step == job.steps:
                break
    Path(job.run).mkdir(parents=True, exist_ok=True)
    (Path(job.run) / "metrics.csv").write_text("\n".join(curve) + "\n", encoding="utf-8")
    torch.save(network.state_dict(), Path(job.run) / "network.pt")


@torch.inference_mode()
def validate(network: nn.Module, cases: CacheDataset, job: Job) -> float:
    """Mean Dice of the organs over the validation cases, on the network's grid."""
    network.eval()
    scores = []
    for case in DataLoader(cases, batch_size=1):
        answer = logits_of(network, case["image"], job).argmax(1, keepdim=True)
        both = (one_hot(array.as_tensor(), job.classes) for array in (answer, case["label"]))
        scores.append(compute_dice(*both, include_background=False))
    network.train()
    return float(torch.cat(scores).nanmean())


def logits_of(network: nn.Module, image: torch.Tensor, job: Job) -> Any:
    """Logits (1, classes, X, Y, Z) of a scan (1, 1, X, Y, Z), by windows."""
    return sliding_window_inference(
        image, job.patch, 4, lambda patch: _finest(network(patch)), overlap=0.5, mode="gaussian"
    )


@torch.inference_mode()
def infer(job: Job) -> None:
    network = build_network(job)
    network.load_state_dict(torch.load(Path(job.run) / "network.pt", weights_only=True))
    network.eval()
    before = T.Compose(fixed_transforms(job, ("image",)))
    after = T.Compose(
        [
            T.Activationsd("pred", softmax=True),
            T.Invertd("pred", before, orig_keys="image", nearest_interp=False, to_tensor=True),
            T.AsDiscreted("pred", argmax=True),
            *([T.KeepLargestConnectedComponentd("pred")] if job.keep_largest else []),
        ]
    )
    folder = Path(job.predictions)
    folder.mkdir(parents=True, exist_ok=True)
    for files in job.files("test"):
        for batch in DataLoader(Dataset([{"image": files["image"]}], before), batch_size=1):
            batch["pred"] = logits_of(network, batch["image"], job)
            answer = after(decollate_batch(batch)[0])["pred"]
        source = nib.load(files["image"])
        image = nib.Nifti1Image(answer[0].numpy().astype(np.uint8), source.affine)
        nib.save(image, folder / Path(files["image"]).name)


def _finest(logits: Any) -> torch.Tensor:
    found: torch.Tensor = logits[0] if isinstance(logits, list | tuple) else logits
    return found


if __name__ == "__main__":
    values: dict[str, Any] = json.loads(sys.argv[2])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    {"train": train, "infer": infer}[sys.argv[1]](Job(**values))
