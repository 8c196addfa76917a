"""Hooks for schemathesis, loaded by its command line: generated requests stay small, and the engines keep running."""

from typing import Any

import requests
import schemathesis

MOST_TOKENS = 4
LEAST_TIMEOUT_S = 60.0
# What undoes each verb, in order.
_UNDO = {"/admin/pause": ["unpause"], "/admin/suspend": ["resume", "unpause"], "/admin/resume": ["unpause"]}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Bounds what a valid request asks for; what is invalid stays so."""
    body = case.body
    if isinstance(body, dict) and case.path.endswith("/completions"):
        _bound(body)
    elif isinstance(body, dict) and case.path == "/api" and _is_number(body.get("tokens_to_generate", 0)):
        body["tokens_to_generate"] = min(body.get("tokens_to_generate", MOST_TOKENS), MOST_TOKENS)


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Others' requests would wait for ever while engines are paused."""
    if response.status_code == 200:
        for verb in _UNDO.get(case.path, []):
            headers = {"authorization": response.request.headers["authorization"]}
            url = f"{case.operation.base_url.rstrip('/')}/admin/{verb}"
            requests.post(url, headers=headers, timeout=30).raise_for_status()


def _bound(body: dict[str, Any]) -> None:
    names = [name for name in ("max_tokens", "max_completion_tokens") if _is_number(body.get(name))]
    for name in names:
        body[name] = min(body[name], MOST_TOKENS) if body[name] >= 0 else body[name]
    if not names and body.get("max_tokens") is None:
        body["max_tokens"] = MOST_TOKENS
    if _is_number(body.get("min_tokens")) and body["min_tokens"] > 0:
        body["min_tokens"] = min(body["min_tokens"], MOST_TOKENS)
    if _is_number(body.get("timeout")) and 0 < body["timeout"] < LEAST_TIMEOUT_S:
        body["timeout"] = LEAST_TIMEOUT_S


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
