"""Models that answer together: they must agree in labels, preprocessing and window.

Their logits are averaged, so a label, a voxel and a Hounsfield unit must mean the same to all.
"""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from attunet3d.core import Config, InferenceConfig, ModelError
from attunet3d.models import Checkpoint


def common_config(members: Sequence[Checkpoint], settings: Sequence[str]) -> Config:
    """The configuration that all members share, with `settings` applied.

    The window is that of inference, or else the training patch.

    Raises:
        ModelError: The members do not belong together, a setting is not inference's, or there
            is no window.
    """
    wrong = [text for text in settings if not text.strip().startswith("inference.")]
    if wrong:
        raise ModelError(
            f"--set {wrong[0]}: only inference.* can be set here; the rest is part of the model"
        )
    configs = [member.config.with_overrides(settings) for member in members]
    for member, config in zip(members[1:], configs[1:], strict=True):
        agree(member.path, "labels", member.labels, members[0].labels)
        agree(member.path, "preprocessing", config.preprocessing, configs[0].preprocessing)
        agree(member.path, "inference", _otherwise(config), _otherwise(configs[0]))
        agree(member.path, "window", config.window, configs[0].window)
    window = configs[0].window
    if window is None:
        raise ModelError(
            f"{members[0].path}: holds no window; give one by --set inference.window=[x,y,z]"
        )
    return replace(configs[0], inference=replace(configs[0].inference, window=window))


def fingerprint(members: Sequence[Checkpoint]) -> str:
    """The member's own, or one of all members whatever their order."""
    if len(members) == 1:
        return members[0].fingerprint
    joined = "\n".join(sorted(member.fingerprint for member in members))
    return sha256(joined.encode()).hexdigest()


def agree(path: Path, name: str, here: object, first: object) -> None:
    """Refuse a model at `path` whose `name` differs from that of the first model.

    Raises:
        ModelError: It does.
    """
    if here != first:
        raise ModelError(
            f"{path}: its {name} {here} differ from {first} of the first model;"
            " models used together must agree"
        )


def _otherwise(config: Config) -> InferenceConfig:
    """The settings of inference but the window."""
    return replace(config.inference, window=None)
