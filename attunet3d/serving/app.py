"""The HTTP interface: send a scan, ask how far it is, fetch the result.

POST   /jobs                    the scan as the body → 201 and the job
GET    /jobs/{id}               state, place in the queue, error
GET    /jobs/{id}/label-map     NIfTI
GET    /jobs/{id}/sidecar       JSON: labels, volumes, warnings, versions
GET    /jobs/{id}/dicom-seg     DICOM Segmentation, where the scan was a DICOM series
GET    /jobs/{id}/report        an HTML page with a viewer
DELETE /jobs/{id}               cancel it, or forget its result
GET    /health, /ready, /metrics, /
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from pydantic import BaseModel

from attunet3d import __version__
from attunet3d.core import UserError
from attunet3d.serving import outputs
from attunet3d.serving.jobs import Job, JobQueue, QueueFullError
from attunet3d.serving.uploads import accept, receive

PAGE = files("attunet3d.serving") / "page" / "index.html"
RETRY_S = 10  # after which a client that was refused may ask again
JANITOR_S = 30


@dataclass(frozen=True)
class AppOptions:
    """How the interface takes uploads.

    Args:
        token: What clients must send as `Authorization: Bearer …`; None: nothing.
        most_bytes: Largest upload.
        most_unpacked_bytes: What an archive may unpack to.
        silence_s: Seconds after which a client that sends nothing is cut off.
        upload_s: Seconds that an upload may take.
        grace_s: Seconds that running jobs get when the server is stopped.
    """

    token: str | None = None
    most_bytes: int = 1 << 30
    most_unpacked_bytes: int = 4 << 30
    silence_s: float = 20
    upload_s: float = 900
    grace_s: float = 60


class JobState(BaseModel):
    """A job as clients see it."""

    id: str
    state: str
    place: int
    submitted: float
    started: float | None
    ended: float | None
    error: str | None
    share: float
    """Of the segmentation that is done, from 0 to 1."""
    results: list[str]
    """What can be fetched, by the end of its address."""


JobId = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_-]{22}$", description="from POST /jobs")]
ANSWERS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The bearer token is missing or wrong."},
    404: {"description": "There is no such job, or it was forgotten."},
}
NO_RESULT: dict[int | str, dict[str, Any]] = {
    409: {"description": "The job has not ended well, or has no such result."}
}


def build_app(queue: JobQueue, options: AppOptions) -> FastAPI:
    """The interface to a queue.

    Args:
        queue: Started with the interface and closed with it.
        options: How it takes uploads.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(queue.start)
        janitor = asyncio.create_task(_forget_old(queue))
        yield
        janitor.cancel()
        await run_in_threadpool(queue.close, options.grace_s)

    app = FastAPI(title="attunet3d", version=__version__, lifespan=lifespan)
    registry = CollectorRegistry()
    signed = Depends(_signed(options.token))

    @app.exception_handler(UserError)
    async def refuse(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    _add_monitoring(app, queue, registry, signed)
    _add_submission(app, queue, registry, signed, options)
    _add_jobs(app, queue, signed)
    _add_results(app, queue, signed)
    return app


def _add_monitoring(
    app: FastAPI, queue: JobQueue, registry: CollectorRegistry, signed: Any
) -> None:
    """Add the page and the routes that tell how the service is."""
    jobs = Gauge("attunet3d_jobs", "Jobs by state", ["state"], registry=registry)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return PAGE.read_text(encoding="utf-8")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/ready", responses={503: {"description": "No job is taken now."}})
    async def ready() -> dict[str, int]:
        """Whether a job would be taken now."""
        if not queue.ready:
            raise HTTPException(503, "no room for a job now")
        return {"room": queue.room}

    @app.get("/metrics", dependencies=[signed], responses={401: ANSWERS[401]})
    async def metrics() -> Response:
        """Counts for Prometheus."""
        for state, count in queue.counts().items():
            jobs.labels(state).set(count)
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")


def _add_submission(
    app: FastAPI, queue: JobQueue, registry: CollectorRegistry, signed: Any, options: AppOptions
) -> None:
    """Add the route that queues a scan."""
    uploads = Counter("attunet3d_uploads", "Uploads by outcome", ["outcome"], registry=registry)
    body = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}

    @app.post(
        "/jobs",
        status_code=201,
        dependencies=[signed],
        openapi_extra={"requestBody": {**body, "required": True}},
        responses={
            401: ANSWERS[401],
            408: {"description": "The client sent too slowly, or stopped."},
            413: {"description": "The upload is too large."},
            422: {"description": "The upload is not a scan."},
            429: {"description": "The queue is full; try again later."},
        },
    )
    async def submit(request: Request) -> JobState:
        """Queue the scan in the request's body: NIfTI, NRRD, or a ZIP of a DICOM series."""
        try:
            job_id = queue.reserve()
        except QueueFullError:
            uploads.labels("queue full").inc()
            headers = {"Retry-After": str(RETRY_S)}
            raise HTTPException(429, "the queue is full; try again later", headers) from None
        folder = queue.folder / job_id
        try:
            await receive(
                request.stream(),
                folder / "upload",
                most_bytes=options.most_bytes,
                silence_s=options.silence_s,
                upload_s=options.upload_s,
            )
            scan = await run_in_threadpool(
                accept, folder / "upload", folder, options.most_unpacked_bytes
            )
        except BaseException:
            uploads.labels("refused").inc()
            await asyncio.shield(run_in_threadpool(queue.release, job_id))
            raise
        uploads.labels("taken").inc()
        return _state(queue, await run_in_threadpool(queue.submit, job_id, scan))


