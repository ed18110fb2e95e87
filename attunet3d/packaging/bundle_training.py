"""How a bundle is trained further by MONAI's `SupervisedTrainer`: the configuration train.json.

It goes on from the bundle's weights, on scans and label maps in the folders imagesTr and labelsTr,
with the preprocessing, patches and loss that the model was trained with. Every fifth case
validates, and the best weights take the place of the bundle's. Names are those of MONAI's model
zoo, which MONAI Label sets when it trains.
"""

from collections.abc import Mapping
from typing import Any

from attunet3d.core import Size
from attunet3d.models import Checkpoint, MeanNetwork
from attunet3d.packaging.config_items import chain, monai, target

PARTS_OF_LOSS = (  # of `TrainingConfig`
    *("loss", "dice_background", "dice_batch", "ignore_index", "tversky", "focal_gamma"),
)
SHARED = (  # of inference.json
    *("device", "label_values", "scan_settings", "network_settings", "network_def", "network"),
)
BOTH = ["image", "label"]


def refusal(model: Checkpoint) -> str | None:
    """Why a bundle of this model has no configuration for training; None if it has one."""
    if isinstance(model.network, MeanNetwork):
        return "an ensemble"
    return "overlapping regions" if model.config.inference.regions_class_order else None


def training(model: Checkpoint, window: Size, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration.

    Args:
        model: For which `refusal` gives None.
        window: Voxels of a patch.
        shared: What inference.json says of the network, the inferer and the preprocessing.
    """
    return {
        "imports": ["$import glob", "$import monai"],
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "dataset_dir": "data",
        "epochs": 50,
        "val_interval": "$min(5, @train#trainer#max_epochs)",  # only a validation saves weights
        "learning_rate": 1e-4,
        "images": "$sorted(glob.glob(glob.escape(@dataset_dir) + '/imagesTr/*.nii*'))",
        "labels": "$sorted(glob.glob(glob.escape(@dataset_dir) + '/labelsTr/*.nii*'))",
        "cases": "$[{'image': i, 'label': l} for i, l in zip(@images, @labels, strict=True)]",
        **{name: shared[name] for name in SHARED},
        "loss_settings": target(
            "attunet3d.TrainingConfig",
            **{name: getattr(model.config.training, name) for name in PARTS_OF_LOSS},
        ),
        "loss": target(
            "attunet3d.build_loss",
            config="@loss_settings",
            out_channels=len(model.labels),
            strides="$@network_def.strides",
        ),
        "optimizer": target(
            "torch.optim.AdamW", params="$@network.parameters()", lr="@learning_rate"
        ),
        "train": _train(model.config.training.batch_size or 1, window),
        "validate": _validate(len(model.labels), shared["inferer"]),
        "initialize": ["$monai.utils.set_determinism(0)"],
        "run": ["$@train#trainer.run()"],
    }


def _loading() -> list[dict[str, Any]]:
    read = monai(
        "transforms.LoadImaged", keys=BOTH, reader="NibabelReader", ensure_channel_first=True
    )
    arguments = {"config": "@scan_settings", "values": "@label_values", "label_keys": ["label"]}
    return [read, target("attunet3d.ToNetworkGridd", keys=BOTH, **arguments)]


def _train(patches: int, window: Size) -> dict[str, Any]:
    """Patches, half of them about a labelled voxel, moderately changed."""
    crop: dict[str, Any] = {"label_key": "label", "spatial_size": window, "num_samples": patches}
    turn: dict[str, Any] = {"prob": 0.5, "rotate_range": [0.2] * 3, "scale_range": [0.15] * 3}
    turn |= {"mode": ["bilinear", "nearest"], "padding_mode": "border"}
    return {
        "preprocessing": chain(
            *_loading(),
            monai("transforms.SpatialPadd", keys=BOTH, spatial_size=window, mode="edge"),
            monai("transforms.RandCropByPosNegLabeld", keys=BOTH, **crop),
            monai("transforms.RandAffined", keys=BOTH, **turn),
            monai("transforms.RandScaleIntensityd", keys="image", factors=0.1, prob=0.5),
            monai("transforms.RandShiftIntensityd", keys="image", offsets=0.1, prob=0.5),
        ),
        "dataset": monai(
            "data.CacheDataset",
            data="$[c for n, c in enumerate(@cases) if n % 5 or len(@cases) == 1]",
            transform="@train#preprocessing",
            progress=False,
        ),
        "dataloader": monai(
            "data.DataLoader", dataset="@train#dataset", batch_size=1, shuffle=True
        ),
        "inferer": monai("inferers.SimpleInferer"),
        "handlers": [
            monai(
                "handlers.CheckpointLoader",
                load_path="$@bundle_root + '/models/model.pt'",
                load_dict={"model": "@network"},
            ),
            monai(
                "handlers.ValidationHandler",
                validator="@validate#evaluator",
                interval="@val_interval",
            ),
            monai(
                "handlers.StatsHandler",
                tag_name="train_loss",
                output_transform="$monai.handlers.from_engine(['loss'], first=True)",
            ),
        ],
        "trainer": monai(
            "engines.SupervisedTrainer",
            max_epochs="@epochs",
            device="$torch.device(@device)",  # a call may give its name
            train_data_loader="@train#dataloader",
            network="@network",
            loss_function="@loss",
            optimizer="@optimizer",
            inferer="@train#inferer",
            train_handlers="@train#handlers",
            decollate=False,  # a network with several heads gives a list of logits
        ),
    }


def _validate(classes: int, inferer: Mapping[str, Any]) -> dict[str, Any]:
    """Dice on the network's grid, over the windows of inference."""
    one_hot: dict[str, Any] = {"argmax": [True, False], "to_onehot": classes}
    save: dict[str, Any] = {"save_dir": "@ckpt_dir", "save_dict": {"model": "@network"}}
    save |= {"save_key_metric": True, "key_metric_filename": "model.pt"}
    key_metric = monai(
        "handlers.MeanDice",
        include_background=False,
        output_transform="$monai.handlers.from_engine(['pred', 'label'])",
    )
    return {
        "preprocessing": chain(*_loading()),
        "dataset": monai(
            "data.CacheDataset",
            data="$@cases[::5]",
            transform="@validate#preprocessing",
            progress=False,
        ),
        "dataloader": monai("data.DataLoader", dataset="@validate#dataset", batch_size=1),
        "inferer": dict(inferer),
        "postprocessing": chain(monai("transforms.AsDiscreted", keys=["pred", "label"], **one_hot)),
        "handlers": [
            monai("handlers.StatsHandler", iteration_log=False),
            monai("handlers.CheckpointSaver", **save),
        ],
        "evaluator": monai(
            "engines.SupervisedEvaluator",
            device="$torch.device(@device)",
            val_data_loader="@validate#dataloader",
            network="@network",
            inferer="@validate#inferer",
            postprocessing="@validate#postprocessing",
            key_val_metric={"val_mean_dice": key_metric},
            val_handlers="@validate#handlers",
        ),
    }
