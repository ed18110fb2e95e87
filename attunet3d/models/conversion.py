"""Weight files of the authors' network and of published forms, turned into models."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from attunet3d.core import (
    Config,
    FileError,
    ModelError,
    NetworkConfig,
    SettingsError,
    WriteError,
    presets,
)
from attunet3d.models import authors_weights, checkpoint
from attunet3d.models.attention_unet import AttentionUNet3D
from attunet3d.models.published.forms import (
    FORMS,
    form_of_state,
    from_published_state_dict,
    with_background,
)
from attunet3d.models.published.network import PublishedNetwork
from attunet3d.models.slices import SliceNetwork

_LARGEST_FILE = 1 << 30  # the authors' have 26 MB, the largest form 556
NOT_PUBLISHED = {  # what a model needs and no weights tell
    "preprocessing.normalisation": "volume",
    "preprocessing.spacing_mm": (2.0, 2.0, 2.0),
    "training.patch_size": (96, 96, 96),
}


@dataclass(frozen=True, eq=False)
class Converted:
    """A network with published weights, and what it becomes a model by."""

    network: AttentionUNet3D | PublishedNetwork | SliceNetwork
    config: Config
    name: str
    """Of the network, in words."""
    warning: str = ""


def convert_weights(
    source: Path,
    out: Path,
    *,
    align_corners: bool = False,
    names: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> tuple[str, list[str]]:
    """Write the weights of `source` as a model; what the state is of is found from its names.

    Args:
        source: A `state_dict` of one of the authors' CT networks or of a published form, saved by
            torch.
        out: `….safetensors`; must not exist.
        align_corners: The authors' weights were trained with torch 0.3, whose trilinear upsampling
            did so.
        names: Of the classes after the background, in order; (): "class 1", "class 2", …
        settings: `section.name=value` over the preset's, such as how scans are prepared.

    Returns:
        The network's name in words, and warnings.

    Raises:
        ModelError: The file or the names do not fit.
        SettingsError: A setting is wrong, or one of the network, which the weights decide.
        WriteError: `out` exists, the disk is full or the folder read-only.
    """
    if out.suffix != ".safetensors":
        cure = f"name it {out.stem}.safetensors"
        raise WriteError("the name of a model must end in .safetensors", path=out, cure=cure)
    if os.path.lexists(out):
        raise WriteError("exists already", path=out, cure="delete it or name another")
    wrong = [text for text in settings if text.strip().startswith("network.")]
    if wrong:
        rule = f"--set {wrong[0]:.200}: the weights decide what the network is"
        raise SettingsError(rule, value=wrong[0], cure="leave it out")
    state = load_weights(source)
    form = form_of_state(state)
    try:
        found = _authors(state, align_corners) if form is None else _form(form, state)
    except ModelError as error:
        raise error.within(source) from None
    config = found.config.with_overrides(settings)
    labels = _labels(found, names, source)
    notes = {"converted_from": found.name}

    def check(written: Path) -> None:
        """Refuse what no other command could load, such as weights with NaN."""
        try:
            checkpoint.read_model(written)
        except ModelError as error:
            raise error.within(source) from None

    checkpoint.save_model(out, found.network.state_dict(), config, labels, notes, check)
    return found.name, [f"{source}: {found.warning}"] if found.warning else []


def _labels(found: Converted, names: Sequence[str], source: Path) -> dict[int, str]:
    """The label of each class of a network for CT, background included.

    Raises:
        ModelError: The network is not for CT, or has another number of classes than `names`.
    """
    network = found.network
    if network.in_channels != 1:
        rule = f"is for {network.in_channels} channels; CT must have 1"
        cure = "give weights of a network for CT"
        raise ModelError(rule, path=source, value=network.in_channels, cure=cure)
    count = network.out_channels - 1
    classes = list(names) or [f"class {index}" for index in range(1, count + 1)]
    if len(classes) != count:
        raise ModelError(
            f"has {count} classes beside the background, but {len(classes)} names are given",
            path=source,
            value=names,
            cure="give one each, or none",
        )
    return dict(enumerate(["background", *classes]))


def _authors(state: Mapping[str, Tensor], align_corners: bool) -> Converted:
    """One of the authors' CT networks; scans are prepared as by preset `oktay2018`."""
    found = authors_weights.read(state)
    network = AttentionUNet3D.from_authors_state_dict(state, align_corners=align_corners)
    config = replace(presets.oktay2018(), network=NetworkConfig(**found.settings(align_corners)))
    old = found.old and not align_corners
    warning = "was saved by torch 0.3, whose weights need --align-corners" if old else ""
    return Converted(network, config, f"the authors' network with {found.gate} gates", warning)


def _form(form: str, state: Mapping[str, Tensor]) -> Converted:
    """A published form; its channels are neighbouring slices if it is 2D.

    Raises:
        ModelError: Shapes do not fit the form, or its channels are not a number of slices.
    """
    network = from_published_state_dict(form, state)
    if network.out_channels == 1:
        network = from_published_state_dict(form, with_background(form, state))
    config = presets.PRESETS[f"attunet{form}"]()
    missing = {
        name: value
        for name, value in NOT_PUBLISHED.items()
        if config.by_name()[name] in (None, "dataset")
    }
    settings = {"network.width": network.width}
    if FORMS[form].axes == 3:
        return Converted(network, config.replaced(missing | settings), form, _unknown(form))
    slices = network.in_channels
    if slices not in (1, 3, 5):
        rule = f"has {slices} channels; a form that sees slices of CT must have 1, 3 or 5"
        raise ModelError(rule, value=slices, cure="give weights for one of these")
    config = config.replaced(missing | settings | {"network.slices": slices})
    name = f"{form} with {slices} slice{'s' * (slices > 1)} as channels"
    return Converted(SliceNetwork(network, slices), config, name, _unknown(form))


def _unknown(form: str) -> str:
    return (
        f"does not tell how images were prepared; scans are as by preset attunet{form}, each with"
        " mean 0 and deviation 1 (--set preprocessing.… changes that)"
    )


def load_weights(path: Path) -> dict[str, Tensor]:
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
            raise ModelError(rule, path=path, value=size, cure="save the state_dict alone")
        if is_zipfile(path):  # torch compresses nothing: no part is larger than the file
            with ZipFile(path) as entries:
                if sum(entry.file_size for entry in entries.infolist()) > size:
                    rule = "its parts do not fit into it; it is damaged"
                    raise ModelError(rule, path=path, cure="copy it again")
        with warnings.catch_warnings(action="ignore"):  # they advise to load unsafely
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except OSError as error:
        rule = f"cannot be read ({error.strerror or error})"
        raise FileError(rule, path=path, cure="check the path and its permissions") from None
    except Exception as error:  # torch raises a dozen kinds, some with advice to load unsafely
        raise ModelError(
            f"holds something else than weights, or is damaged ({type(error).__name__})",
            path=path,
            cure="give a state_dict saved by torch.save",
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        cure = "give a state_dict saved by torch.save"
        raise ModelError("must hold weights by name (a state_dict)", path=path, cure=cure)
    return state
