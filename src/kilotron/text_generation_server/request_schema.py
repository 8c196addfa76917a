"""From a body to a checked request: which fields there are, which are taken without effect, and which are refused.

The refusals stand in one table: what is built later leaves it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.json_body import convert, decode_object, unknown_fields
from kilotron.text_generation_server.sampling_fields import SamplingFields

T = TypeVar("T", bound=SamplingFields)

# They change nothing in the text that a client gets.
WITHOUT_EFFECT = frozenset(
    {
        "user", "store", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "parallel_tool_calls", "prediction", "session_id", "include_reasoning",
        "separate_reasoning", "stream_reasoning", "spaces_between_special_tokens",
    }
)  # fmt: skip


def _is_none_or(*harmless: Any) -> Callable[[dict[str, Any], str], bool]:
    return lambda body, name: body[name] is None or any(body[name] == value for value in harmless)


def _are_tools_off(body: dict[str, Any], name: str) -> bool:
    return not body[name] or body.get("tool_choice") == "none"


def _is_choice_idle(body: dict[str, Any], name: str) -> bool:
    return body[name] in (None, "none") or (body[name] == "auto" and not body.get("tools"))


def _is_plain_text(body: dict[str, Any], name: str) -> bool:
    return body[name] in (None, {"type": "text"})


# To ignore one of these would give another text than was asked for. Name -> when it is harmless.
REFUSED: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "tools": _are_tools_off,
    "functions": _are_tools_off,
    "tool_choice": _is_choice_idle,
    "function_call": _is_choice_idle,
    "response_format": _is_plain_text,
    "structured_outputs": _is_none_or(),
    "guided_json": _is_none_or(),
    "guided_regex": _is_none_or(),
    "guided_choice": _is_none_or(),
    "guided_grammar": _is_none_or(),
    "guided_decoding_backend": _is_none_or(),
    "json_schema": _is_none_or(),
    "regex": _is_none_or(),
    "ebnf": _is_none_or(),
    "stop_regex": _is_none_or(),
    "suffix": _is_none_or(""),
    "logprob_token_ids": _is_none_or([]),
    "chat_template": _is_none_or(),
    "truncation_side": _is_none_or("left"),
    "prompt_embeds": _is_none_or(),
    "modalities": _is_none_or(["text"]),
    "audio": _is_none_or(),
    "web_search_options": _is_none_or(),
    "verbosity": _is_none_or("medium"),
    "thinking_token_budget": _is_none_or(-1),
    "logits_processors": _is_none_or([]),
    "repetition_detection": _is_none_or(),
    "mm_processor_kwargs": _is_none_or({}),
    "media_io_kwargs": _is_none_or({}),
    "kv_transfer_params": _is_none_or({}),
    "vllm_xargs": _is_none_or({}),
    "lora_path": _is_none_or(),
}


def parse_request(body: bytes, kind: type[T], *, allow_unknown_fields: bool) -> tuple[T, list[str]]:
    """The request in a body, and warnings for a response header.

    Raises:
        HttpError: 400, naming the field and what to do.
    """
    given = {name: value for name, value in decode_object(body).items() if name not in WITHOUT_EFFECT}
    for name in [name for name in given if name in REFUSED]:
        if not REFUSED[name](given, name):
            raise HttpError(400, f"{name} is not supported here", param=name, code="unsupported_parameter")
    known = kind.__struct_fields__
    rest = {name: value for name, value in given.items() if name not in REFUSED}
    unknown = [name for name in rest if name not in known]
    warnings = unknown_fields(rest, (*known, *WITHOUT_EFFECT, *REFUSED)) if unknown else []
    if warnings and not allow_unknown_fields:
        raise HttpError(400, warnings[0], param=unknown[0][:64], code="unknown_parameter")
    request = convert({name: rest[name] for name in rest if name in known and rest[name] is not None}, kind)
    request.check_together()
    return request, warnings
