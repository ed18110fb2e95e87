"""nnU-Net v2 by its own planner, trainer and predictor, at the size of the small recipe.

Usage: python -m benchmarks.accuracy.nnunet_peer train|infer JOB      (JOB: JSON, see `Job`)

nnU-Net plans the data set; of its plan, spacing, patch, batch and the features per stage are set
to those of the other recipes. Loss, augmentation, optimiser, schedule, sampling, deep supervision
and mirroring at test time are nnU-Net's own. An epoch has 25 steps instead of 250, so that the
polynomial schedule has something to fall over. The last weights are used, as nnU-Net does.
Its variants `nnUNetTrainerAdam1en3` (AdamW from 1e-3) and `nnUNetTrainerNoMirroring` learn in fewer
steps.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS_PER_EPOCH = 25
DATASET = "Dataset900_accuracy"
PLANS, CONFIGURATION = "nnUNetPlans", "3d_fullres"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained on what."""

    manifest: str
    run: str
    steps: int = 0
    seed: int = 0
    predictions: str = ""
    spacing_mm: float = 4.0
    patch: int = 48
    features: tuple[int, ...] = (8, 16, 32, 64, 128)
    network: str = ""
    adam: bool = False
    mirroring: bool = True
    learning_rate: float = 0.0  # 0: the trainer's own

    @property
    def values(self) -> dict[str, Any]:
        """The manifest as it stands in its file."""
        values: dict[str, Any] = json.loads(Path(self.manifest).read_text(encoding="utf-8"))
        return values

    @property
    def root(self) -> Path:
        """Where nnU-Net's three folders lie; raw and preprocessed data are shared by the seeds."""
        return Path(self.manifest).with_suffix("") / "nnunet"

    @property
    def preprocessed(self) -> Path:
        """nnU-Net's prepared data set."""
        return self.root / "preprocessed" / DATASET


def name_folders(job: Job) -> None:
    """Tell nnU-Net where its folders are; it reads this when it is imported."""
    folders = {f"nnUNet_{name}": str(job.root / name) for name in ("raw", "preprocessed")}
    results = {"nnUNet_results": str(Path(job.run) / "results")}
    os.environ.update(folders | results | {"nnUNet_n_proc_DA": "1"})


def write_dataset(job: Job) -> None:
    """The cases in nnU-Net's raw layout."""
    raw, values = job.root / "raw" / DATASET, job.values
    shutil.rmtree(raw, ignore_errors=True)
    cases = [*values["training"], *values["validation"]]
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    for case in cases:
        source = Path(job.manifest).parent
        shutil.copy(source / case["image"], raw / "imagesTr" / f"{case['id']}_0000.nii.gz")
        shutil.copy(source / case["label"], raw / "labelsTr" / f"{case['id']}.nii.gz")
    labels = {name: int(value) for value, name in values["labels"].items()}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description | {"numTraining": len(cases)}))


def prepare(job: Job) -> None:
    """Plan and preprocess, once per split; spacing and network as the other recipes have them."""
    if (job.preprocessed / "done").exists():
        return
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    write_dataset(job)
    extract_fingerprints([900], num_processes=1, check_dataset_integrity=False)
    plan_experiments([900], overwrite_target_spacing=(job.spacing_mm,) * 3)
    file = job.preprocessed / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    settings, stages = plans["configurations"][CONFIGURATION], len(job.features)
    settings |= {"patch_size": [job.patch] * 3, "batch_size": 2}
    settings["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(job.features),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    file.write_text(json.dumps(plans))
    preprocess([900], PLANS, (CONFIGURATION,), (1,))
    values = job.values
    split = {
        "train": [case["id"] for case in values["training"]],
        "val": [case["id"] for case in values["validation"] or values["training"][:1]],
    }
    (job.preprocessed / "splits_final.json").write_text(json.dumps([split]))
    (job.preprocessed / "done").touch()


def train(job: Job) -> None:
    """Prepare the data set and train for so many steps."""
    name_folders(job)
    prepare(job)
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation import (
        nnUNetTrainerNoMirroring as NoMirroring,
    )
    from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import (
        nnUNetTrainerAdam1en3,
    )

    os.environ.update({"nnUNet_n_proc_DA": "0"})  # augment in this process; planning wants 1
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)
    plans = json.loads((job.preprocessed / f"{PLANS}.json").read_text())
    description = json.loads((job.preprocessed / "dataset.json").read_text())
    plans["continue_training"] = False  # the trainer takes this out again
    kind = nnUNetTrainerAdam1en3 if job.adam else nnUNetTrainer
    bases = (kind,) if job.mirroring else (kind, NoMirroring.nnUNetTrainerNoMirroring)
    kind = type("nnUNetTrainer", bases, {})  # the name by which the predictor finds the network
    trainer = kind(plans, CONFIGURATION, 0, description, device=torch.device("cpu"))
    trainer.initial_lr = job.learning_rate or trainer.initial_lr
    trainer.num_epochs = max(1, round(job.steps / STEPS_PER_EPOCH))
    trainer.num_iterations_per_epoch = min(job.steps, STEPS_PER_EPOCH)
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()


def infer(job: Job) -> None:
    """Segment the test cases with the last weights, mirrored eight ways."""
    name_folders(job)
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    (model,) = (Path(job.run) / "results" / DATASET).iterdir()
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    root, folder = Path(job.manifest).parent, Path(job.predictions)
    folder.mkdir(parents=True, exist_ok=True)
    scans = [[str(root / case["image"])] for case in job.values["test"]]
    outputs = [str(folder / case["id"]) for case in job.values["test"]]
    predictor.predict_from_files_sequential(scans, outputs, False, True)


if __name__ == "__main__":
    values: dict[str, Any] = json.loads(sys.argv[2])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    {"train": train, "infer": infer}[sys.argv[1]](Job(**values))
