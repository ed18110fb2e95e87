"""Connections to an S3 server cut at random moments: is a torn file ever taken for a whole one?

    python -m benchmarks.reliability.store FOLDER [--small]

`attunet3d infer` reads its model and scans from the server and writes its results there, through a
proxy that cuts all connections once a random number of bytes has passed. After each cut every case
that counts as done must be whole; after a few of them the same call finishes the rest.
"""

import hashlib
import json
import os
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.reliability import inputs
from benchmarks.reliability.fork_server import ForkServer
from benchmarks.reliability.rows import row
from benchmarks.reliability.s3_server import BUCKET, Proxy, S3Server, environment

SCANS = 6


def run(folder: Path, small: bool) -> dict[str, Any]:
    """Cut connections, and return rows of what was tried and what held."""
    if not all(map(find_spec, ("moto", "s3fs"))):
        print("store: moto or s3fs is not installed; skipped")
        return {"rows": [], "troubles": []}
    wanted, rng, troubles = 3 if small else 40, random.Random(0), []
    cuts = opened = torn = finished = 0
    with S3Server() as server, Proxy(server.port) as proxy:
        os.environ.update(environment(proxy.port))
        with ForkServer() as commands:
            model, scans = inputs.infer_inputs(commands, folder, SCANS, 24)
            arguments = ["infer", model, scans, folder / "answers", "--device", "cpu"]
            assert commands.call(arguments, folder / "said.txt")[0] == 0
            answers = {p.name: p.read_bytes() for p in (folder / "answers").glob("*.nii.gz")}
            server.put_folder("in", scans)
            server.put("model.safetensors", model.read_bytes())
            size = model.stat().st_size + sum(path.stat().st_size for path in scans.iterdir())
            place = 0
            while cuts < wanted:
                out = f"out_{place}"
                names = [f"s3://{BUCKET}/{name}" for name in ("model.safetensors", "in", out)]
                call = ["infer", *names, "--device", "cpu"]
                for _ in range(rng.randint(1, 3)):
                    proxy.budget, proxy.was_cut = int(size * rng.uniform(0.2, 1.8)), 0
                    status, said = commands.call(call, folder / "said.txt")
                    if "Traceback" in said or status not in (0, 1, 2):
                        troubles.append(f"{out}: status {status}: {said[-400:]}")
                    cuts += bool(proxy.was_cut)
                    proxy.budget = None
                    done, wrong = _judge(server, out, answers)
                    opened, torn = opened + done, torn + len(wrong)
                    troubles += wrong
                status, said = commands.call(call, folder / "said.txt")
                done, wrong = _judge(server, out, answers)
                if status != 0 or done != SCANS or wrong:
                    troubles.append(f"{out}: the next call: {status}, {wrong}: {said[-300:]}")
                else:
                    finished += 1
                place += 1
                print(f"store: {cuts} of {wanted} cuts", flush=True)
    return {
        "rows": [
            row("connections to an S3 server cut for good", cuts, 0, "after a random size"),
            row("… cases that count as done, torn", opened, torn, "label map and sidecar"),
            row("… next calls that finish the rest", place, place - finished),
        ],
        "troubles": troubles,
    }


def _judge(server: S3Server, out: str, answers: dict[str, bytes]) -> tuple[int, list[str]]:
    """How many cases count as done, and which of them are not whole."""
    objects, wrong = server.objects(out), []
    sidecars = [name for name in objects if name.startswith("scan_") and name.endswith(".json")]
    for name in sidecars:
        try:
            for part, checksum in json.loads(objects[name])["files"].items():
                if hashlib.sha256(objects[part]).hexdigest() != checksum:
                    wrong.append(f"{out}/{name}: {part} is not what its checksum says")
                elif objects[part] != answers[part]:
                    wrong.append(f"{out}/{name}: {part} is not that of a local call")
        except (ValueError, LookupError) as error:
            wrong.append(f"{out}/{name}: is not whole ({error!r})")
    return len(sidecars), wrong


if __name__ == "__main__":
    inputs.main(run, __doc__)
