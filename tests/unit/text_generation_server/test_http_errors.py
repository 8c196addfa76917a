"""Every exception becomes one error object, and says no more than it may."""

import json

import pytest

from kilotron import errors
from kilotron.text_generation_server.http_errors import HttpError, http_error_of, http_error_of_status

SECRET = "/home/user/model.safetensors at 0xdeadbeef00"
QUIET = [
    errors.KilotronError,
    errors.ConfigError,
    errors.BrokenCheckpointError,
    errors.TokenizerError,
    errors.KernelError,
    errors.RequestNotFoundError,
    errors.RequestAbortedError,
    errors.NumericalError,
    errors.StepFailedError,
    errors.EngineClosedError,
    MemoryError,
    RuntimeError,
    KeyError,
]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.SamplingParamsError("top_p"), 400, "invalid_value"),
        (errors.InvalidRequestError("no"), 400, "invalid_value"),
        (errors.EmptyPromptError("no"), 400, "invalid_value"),
        (errors.TokenOutOfRangeError("no"), 400, "invalid_value"),
        (errors.ChatTemplateError("no"), 400, "invalid_value"),
        (errors.PromptTooLongError("9 of 8"), 400, "context_length_exceeded"),
        (errors.RequestNeverFitsError("no"), 400, "context_length_exceeded"),
        (errors.RequestNotFoundError("no"), 404, "request_not_found"),
        (errors.RequestAbortedError("no"), 409, "request_aborted"),
        (errors.QueueFullError("no"), 503, "queue_full"),
        (errors.EngineClosedError("no"), 503, "engine_closed"),
        (errors.EngineDiedError("no"), 503, "engine_died"),
        (errors.EngineDiedError("no", is_retryable=False), 500, "engine_died"),
        (errors.NumericalError("no"), 500, "numerical_error"),
        (errors.StepFailedError("no"), 500, "step_failed"),
        (MemoryError(), 503, "out_of_memory"),
        (ValueError("no"), 500, "internal_error"),
    ],
)
def test_each_class_of_exceptions_has_its_status_and_code(error: Exception, status: int, code: str) -> None:
    found = http_error_of(error)

    assert (found.status, found.code) == (status, code)


def test_what_is_wrong_with_a_request_is_said_in_its_own_words() -> None:
    assert http_error_of(errors.PromptTooLongError("9 tokens of 8")).message == "9 tokens of 8"


@pytest.mark.parametrize("kind", QUIET)
def test_what_went_wrong_inside_is_not_told(kind: type[Exception]) -> None:
    assert SECRET not in http_error_of(kind(SECRET)).to_json().decode()


def test_an_exception_may_name_its_own_field_and_time_to_retry() -> None:
    error = errors.QueueFullError("full")
    error.retry_after_s = 2.2  # type: ignore[attr-defined]
    error.param = "prompt"  # type: ignore[attr-defined]

    found = http_error_of(error)

    assert (found.param, found.headers["retry-after"]) == ("prompt", "3")


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.1, "1"), (12.0, "12"), (1e9, "30")])
def test_the_time_to_retry_is_a_whole_number_that_clients_heed(seconds: float, header: str) -> None:
    assert HttpError(503, "full", retry_after_s=seconds).headers["retry-after"] == header


def test_deterministic_failures_tell_clients_not_to_retry() -> None:
    assert http_error_of(errors.NumericalError("nan")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in http_error_of(errors.StepFailedError("once")).headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (431, "invalid_request_error"), (429, "rate_limit_error"), (504, "server_error")],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    assert HttpError(status, "no").error_type == kind


def test_an_http_error_passes_as_it_is() -> None:
    error = HttpError(418, "teapot")

    assert http_error_of(error) is error


def test_a_response_is_the_openai_object() -> None:
    response = HttpError(400, "no \ud800\n", param="messages[3].content", code="invalid_value").to_response()

    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert json.loads(bytes(response.body)) == {
        "error": {
            "message": "no \ud800\n",
            "type": "invalid_request_error",
            "param": "messages[3].content",
            "code": "invalid_value",
        }
    }


def test_an_event_is_one_line_of_a_stream() -> None:
    event = HttpError(500, "a\n\nb").to_event()

    assert event.startswith(b'data: {"error": ')
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2


def test_a_long_message_is_cut() -> None:
    assert len(HttpError(400, "a" * 5000).message) == 1024


def test_a_foreign_error_response_keeps_the_headers_that_count() -> None:
    error = http_error_of_status(405, {"allow": "GET"})

    assert (error.code, error.headers) == ("method_not_allowed", {"allow": "GET"})


@pytest.mark.parametrize("status", [418, 599])
def test_an_unknown_status_has_a_message_too(status: int) -> None:
    assert http_error_of_status(status, {}).message
