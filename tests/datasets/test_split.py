"""Which cases of a manifest a model may be tried on, given what it has learned from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from attunet3d.core import DataError
from attunet3d.datasets import Case, Manifest, Split, held_out

RUN = {"training": ["a", "b"], "validation": ["c"]}


def manifest(*training: str, test: tuple[str, ...] = (), label: bool = True) -> Manifest:
    """Cases named by letters."""
    root = Path("/data")

    def case(name: str, label: bool) -> Case:
        return Case(
            id=name, image=root / f"{name}.nii", label=root / f"{name}_l.nii" if label else None
        )

    return Manifest(
        name="letters",
        labels={0: "background", 1: "liver"},
        root=root,
        training=tuple(case(name, True) for name in training),
        test=tuple(case(name, label) for name in test),
    )


def run(folder: Path, split: object) -> Path:
    """A run folder with a plan."""
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps({"split": split}))
    return folder


def ids(*arguments: object, **options: object) -> list[str]:
    """Ids of the cases held out."""
    return [case.id for case in held_out(*arguments, **options)]  # type: ignore[arg-type]


def test_a_model_knows_its_cases_by_the_plan_beside_it(tmp_path: Path) -> None:
    """A run folder and the weights in it tell the same; a file elsewhere tells nothing."""
    folder = run(tmp_path / "run", RUN)
    for model in (folder, folder / "model.safetensors", str(folder)):
        split = Split.of_models([model])
        assert [split.role(name) for name in "abcd"] == [
            "training",
            "training",
            "validation",
            "none",
        ]
    assert Split.of_models([tmp_path / "model.safetensors"]).role("a") is None


def test_an_ensemble_has_seen_what_any_of_its_members_has(tmp_path: Path) -> None:
    """Each case validates one fold and trains the others; an unknown member leaves doubt."""
    folds = [
        run(tmp_path / str(n), {"training": [*"abc".replace(v, "")], "validation": [v]})
        for n, v in enumerate("abc")
    ]
    split = Split.of_models(folds)
    assert split.seen("abcd") == ("a", "b", "c")
    assert split.role("d") == "none"
    assert Split.of_models([*folds, tmp_path / "elsewhere.safetensors"]).role("d") is None


@pytest.mark.parametrize("plan", [[], {"split": {"training": ["a"]}}, {"split": {"training": 1}}])
def test_a_damaged_plan_tells_nothing(tmp_path: Path, plan: object) -> None:
    """Whatever JSON holds."""
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert Split.of_models([tmp_path]).role("a") is None


def test_test_cases_come_first_then_validation_cases_then_another_data_set(tmp_path: Path) -> None:
    """And where neither is known the call is refused with its cures."""
    split = Split.of_models([run(tmp_path / "run", RUN)])
    assert ids(manifest("a", "b", "c", test=("d",)), split) == ["d"]
    assert ids(manifest("a", "b", "c", "d"), split) == ["c"]
    assert ids(manifest("x", "y"), split) == ["x", "y"]
    listed = replace(manifest("a"), validation=manifest("v").training)
    assert ids(listed, Split()) == ["v"]
    with pytest.raises(DataError, match="no case is known to be held out") as caught:
        held_out(manifest("a", "b", "c"), Split())
    assert caught.value.cure == (
        "use --fold K for the cases that fold K validates on, or --all for every case"
    )
    with pytest.raises(DataError, match="held out from training: 2 of 2 were seen") as caught:
        held_out(manifest("a", "b"), split)
    assert "--all for every case" in str(caught.value.cure)


def test_all_and_fold_take_what_they_say() -> None:
    """Of a manifest in folds; both at once contradict each other."""
    folds = manifest("a", "b", "c", test=("d",)).with_folds({"a": 0, "b": 0, "c": 1})
    assert ids(folds, Split(), everything=True) == ["a", "b", "c", "d"]
    assert ids(folds, Split(), fold=0) == ["a", "b"]
    with pytest.raises(DataError, match="cannot be used together"):
        held_out(folds, Split(), fold=0, everything=True)


def test_unlabelled_cases_cannot_be_scored() -> None:
    """The test cases of the Decathlon have no labels: the validation cases are scored instead."""
    cases = manifest("a", "c", test=("t",), label=False)
    split = Split(roles={"t": "none"})
    with pytest.raises(DataError, match="no labelled case"):
        held_out(cases, split, labelled=True)
    split = Split(roles={"t": "none", "c": "validation"})
    assert ids(cases, split, labelled=True) == ["c"]
