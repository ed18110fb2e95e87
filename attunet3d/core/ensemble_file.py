"""`ensemble.json`, which makes the folder of a cross-validation one model.

    {"members": ["fold0", "fold1", …],       run folders inside it, whose logits are averaged
     "inference": {"keep_largest": […], …},  settings of inference for all of them
     "doubt": …, "label_ranges": …,          how reliable its label maps are
     …}                                      reasons, for human readers

Commands accept such a folder wherever they take a model, and load its members.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attunet3d.core import whole_file
from attunet3d.core.case_names import is_name
from attunet3d.core.errors import ModelError
from attunet3d.core.model_notes import known_notes
from attunet3d.core.text import read_json

ENSEMBLE = "ensemble.json"


@dataclass(frozen=True)
class Members:
    """The models that are meant by a command's MODEL arguments."""

    paths: tuple[Path, ...]
    """Run folders or `.safetensors` files."""
    settings: tuple[str, ...] = ()
    """Of inference, as `--set` takes them, which come with the models."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """See `model_notes`; of the first model that has them."""

    @classmethod
    def of(cls, models: Iterable[str | Path]) -> "Members":
        """Replace each folder of a cross-validation by its members.

        Raises:
            FileError: An `ensemble.json` cannot be read.
            ModelError: It is not valid, a member is missing, the cross-validation is unfinished, or
                the models come with different settings.
        """
        found = [_members(Path(model)) for model in models]
        for one in found[1:]:
            if one.settings != found[0].settings:
                raise ModelError(
                    f"its settings are {list(one.settings)}, the first model's"
                    f" {list(found[0].settings)}",
                    path=one.paths[0].parent,
                    cure="models used together must agree; name the folds instead",
                )
        paths = tuple(path for one in found for path in one.paths)
        notes = next((one.notes for one in found if one.notes), {})
        return cls(paths, found[0].settings if found else (), notes)


def save_ensemble(
    folder: Path, members: Iterable[str], inference: Mapping[str, Any], **more: object
) -> None:
    """Write the `ensemble.json` that makes `folder` one model of its run folders `members`.

    Raises:
        WriteError: The file cannot be written.
    """
    content = {"members": list(members), "inference": dict(inference), **more}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    whole_file.write_text(folder / ENSEMBLE, text + "\n")


def _members(model: Path) -> Members:
    """The members of one MODEL."""
    file = model / ENSEMBLE
    if not file.is_file():
        _refuse_unfinished(model)
        return Members((model,))
    content = read_json(file)
    values = content if isinstance(content, dict) else {}
    members, inference = values.get("members"), values.get("inference")
    if not (members and isinstance(members, list) and all(map(_is_folder_name, members))):
        raise _refusal(file, "members must be the names of run folders beside it", members)
    if not isinstance(inference, dict) or not all(map(str.isidentifier, inference)):
        raise _refusal(file, "inference must be settings by name", inference)
    for name in members:
        if not (model / name).exists():
            rule = f"names {name}, which is missing"
            cure = "copy that folder back, or name the other folds instead of this folder"
            raise ModelError(rule, path=file, value=name, cure=cure)
    settings = (f"inference.{name}={json.dumps(value)}" for name, value in inference.items())
    try:
        notes = known_notes(values)
    except ModelError as error:
        raise _refusal(file, error, error.value) from None
    return Members(tuple(model / name for name in members), tuple(settings), notes)


def _refuse_unfinished(model: Path) -> None:
    """Refuse a folder with runs of folds that is not a model itself."""
    folds = sorted(file.parent.name for file in model.glob("fold[0-9]*/config.json"))
    if folds and not (model / "model.safetensors").exists():
        raise ModelError(
            f"is an unfinished cross-validation ({', '.join(folds)})",
            path=model,
            cure="finish it by the train command that began it, with --fold all --resume, or name"
            " its folds",
        )


def _refusal(file: Path, rule: object, value: object) -> ModelError:
    return ModelError(rule, path=file, value=value, cure="name the folds instead of this folder")


def _is_folder_name(name: object) -> bool:
    known = isinstance(name, str) and is_name(name) and name != ".."
    return known and Path(str(name)).name == name