def _add_jobs(app: FastAPI, queue: JobQueue, signed: Any) -> None:
    """Add the routes that tell how far a job is, and end it."""

    @app.get("/jobs/{job_id}", dependencies=[signed], responses=ANSWERS)
    async def state(job_id: JobId) -> JobState:
        """How far a job is."""
        return _state(queue, _known(queue, job_id))

    @app.delete("/jobs/{job_id}", dependencies=[signed], responses=ANSWERS)
    async def cancel(job_id: JobId) -> JobState:
        """Cancel a job, or forget the result of one that has ended."""
        job = await run_in_threadpool(queue.cancel, job_id)
        if job is None:
            raise HTTPException(404, "no such job")
        return _state(queue, job)


def _add_results(app: FastAPI, queue: JobQueue, signed: Any) -> None:
    """Add a route for each form of a result."""

    def fetch(name: str, make: Callable[[Path, Path], Path], media_type: str, file: str) -> None:
        """Add the route of one form, which `make` writes."""

        @app.get(
            f"/jobs/{{job_id}}/{name}",
            name=name,
            dependencies=[signed],
            response_class=FileResponse,
            responses={**ANSWERS, **NO_RESULT},
        )
        async def result(job_id: JobId) -> FileResponse:
            """Fetch this form of a job's result."""
            job = _known(queue, job_id)
            if job.state != "done":
                raise HTTPException(409, f"the job is {job.state}")
            scan = queue.folder / job_id / job.scan
            try:
                path = await run_in_threadpool(make, scan, queue.result(job_id))
            except UserError as error:
                raise HTTPException(409, str(error)) from None
            left = max(0, int(queue.seconds_kept(job)))
            kept = {"Cache-Control": f"private, max-age={left}"}
            return FileResponse(path, media_type=media_type, filename=file, headers=kept)

    for kind in outputs.KINDS:
        fetch(kind.name, kind.make, kind.media_type, kind.file)


def _signed(token: str | None) -> Callable[..., Awaitable[None]]:
    """A check of the bearer token."""
    scheme = HTTPBearer(auto_error=False)

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)],
    ) -> None:
        """Answer 401 to a request without the token."""
        if token is None:
            return
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(
                401, "bearer token missing or wrong", {"WWW-Authenticate": "Bearer"}
            )

    return check


async def _forget_old(queue: JobQueue) -> None:
    while True:
        await asyncio.sleep(JANITOR_S)
        await run_in_threadpool(queue.forget_old)


def _known(queue: JobQueue, job_id: str) -> Job:
    job = queue.get(job_id)
    if job is None:
        raise HTTPException(404, "no such job")
    return job


def _state(queue: JobQueue, job: Job) -> JobState:
    return JobState(
        id=job.id,
        state=job.state,
        place=queue.place(job.id),
        submitted=job.submitted,
        started=job.started,
        ended=job.ended,
        error=job.error,
        share=job.share,
        results=outputs.kinds(queue.folder / job.id / job.scan) if job.state == "done" else [],
    )
