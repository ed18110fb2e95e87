"""Requests made from the interface's own description: none may end in a server's error."""

from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok

from attunet3d.serving import AppOptions, JobQueue, QueueLimits, build_app
from tests.serving.test_jobs import Worker


def test_no_request_ends_in_a_servers_error(tmp_path: Path) -> None:
    workers: list[Any] = [Worker()]
    queue = JobQueue(tmp_path / "jobs", workers, QueueLimits(waiting=10_000))
    app = build_app(queue, AppOptions(token="secret", grace_s=0))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    headers = {"Authorization": "Bearer secret"}
    seen = set()

    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def request(case: Any) -> None:
            answer = case.call(headers=headers)
            seen.add(answer.status_code)
            assert answer.status_code < 500 or answer.status_code == 503

        request()
    assert {200, 404, 422} <= seen
