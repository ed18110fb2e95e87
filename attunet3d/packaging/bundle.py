"""A model as a MONAI bundle: a folder that MONAI, MONAI Label and MONAI Deploy know how to run.

configs/metadata.json    what the network takes and returns, by MONAI's schema
configs/inference.json   scans → label maps on their own grids, by this package's transforms
configs/train.json       trains it further, see `bundle_training`
models/model.pt          the weights, a plain state_dict
docs/README.md           how to run it, and what it must not be used for
LICENSE                  states that the weights are unlicensed until their owner licenses them

The label maps are those of `attunet3d infer` with inference.mode=window. The configuration names
objects by the package's top level only (`attunet3d.WindowInferer`).

MONAI evaluates every text of a configuration that begins with "$", and follows those that begin
with "@" or "%". So no free text of a model's file is written into inference.json, and label names,
which metadata.json holds, are refused where they begin so.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from attunet3d import __version__
from attunet3d.core import ModelError, PreprocessingConfig, Size, whole_file
from attunet3d.inference import PostProcessing, activation, as_member
from attunet3d.models import Checkpoint, MeanNetwork, Network
from attunet3d.packaging import bundle_training
from attunet3d.packaging.config_items import chain, monai, target

METADATA, INFERENCE = Path("configs", "metadata.json"), Path("configs", "inference.json")
TRAIN = Path("configs", "train.json")
WEIGHTS, README, LICENSE = Path("models", "model.pt"), Path("docs", "README.md"), Path("LICENSE")
# Schema of 2024-07-25, also at project-monai.github.io/schema.
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
SCHEMA += "meta_schema_20240725.json"
REQUIRED = {"attunet3d": __version__, "nibabel": "5.3", "pytorch-ignite": "0.5.1", "fire": "0.7"}
TERMS = """The weights (models/model.pt) come without a licence. Those who trained them, or own the
data that they were trained on, decide who may use them, and put the terms here.

The network's code is the Python package attunet3d, under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0); it is not part of this folder.
"""


def write_bundle(folder: Path, model: Checkpoint, window: Size) -> None:
    """Fill an empty folder.

    Raises:
        ModelError: A label's name begins with "$", "@" or "%".
        WriteError: The disk is full.
    """
    for name in model.labels.values():
        if name[0] in "$@%":
            raise ModelError(
                f"label {name!r} begins with {name[0]}, which MONAI takes for code",
                path=model.path,
                value=name,
                cure="train with another name",
            )
    weights = io.BytesIO()
    torch.save({name: value.clone() for name, value in model.network.state_dict().items()}, weights)
    configuration = inference(model, window)
    contents = {
        METADATA: _json(metadata(model, window)),
        INFERENCE: _json(configuration),
        WEIGHTS: weights.getvalue(),
        README: readme(model, window).encode(),
        LICENSE: TERMS.encode(),
    }
    if bundle_training.refusal(model) is None:
        contents[TRAIN] = _json(bundle_training.training(model, window, configuration))
    for path, content in contents.items():
        whole_file.make_folder((folder / path).parent)
        whole_file.write_bytes(folder / path, content)


def bundle_network(folder: Path) -> Network:
    """Let MONAI make the network of a bundle from the folder alone, and load its weights."""
    parser = ConfigParser()
    parser.read_config(folder / INFERENCE)
    network: Network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    return network.eval()


def inference(model: Checkpoint, window: Size) -> dict[str, Any]:
    """The configuration that segments scans: numbers and choices of the model, none of its text."""
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "scans",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(glob.escape(@dataset_dir) + '/*.nii*'))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        **_network(model, window),
        **_transforms(model),
        "dataset": monai(
            "data.Dataset",
            data="$[{'image': path} for path in @datalist]",
            transform="@preprocessing",
        ),
        "dataloader": monai("data.DataLoader", dataset="@dataset", batch_size=1),
        "evaluator": monai(
            "engines.SupervisedEvaluator",
            device="$torch.device(@device)",  # a call may give its name
            val_data_loader="@dataloader",
            network="@network",
            inferer="@inferer",
            postprocessing="@postprocessing",
            val_handlers="@handlers",
        ),
        "run": ["$@evaluator.run()"],
    }


def _network(model: Checkpoint, window: Size) -> dict[str, Any]:
    """The network, its weights, and the windows of `infer`."""
    settings = model.config.inference
    inferer = {"roi_size": window, "sw_batch_size": settings.window_batch}
    axes = as_member(model, mirror=settings.mirror).mirror_axes
    inferer |= {"overlap": settings.overlap, "mirror_axes": axes}
    inferer |= {"sigmoid": activation(model.config) == "sigmoid"}
    load = {"load_path": f"$@bundle_root + '/{WEIGHTS.as_posix()}'"}
    return {
        "network_settings": target("attunet3d.NetworkConfig", **asdict(model.config.network)),
        "network_def": target(
            "attunet3d.build_network",
            config="@network_settings",
            in_channels=1,
            out_channels=len(model.labels),
            **_members(model),
        ),
        "network": "$@network_def.to(@device)",
        "inferer": target("attunet3d.WindowInferer", **inferer),
        "handlers": [monai("handlers.CheckpointLoader", load_dict={"model": "@network"}, **load)],
    }


def _members(model: Checkpoint) -> dict[str, int]:
    """The number of networks of an ensemble; nothing of a single one."""
    network = model.network
    return {"members": len(network.members)} if isinstance(network, MeanNetwork) else {}


def _transforms(model: Checkpoint) -> dict[str, Any]:
    """From a file to the network's grid, and from logits to a file on the scan's grid."""
    preprocessing = asdict(model.config.preprocessing)
    there: dict[str, Any] = {
        "keys": ["image"],
        "config": "@scan_settings",
        "values": "@label_values",
    }
    back: dict[str, Any] = {"keys": ["pred"], "like": "image", "values": "@label_values"}
    kept = PostProcessing.of(model.config.inference, model.labels)
    back |= {"keep_largest": kept.keep_largest, "smallest_ml": list(kept.smallest_ml.items())}
    back |= {"order": model.config.inference.regions_class_order}
    back |= {"regions": model.config.training.regions}
    back |= {"decision": model.config.inference.decision}
    back |= {"sigmoid": activation(model.config) == "sigmoid"}
    save: dict[str, Any] = {"keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg"}
    save |= {"output_dtype": "uint8", "separate_folder": False, "resample": False}
    return {
        "label_values": sorted(model.labels),
        "scan_settings": target("attunet3d.PreprocessingConfig", **preprocessing),
        "preprocessing": chain(
            monai("transforms.LoadImaged", keys="image", reader="NibabelReader"),
            monai("transforms.EnsureChannelFirstd", keys="image"),  # Deploy leaves out LoadImaged
            target("attunet3d.ToNetworkGridd", **there),
        ),
        "postprocessing": chain(
            target("attunet3d.ToSourceGridd", **back),
            monai("transforms.SaveImaged", **save),
        ),
    }


def metadata(model: Checkpoint, window: Size) -> dict[str, Any]:
    """What MONAI's schema requires of a bundle, and the labels' values."""
    names = [model.labels[value] for value in sorted(model.labels)]
    organs = ", ".join(names[1:])
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"attunet3d {__version__}, model {model.checksum}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": REQUIRED,
        "name": f"3D Attention U-Net for {organs}",
        "task": f"Segmentation in CT: {organs}",
        "description": "3D Attention U-Net (Oktay et al. 2018) over overlapping windows of a CT",
        "authors": "whoever trained the weights",
        "copyright": "of the weights: whoever trained them",
        "intended_use": "Research. No diagnosis, treatment or measurement of patients.",
        "references": ["Oktay O. et al., Attention U-Net, MIDL 2018, arXiv:1804.03999"],
        "data_type": "nibabel",
        "pred_classes": f"logits of background, {organs}",
        "label_values": {str(value): model.labels[value] for value in sorted(model.labels)},
        "network_data_format": {
            "inputs": {"image": _tensor(model, window, "hounsfield", ["CT, normalised"])},
            "outputs": {"pred": _tensor(model, window, "labels", names)},
        },
    }


def readme(model: Checkpoint, window: Size) -> str:
    """What a person needs to run the bundle and to judge what comes out."""
    values = {value: (value,) for value in model.labels} | model.config.regions
    rows = [
        f"| {', '.join(map(str, values[value]))} | {name.replace('|', '/')} |"
        for value, name in model.labels.items()
    ]
    settings = json.dumps(asdict(model.config.preprocessing))
    return f"""# 3D Attention U-Net: {", ".join(list(model.labels.values())[1:])}

    pip install attunet3d=={__version__} fire pytorch-ignite
    python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE \\
        --dataset_dir SCANS --output_dir OUT

