"""The notebook was executed as it stands, and its cells still run and give what it shows."""

import ast
import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_steps.ipynb"


def test_the_cells_run_and_give_what_the_notebook_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    variables: dict[str, Any] = {"__name__": "notebook"}
    pictures = 0
    for cell in code:
        parsed = ast.parse("".join(cell["source"]))
        last = parsed.body.pop() if isinstance(parsed.body[-1], ast.Expr) else None
        exec(compile(parsed, NOTEBOOK, "exec"), variables)
        shown = [out["data"]["text/plain"] for out in cell["outputs"] if "data" in out]
        pictures += sum("image/png" in out.get("data", {}) for out in cell["outputs"])
        if isinstance(last, ast.Expr):
            found = eval(compile(ast.Expression(last.value), NOTEBOOK, "eval"), variables)
            assert repr(found).split() == "".join(shown[0]).split()
    assert pictures == 1
