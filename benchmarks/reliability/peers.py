"""A corpus through another reader, one child process a file with bounded memory and time.

`python -m benchmarks.reliability.peers monai|simpleitk CORPUS OUT.json` imports the reader once
and forks for each file.
"""

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.corpus_files import load_index
from benchmarks.reliability.nifti_bytes import Array
from benchmarks.reliability.verdicts import OVER, Verdict, loaded, refused

MEMORY = 3 << 30  # bytes of address space above what the imports take
SECONDS = 20.0
Reader = Callable[[Path], tuple[Array, Array]]
PEERS = {"monai": "MONAI", "simpleitk": "SimpleITK"}


@dataclass(frozen=True)
class Read:
    """How reading one file went."""

    text: str  # JSON of the verdict; empty when the child gave none
    seconds: float
    peak_mb: float
    end: str  # "done", "time" or "signal N"


def monai_reader() -> Reader:
    """`LoadImage` as MONAI's examples call it."""
    from monai.transforms import LoadImage

    load = LoadImage(image_only=True)

    def read(path: Path) -> tuple[Array, Array]:
        image = load(path)
        return np.asarray(image), np.asarray(image.affine, float)

    return read


def simpleitk_reader() -> Reader:
    """`ReadImage`; world positions turned from LPS to RAS."""
    import SimpleITK as sitk  # noqa: N813

    def read(path: Path) -> tuple[Array, Array]:
        image = sitk.ReadImage(str(path))
        n = image.GetDimension()
        direction = np.array(image.GetDirection()).reshape(n, n)
        affine = np.eye(4)
        k = min(n, 3)
        affine[:k, :k] = (direction * image.GetSpacing())[:k, :k]
        affine[:k, 3] = image.GetOrigin()[:k]
        array = sitk.GetArrayFromImage(image)
        if image.GetNumberOfComponentsPerPixel() == 1:
            array = array.transpose()
        return array, np.diag([-1, -1, 1, 1]) @ affine

    return read


def in_child(work: Callable[[], str], seconds: float = SECONDS) -> Read:
    """What `work` returns in a fork whose memory and time are bounded."""
    reading, writing = os.pipe()
    began = time.perf_counter()
    pid = os.fork()
    if not pid:
        _child(work, writing)
    os.close(writing)
    data, end = b"", "time"
    while (left := began + seconds - time.perf_counter()) > 0:
        if not select.select([reading], [], [], left)[0]:
            break
        piece = os.read(reading, 1 << 16)
        if not piece:
            end = "done"
            break
        data += piece
    if end == "time":
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    passed = time.perf_counter() - began
    os.close(reading)
    if end == "done" and os.WIFSIGNALED(status):
        end = f"signal {os.WTERMSIG(status)}"
    return Read(data.decode("utf-8", "replace"), passed, usage.ru_maxrss * 1024 / 1e6, end)


def _child(work: Callable[[], str], writing: int) -> None:
    text = ""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        text = work()
    finally:
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(writing, data) :]
        os._exit(0)


def attempt(read: Reader, path: Path) -> tuple[tuple[Array, Array] | None, str, bool]:
    """Read; what came, what was said (exception and stderr), and whether memory ran out."""
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        result, text, memory = None, "", False
        try:
            result = read(path)
        except MemoryError as error:
            text, memory = f"MemoryError: {error}", True
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            memory = "allocat" in text or "bad_alloc" in text
        said.seek(0)
        return result, text + "\n" + said.read().decode("utf-8", "replace"), memory


def judge(peer: str, folder: Path) -> list[dict[str, Any]]:
    """A row for each file of the corpus in `folder`."""
    warnings.simplefilter("ignore")
    read = {"monai": monai_reader, "simpleitk": simpleitk_reader}[peer]()
    rows = []
    for entry in load_index(folder):

        def work(entry: Any = entry) -> str:
            result, said, memory = attempt(read, folder / entry.file)
            if memory:
                return json.dumps(Verdict(entry.file, OVER, said).to_dict())
            verdict = loaded(entry, folder, *result) if result else refused(entry, said)
            return json.dumps(verdict.to_dict())

        child = in_child(work)
        row = json.loads(child.text) if child.end == "done" and child.text else None
        row = row or Verdict(entry.file, OVER, child.end).to_dict()
        how = asdict(child)
        rows.append({**row, "seconds": round(how["seconds"], 3), "peak_mb": round(how["peak_mb"])})
    return rows


def load_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that a call of this module wrote."""
    return list(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    name, corpus, result = sys.argv[1:]
    rows = judge(name, Path(corpus))
    Path(result).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
