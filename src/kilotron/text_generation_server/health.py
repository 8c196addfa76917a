"""Whether this process lives (/health, /livez), whether a request would be served (/ready, /readyz), and /version."""

import asyncio
import time
from importlib.metadata import PackageNotFoundError, version

from starlette.requests import Request
from starlette.responses import Response

from kilotron.coordinator.submissions import to_submission
from kilotron.errors import KilotronError
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_server.generation_call import GenerationCall
from kilotron.text_generation_server.http_errors import HttpError, http_error_of
from kilotron.text_generation_server.json_response import json_response
from kilotron.text_generation_server.server_state import ServerState, explain_status, new_request_id

_MOST_LOOP_LAG_S = 1.0
_DEEP_TIMEOUT_S = 2.0
_DEEP_PERIOD_S = 1.0


class HealthEndpoints:
    """Probes. None of them tells anything about requests or keys."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._trial = asyncio.Lock()
        self._next_trial = 0.0

    async def live(self, request: Request) -> Response:
        """Whether this process gets round to things; says nothing of the engines."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        await asyncio.sleep(0)
        lag_s = loop.time() - before
        if lag_s > _MOST_LOOP_LAG_S:
            raise HttpError(503, f"the server is too busy: {lag_s:.1f} s behind", code="overloaded", retry_after_s=1)
        return json_response({"status": "ok", "loop_lag_s": round(lag_s, 6)})

    async def ready(self, request: Request) -> Response:
        """Whether a request sent now would run. `?deep=1` tries it with one token."""
        status = self._state.client.status
        if not self._state.is_ready:
            return self._refusal(self._state.not_ready())
        if request.query_params.get("deep", "0") not in ("", "0", "false"):
            try:
                await self._try_out()
            except TimeoutError:
                message = f"no token within {_DEEP_TIMEOUT_S:g} s"
                return self._refusal(HttpError(503, message, code="engine_unresponsive", retry_after_s=1))
            except KilotronError as error:
                known = http_error_of(error)
                return self._refusal(HttpError(503, known.message, code=known.code, retry_after_s=1))
        num_ready = sum(replica.is_live and replica.phase == "ready" for replica in status.replicas)
        return json_response(
            {"status": "ready", "replicas_ready": num_ready, "replicas": len(status.replicas), "state": status.state}
        )

    async def show_version(self, request: Request) -> Response:
        """The package's version."""
        return json_response({"version": package_version()})

    def _refusal(self, error: HttpError) -> Response:
        """The error object with what a person or a script that waits wants to know."""
        status = self._state.client.status
        code = error.code or explain_status(status)[1]
        progress = max((replica.progress for replica in status.replicas), default=0.0)
        body = {
            "error": {"message": error.message, "type": error.error_type, "param": None, "code": code},
            "status": code,
            "progress": round(progress, 3),
        }
        return json_response(body, error.status, error.headers)

    async def _try_out(self) -> None:
        """One trial at a time, and none so soon after a good one: this route asks nobody for a key."""
        async with self._trial:
            if time.monotonic() >= self._next_trial:
                await self._generate_one()
                self._next_trial = time.monotonic() + _DEEP_PERIOD_S

    async def _generate_one(self) -> None:
        params = SamplingParams(temperature=0.0, num_tokens_to_generate=1, ignore_eos=True)
        request = self._state.intake.build([0], params, timeout_s=_DEEP_TIMEOUT_S, cache_salt="health")
        call = GenerationCall(self._state.client, [to_submission(request, new_request_id())])
        async with asyncio.timeout(_DEEP_TIMEOUT_S), call:
            await call.collect()


def package_version() -> str:
    """Of the installed package."""
    try:
        return version("kilotron")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
