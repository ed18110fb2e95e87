"""MONAI's tutorial chain around any network: the peer of `around_network.py` and `end_to_end.py`.

LoadImaged, EnsureChannelFirstd, Orientationd, Spacingd, ScaleIntensityRanged, the network, Invertd
of the logits (linear: its default, nearest, would move borders), AsDiscreted, SaveImaged.
"""

from collections.abc import Callable
from pathlib import Path

import torch

POSTFIX = "monai"


def tutorial_chain(
    scan: Path,
    folder: Path,
    spacing_mm: float,
    hu_window: tuple[float, float],
    network: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[], str]:
    """The chain as a function that returns the label map's path.

    `network` maps a batch of one scan, scaled to [-1, 1], to its logits.
    """
    from monai import transforms as t
    from monai.data import decollate_batch, list_data_collate

    before = t.Compose(
        [
            t.LoadImaged("image"),
            t.EnsureChannelFirstd("image"),
            t.Orientationd("image", axcodes="RAS", labels=None),
            t.Spacingd("image", pixdim=(spacing_mm,) * 3, mode="bilinear"),
            t.ScaleIntensityRanged("image", *hu_window, b_min=-1, b_max=1, clip=True),
        ]
    )
    after = t.Compose(
        [
            t.Invertd("pred", before, orig_keys="image", nearest_interp=False, to_tensor=True),
            t.AsDiscreted("pred", argmax=True),
            t.SaveImaged(
                "pred",
                output_dir=folder,
                output_postfix=POSTFIX,
                separate_folder=False,
                print_log=False,
            ),
        ]
    )

    @torch.no_grad()
    def work() -> str:
        batch = list_data_collate([before({"image": str(scan)})])
        batch["pred"] = network(batch["image"])
        for item in decollate_batch(batch):
            after(item)
        return str(folder / f"{scan.name.removesuffix('.nii.gz')}_{POSTFIX}.nii.gz")

    return work
