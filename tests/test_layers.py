"""The house's rows, held by machine: a module imports only from rows below its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from attunet3d.cache import CODE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "attunet3d"
ROWS = [  # bottom row first; modules of one row do not know each other
    set(row.split())
    for row in (
        "components errors memory_layout shapes strict_text strict_yaml taps",
        "atomic available_memory case_names charts dicom_file folds fresh_memory geometry "
        "nifti_header one_core_threads phantom_tissue runtime stop_requests strict_json "
        "text_header typed_values",
        "case dicom gate metrics model_settings nifti nnunet_splits phantom_organs "
        "phantom_scanner phantom_skeleton resampling run_log slices training_settings",
        "authors_weights cached_case config drawing loss network_memory optimisation "
        "phantom_anatomy placement scores volume windows",
        "augmentation case_files hounsfield label_fit manifest network phantom preprocessing "
        "presets report results window_sums",
        "convolution openvino_engine sliding_window upsampling",
        "split_convolution",
        "acceleration",
        "cache checkpoint dataset dataset_fingerprint dataset_formats decision evaluation "
        "forward pair_check validation",
        "ensemble localisation precision training_step",
        "passes",
        "inference manifest_template monai_transforms plan training",
        "bundle conversion data_listing export onnx_model run_folder torchscript_model",
        "cohort demonstration packaging",
        "command_line",
        "__main__",
    )
]
LIGHT = {"config", "geometry", "manifest", "volume", "nifti", "presets", "command_line"}


def imported_modules(path: Path) -> set[str]:
    """Names of the package's modules that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("attunet3d.")}
    return found - {"__version__"}


def test_every_module_has_its_row():
    on_disk = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert on_disk == set().union(*ROWS)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_imports_point_downwards(row):
    below = set().union(*ROWS[:row])
    for module in ROWS[row]:
        wrong = imported_modules(PACKAGE / f"{module}.py") - below
        assert not wrong, f"{module} imports {sorted(wrong)}, which sit beside or above it"


def test_the_cache_depends_on_all_code_that_makes_its_arrays():
    found: set[str] = set()
    beneath = {"case_files", "preprocessing"}
    while beneath:
        found |= beneath
        beneath = set().union(*(imported_modules(PACKAGE / f"{name}.py") for name in beneath))
        beneath -= found
    makes_none = {"atomic", "case", "case_names", "errors", "model_settings", "typed_values"}
    assert {"cache", *found} - makes_none == set(CODE)


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.py")), ids=lambda p: p.stem)
def test_pipelines_hold_the_order_of_events_only(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 60
    definitions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert definitions == ([] if path.stem == "__init__" else ["main"])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not any(name.split(".")[0] in ("torch", "monai", "numpy") for name in names)
        if isinstance(node, ast.Constant) and not isinstance(node.value, bool):
            assert not isinstance(node.value, int | float) or node.value in (0, 1)


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_light_modules_start_without_torch(module):
    code = (
        f"import sys, attunet3d.{module}; "
        "print([name for name in ('torch', 'monai', 'SimpleITK') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
