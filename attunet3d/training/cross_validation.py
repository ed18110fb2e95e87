"""Cross-validation: a model per fold, and each case predicted by the model that has not seen it.

    RUN/fold0 …                         a run folder per fold; see `run_folder`
    RUN/cache                           prepared cases, shared by the folds
    RUN/cross_validation/manifest.json  the cases that have been held out once
    RUN/cross_validation/predictions    their label maps, before any post-processing
    RUN/cross_validation/scores.csv, summary.json, boxplot.png   as `evaluate` writes them
    RUN/cross_validation/failures.json  why cases could not be predicted or scored
    RUN/cross_validation/calibration.json, .png   how far the probabilities can be believed
    RUN/ensemble.json                   makes RUN one model: the mean of the folds' logits, and the
                                        post-processing that was chosen on those label maps
    RUN/final                           with `final`: a run on all cases, without validation

A call that was stopped is finished by the same call with `resume`: folds that are done are skipped,
the one that was stopped goes on, and so do the predictions.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from attunet3d.cohort import case_files, segment_cohort, write_failures
from attunet3d.core import (
    ENSEMBLE,
    DataError,
    locked_folder,
    save_ensemble,
)
from attunet3d.datasets import Case, Manifest, Split
from attunet3d.evaluation import doubt_notes, folder, post_processing
from attunet3d.inference import Predictor
from attunet3d.training import distributed, plan_file, run_folder
from attunet3d.training.calibration import merge_reliability
from attunet3d.training.run import TrainingCall, begin_or_go_on, refuse_wrong_folders, with_steps_of
from attunet3d.training.run_folder import Cases

RESULTS, FINAL = "cross_validation", "final"
_log = logging.getLogger(__name__)


def cross_validate(call: TrainingCall, run_dir: Path, *, final: bool = False) -> dict[str, str]:
    """Train a model per fold, score all of them on what they have not seen, and make them one.

    Several processes of `torchrun` take a fold each at a time, which they train by themselves. With
    `hours` they train each fold together: the first gets its share of the hours, and the others
    take as many steps.

    Args:
        call: What to train.
        run_dir: Made when missing.
        final: Train on all cases as well, afterwards.

    Returns:
        Why cases could not be predicted or scored, by case; they are in no mean.

    Raises:
        DataError: The manifest has fewer than two folds.
        TrainingError: The folder holds what it should not.
        UserError: As `train_run`.
    """
    folds = {f"fold{n}": call.manifest.fold(n) for n in _numbers(call)}
    refuse_wrong_folders(call, run_dir, list(folds))
    trainings = len(folds) + final
    with distributed.held_by_first(lambda: locked_folder(run_dir, "train")):
        call = replace(call, cache=call.cache or run_dir / "cache")
        if call.hours is None and distributed.world_size() > 1:
            _train_apart(call, run_dir, folds)
        else:
            call = _train(call, run_dir, folds, trainings)
        held_out = [case for _, validation in folds.values() for case in validation]
        unpredicted = _predict(call, run_dir, folds)
        failures = _score(call.manifest, run_dir / RESULTS, held_out, unpredicted)
        scored = [case for case in held_out if case.id not in failures]
        _make_ensemble(call.manifest, run_dir, list(folds), scored)
        if final:
            _log.info("%s: training %d of %d", run_dir / FINAL, trainings, trainings)
            call = replace(with_steps_of(call, run_dir / next(iter(folds))), hours=None)
            everyone = (*call.manifest.training, *call.manifest.validation)
            begin_or_go_on(call, run_dir / FINAL, (everyone, ()))
    if failures:
        names = ", ".join(sorted(failures))
        _log.error(
            "%s: %d of %d cases failed and are in no mean: %s; failures.json there says why",
            *(run_dir / RESULTS, len(failures), len(held_out), names),
        )
    return failures


def _train(
    call: TrainingCall, run_dir: Path, folds: Mapping[str, Cases], trainings: int
) -> TrainingCall:
    """Train the folds one after the other; the call with the steps that hours came to."""
    hours = None if call.hours is None else call.hours / trainings
    for number, (name, cases) in enumerate(folds.items(), 1):
        _log.info("%s: training %d of %d", run_dir / name, number, trainings)
        if number > 1 and hours is not None:
            call, hours = with_steps_of(call, run_dir / next(iter(folds))), None
        begin_or_go_on(replace(call, hours=hours), run_dir / name, cases)
    return call


def _train_apart(call: TrainingCall, run_dir: Path, folds: Mapping[str, Cases]) -> None:
    """Train the folds, each by one process; all of them wait for the last."""

    @distributed.by_first
    def prepare() -> None:
        with distributed.apart():
            plan = plan_file.shared_plan(
                call.manifest, call.config, call.plan, call.device, call.memory
            )
            cases = next(iter(folds.values()))
            run_folder.prepare(cases, call.manifest, plan.config, call.cache or run_dir / "cache")

    prepare()
    own = list(folds.items())[distributed.rank() :: distributed.world_size()]
    with distributed.apart():
        for name, cases in own:
            _log.info("%s: is trained by this process", run_dir / name)
            begin_or_go_on(call, run_dir / name, cases)
    distributed.gathered([])


def _numbers(call: TrainingCall) -> list[int]:
    numbers = sorted({case.fold for case in call.manifest.training if case.fold is not None})
    if len(numbers) < 2:
        raise DataError(
            f"--fold all: manifest {call.manifest.name!r} has fewer than two folds",
            path=call.manifest_file,
            value=len(numbers),
            cure="make it again by attunet3d manifest --folds 5",
        )
    return numbers


@distributed.by_first
def _predict(call: TrainingCall, run_dir: Path, folds: Mapping[str, Cases]) -> dict[str, str]:
    """Segment each case on its scanner's grid by the model of the fold that held it out.

    Returns:
        Why cases could not be segmented, by case.
    """
    predictions = run_dir / RESULTS / "predictions"
    failures: dict[str, str] = {}
    for name, (_, validation) in folds.items():
        predictor = Predictor.load(run_dir / name, call.device)
        scans = [(case.id, case.image) for case in validation]
        split = Split.of_models([run_dir / name])
        failures |= segment_cohort(predictor, scans, predictions, split=split).failures
    for case_id in failures:  # a label map that an earlier call left must not be scored
        case_files(predictions, case_id).mask.unlink(missing_ok=True)
    write_failures(predictions, failures)
    return failures


@distributed.by_first
def _score(
    manifest: Manifest, out_dir: Path, held_out: list[Case], unpredicted: Mapping[str, str]
) -> dict[str, str]:
    """Score the predictions per label and patient, and print the table.

    Returns:
        Why cases have no score, by case, those that were not predicted among them.
    """
    listed = replace(manifest, training=tuple(held_out), validation=(), test=())
    listed.save(out_dir / "manifest.json")
    summary = folder.evaluate(
        out_dir / "predictions", out_dir / "manifest.json", out_dir, root=manifest.root
    )
    print(summary.table())
    failures = {**summary.failures, **unpredicted}
    write_failures(out_dir, failures)
    return failures


@distributed.by_first
def _make_ensemble(
    manifest: Manifest, run_dir: Path, folds: list[str], held_out: list[Case]
) -> None:
    """Choose the post-processing, fit the doubt, and write the file that makes the folds one."""
    predictions = run_dir / RESULTS / "predictions"
    choices = post_processing.choose_post_processing(predictions, manifest, held_out)
    chosen = post_processing.settings(choices)
    reasons = {name: asdict(choice) for name, choice in choices.items()}
    notes = doubt_notes(predictions, manifest, held_out)
    merge_reliability([run_dir / name for name in folds], run_dir / RESULTS)
    save_ensemble(run_dir, folds, chosen, post_processing=reasons, **notes)
    print("\n".join(_in_words(choices)))
    _log.info("%s: is one model now (%s)", run_dir, ENSEMBLE)


def _in_words(choices: dict[str, post_processing.Choice]) -> Iterator[str]:
    for name, choice in choices.items():
        if choice.chosen is None:
            kept = "every component"
        elif choice.chosen == post_processing.LARGEST:
            kept = "the largest component"
        else:
            kept = f"components of at least {choice.chosen} ml"
        yield (
            f"{name}: keeps {kept}; the best rule ({choice.best}) changes the mean Dice of"
            f" {choice.dice:.3f} by {choice.gain:+.3f} ({choice.low:+.3f} to {choice.high:+.3f})"
        )
