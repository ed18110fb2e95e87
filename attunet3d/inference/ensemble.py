"""Models that answer together: they must agree in labels, preprocessing and window.

Their logits are averaged, so a label, a voxel and a Hounsfield unit must mean the same to all.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from attunet3d.core import Config, Members, ModelError, SettingsError
from attunet3d.datasets import labels_with_side
from attunet3d.inference.inferer import Member
from attunet3d.models import Checkpoint, MeanNetwork, load_model

MOST_NAMED = 3  # differences in an error
_log = logging.getLogger(__name__)


def common_config(members: Sequence[Checkpoint], settings: Sequence[str]) -> Config:
    """The configuration that all members share, with `settings` applied.

    The window is that of inference, or else the training patch.

    Raises:
        SettingsError: A setting is not one of inference, or wrong.
        ModelError: The members do not belong together, or they hold no window.
    """
    wrong = [text for text in settings if not text.strip().startswith("inference.")]
    if wrong:
        raise SettingsError(
            f"--set {wrong[0]}: only inference.* can be set here",
            value=wrong[0],
            cure="leave it out; the rest is part of the model",
        )
    configs = [member.config.with_overrides(settings) for member in members]
    for member, config in zip(members[1:], configs[1:], strict=True):
        require_equal(member.path, "labels", member.labels, members[0].labels)
        for name in ("preprocessing", "inference"):
            here, first = _section(config, name), _section(configs[0], name)
            require_equal(member.path, name, here, first)
        require_equal(member.path, "regions", config.regions, configs[0].regions)
        require_equal(member.path, "window", config.window, configs[0].window)
        require_equal(member.path, "activation", activation(config), activation(configs[0]))
    window = configs[0].window
    if window is None:
        raise ModelError(
            "holds no window",
            path=members[0].path,
            cure="give one by --set inference.window=[x,y,z]",
        )
    return replace(configs[0], inference=replace(configs[0].inference, window=window))


def load_members(models: Sequence[str | Path]) -> tuple[list[Checkpoint], list[str]]:
    """Load the models, of a cross-validation its folds', and the settings that come with them.

    Raises:
        UserError: One cannot be read.
    """
    found = Members.of(models)
    members = [load_model(path) for path in found.paths]
    members = [replace(member, notes={**member.notes, **found.notes}) for member in members]
    return members, list(found.settings)


def load_as_one(path: Path) -> Checkpoint:
    """Load a model; of a cross-validation one network that gives the mean of its folds' logits.

    Raises:
        UserError: It cannot be read, or its members do not belong together.
    """
    members, settings = load_members([path])
    config = common_config(members, settings) if settings or len(members) > 1 else members[0].config
    if len(members) == 1:
        return replace(members[0], config=config)
    for member in members[1:]:
        here, first = (asdict(one.config.network) for one in (member, members[0]))
        require_equal(member.path, "network", here, first)
    network = MeanNetwork([member.network for member in members]).eval()
    return Checkpoint(network, config, members[0].labels, checksum(members), path)


def activation(config: Config) -> Literal["softmax", "sigmoid"]:
    """What turns the logits of a model into probabilities: it follows from its training."""
    independent = config.training.loss == "bce" or bool(config.training.regions)
    return "sigmoid" if independent else "softmax"


def as_member(checkpoint: Checkpoint, *, mirror: bool) -> Member:
    """A checkpoint's network, mirrored along the axes along which training mirrored its patches.

    Left and right are not mirrored where a label's name says left or right.
    """
    axes = checkpoint.config.augmentation.flip_axes if mirror else ()
    sided = bool(labels_with_side(checkpoint.labels))
    kept = tuple(axis for axis in axes if not (axis == 0 and sided))
    if mirror and not kept:
        _log.warning(
            "%s: inference.mirror changes nothing, as training mirrored no patches",
            checkpoint.path,
        )
    return Member(checkpoint.network, checkpoint.config.network, kept)


def checksum(members: Sequence[Checkpoint]) -> str:
    """The member's own, or one of all members whatever their order."""
    if len(members) == 1:
        return members[0].checksum
    joined = "\n".join(sorted(member.checksum for member in members))
    return sha256(joined.encode()).hexdigest()


def require_equal(path: Path, name: str, here: object, first: object) -> None:
    """Refuse a model at `path` whose `name` differs from that of the first model.

    Raises:
        ModelError: It does; the entries that differ are named.
    """
    if here != first:
        raise ModelError(
            f"its {name} {_differences(here, first)}",
            path=path,
            value=here,
            cure="models used together must agree",
        )


def _differences(here: object, first: object) -> str:
    if not (isinstance(here, Mapping) and isinstance(first, Mapping)):
        return f"is {here}, that of the first model {first}"
    names = [name for name in {**first, **here} if here.get(name) != first.get(name)]
    parts = [f"{name} {here.get(name)} instead of {first.get(name)}" for name in names]
    more = f" and {len(parts) - MOST_NAMED} more" if len(parts) > MOST_NAMED else ""
    return f"differs from the first model's: {', '.join(parts[:MOST_NAMED])}{more}"


def _section(config: Config, name: str) -> dict[str, Any]:
    """The settings of a section by name; of inference without the window."""
    section = getattr(config, name)
    values = {field: getattr(section, field) for field in vars(type(section))["__annotations__"]}
    return {field: value for field, value in values.items() if field != "window"}
