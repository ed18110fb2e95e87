"""Weight files of the authors' network, turned into models of this package."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from attunet3d.core import FileError, ModelError, NetworkConfig, WriteError, presets
from attunet3d.models import authors_weights, checkpoint
from attunet3d.models.attention_unet import AttentionUNet3D

_LARGEST_FILE = 1 << 30  # the authors' have 26 MB


def convert_weights(
    source: Path, out: Path, *, align_corners: bool = False, names: Sequence[str] = ()
) -> list[str]:
    """Write the weights of `source` as a model that prepares scans as the preset `oktay2018` does.

    Args:
        source: A `state_dict` of one of the authors' CT networks, saved by torch.
        out: `….safetensors`; must not exist.
        align_corners: The weights were trained with torch 0.3, whose trilinear upsampling did so.
        names: Of the classes after the background, in order; (): "class 1", "class 2", …

    Returns:
        Warnings.

    Raises:
        ModelError: The file or the names do not fit.
        WriteError: `out` exists, the disk is full or the folder read-only.
    """
    if out.suffix != ".safetensors":
        raise WriteError("the name of a model must end in .safetensors", path=out)
    if os.path.lexists(out):
        raise WriteError("exists already", path=out, cure="delete it or name another")
    state = load_state(source)
    try:
        found = authors_weights.read(state)
        network = AttentionUNet3D.from_authors_state_dict(state, align_corners=align_corners)
    except ModelError as error:
        raise error.within(source) from None
    if found.in_channels != 1:
        rule = f"is for {found.in_channels} channels; CT must have 1"
        raise ModelError(rule, path=source, value=found.in_channels)
    classes = list(names) or [f"class {index}" for index in range(1, found.out_channels)]
    if len(classes) != found.out_channels - 1:
        raise ModelError(
            f"has {found.out_channels - 1} classes beside the background, but {len(classes)} names"
            " are given",
            path=source,
            value=names,
            cure="give one each, or none",
        )
    config = replace(presets.oktay2018(), network=NetworkConfig(**found.settings(align_corners)))
    labels = dict(enumerate(["background", *classes]))
    notes = {"converted_from": "Attention-Gated-Networks", "gate": found.gate}
    checkpoint.save_model(out, network.state_dict(), config, labels, notes)
    if found.old and not align_corners:
        return [f"{source}: was saved by torch 0.3, whose weights need --align-corners"]
    return []


def load_state(path: Path) -> dict[str, Tensor]:
    """Read weights by name from a file of `torch.save`; nothing in it is run.

    Raises:
        FileError: It cannot be read.
        ModelError: It holds something else.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelError("is not a regular file", path=path, cure="give a state_dict")
        if size > _LARGEST_FILE:
            rule = "is larger than 1 GiB; the authors' networks are not"
            raise ModelError(rule, path=path, value=size)
        if is_zipfile(path):  # torch compresses nothing: no part is larger than the file
            with ZipFile(path) as entries:
                if sum(entry.file_size for entry in entries.infolist()) > size:
                    rule = "its parts do not fit into it; it is damaged"
                    raise ModelError(rule, path=path)
        with warnings.catch_warnings(action="ignore"):  # they advise to load unsafely
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror or error})", path=path) from None
    except Exception as error:  # torch raises a dozen kinds, some with advice to load unsafely
        raise ModelError(
            f"holds something else than weights, or is damaged ({type(error).__name__})",
            path=path,
            cure="give a state_dict saved by torch.save",
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError("must hold weights by name (a state_dict)", path=path)
    return state