SCANS is a folder of CT scans in Hounsfield units (`*.nii`, `*.nii.gz`). For each,
`OUT/NAME_seg.nii.gz` is a label map on the scan's own grid:

| value | label |
|---|---|
{chr(10).join(rows)}

{_how_to_train(model)}Preprocessing: `{settings}`.
Window: {"×".join(map(str, window))} voxels along R, A, S.
Model: `{model.checksum}`.

Research software, not a medical device: no diagnosis, treatment or measurement of patients. A label
map looks as sure where it is wrong as where it is right; a person who can judge it must look at it.
"""


def _how_to_train(model: Checkpoint) -> str:
    if bundle_training.refusal(model) is not None:
        return ""
    return """To train it further, on DATA/imagesTr and DATA/labelsTr (the best weights take the
place of the bundle's; `--ckpt_dir DIR` writes them elsewhere):

    python -m monai.bundle run --config_file BUNDLE/configs/train.json --bundle_root BUNDLE \\
        --dataset_dir DATA --epochs 50

"""


def _tensor(model: Checkpoint, window: Size, kind: str, channels: list[str]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": kind,
        "modality": "CT",
        "num_channels": len(channels),
        "spatial_shape": [f"{step}*n" for step in model.network.divisor],  # n: any, MONAI's name
        "window": window,
        "dtype": "float32",
        "value_range": _range(model.config.preprocessing) if len(channels) == 1 else [],
        "is_patch_data": True,
        "channel_def": {str(index): name for index, name in enumerate(channels)},
    }


def _range(settings: PreprocessingConfig) -> list[float]:
    """Smallest and largest value that the network sees; [] where each scan is scaled by itself."""
    if settings.normalisation == "volume" or settings.hu_window is None:
        return []
    return [_normalised(hu, settings) for hu in settings.hu_window]


def _normalised(hu: float, settings: PreprocessingConfig) -> float:
    return (hu - (settings.mean_hu or 0.0)) / (settings.std_hu or 1.0)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
