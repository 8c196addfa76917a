"""schemathesis, as a user would run it, over our own description: whatever it sends, the service answers as described.

Both right and wrong requests, on every route, with the admin key. Nothing may be a 5xx, and nothing may remain.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.running_service import RunningService, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ADMIN_KEY = "sk-admin-of-the-test"
KEYS = {"KILOTRON_API_KEY": "sk-user-of-the-test", "KILOTRON_ADMIN_KEY": ADMIN_KEY}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
LEAST_CASES = 2000
USUAL = {"prompt": "Once upon a time", "max_tokens": 16, "seed": 1, "n": 2, "logprobs": 2}


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    reason = "schemathesis is NOT INSTALLED, so nothing here is proved; pip install schemathesis"
    if not _has_schemathesis():
        pytest.skip(reason)
    with running("--num-threads", "1", key=ADMIN_KEY, environment=KEYS) as service:
        yield service


def _has_schemathesis() -> bool:
    program = (sys.executable, "-c", "import schemathesis")
    return subprocess.run(program, capture_output=True, check=False).returncode == 0


def usual_answer(service: RunningService) -> Any:
    answer = service.ask("POST", "/v1/completions", USUAL)
    assert answer.status == 200, answer.text
    return answer.json["choices"]


@pytest.mark.parametrize(("mode", "num_examples"), [("positive", 60), ("all", 30)])
def test_no_request_that_the_description_suggests_is_a_server_error(
    service: RunningService, tmp_path: Path, mode: str, num_examples: int
) -> None:
    before, pids = usual_answer(service), {child.pid for child in service.children()}

    result = run(service, tmp_path, mode, num_examples)

    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "Test Phases:" in result.stdout
    assert mode == "positive" or num_cases(result.stdout) >= LEAST_CASES
    service.wait_idle()
    assert usual_answer(service) == before
    assert {child.pid for child in service.children()} == pids
    bad = {name: count for name, count in responses(service).items() if name >= "500"}
    assert set(bad) <= {"503"}  # which were the answers while it was loading
    assert "Traceback" not in service.log


def run(service: RunningService, folder: Path, mode: str, num_examples: int) -> "subprocess.CompletedProcess[str]":
    hooks = Path(__file__).with_name("schemathesis_hooks.py")
    options = [f"http://127.0.0.1:{service.port}/openapi.json", "--header", f"Authorization: Bearer {ADMIN_KEY}"]
    options += ["--mode", mode, "--max-examples", str(num_examples), "--phases", "examples,coverage,fuzzing"]
    options += ["--checks", ",".join(CHECKS), "--generation-deterministic", "--no-shrink", "--continue-on-failure"]
    options += ["--suppress-health-check", "all", "--request-timeout", "60", "--no-color"]
    return subprocess.run(
        (sys.executable, "-m", "schemathesis.cli", "run", *options),
        env={**os.environ, "SCHEMATHESIS_HOOKS": hooks.stem, "PYTHONPATH": str(hooks.parent)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def num_cases(report: str) -> int:
    found = re.search(r"Test cases:\n\s+(\d+) generated", report)
    assert found is not None, report
    print(f"[schemathesis] {found[1]} cases")
    return int(found[1])


def responses(service: RunningService) -> dict[str, float]:
    figures = service.metrics()
    print(json.dumps({name: value for name, value in figures.items() if name.startswith("http_responses")}))
    return {name.partition("/")[2]: value for name, value in figures.items() if name.startswith("http_responses")}
