"""The body of /v1/chat/completions: the conversation in it is checked, and brought into the shape templates expect."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.sampling_fields import NumLogprobs, SamplingFields

MAX_MESSAGES = 2048
MAX_CONTENT_PARTS = 256
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# What the renderer itself takes, and what decides what a template sees of a conversation.
_RESERVED_VARIABLES = frozenset(
    {
        "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "template_name",
        "chat_template", "tokenize", "conversation", "return_tensors", "return_dict", "padding", "truncation",
        "max_length", "tokenizer_kwargs", "self", "variables",
    }
)  # fmt: skip

_MESSAGE_SCHEMA = {
    "properties": {
        "role": {"type": "string", "enum": list(_ROLES)},
        "content": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_CONTENT_PARTS,
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                    },
                },
            ]
        },
    },
    "required": ["role", "content"],
}
# At the item, since msgspec's own "items" would replace one beside it.
Message = Annotated[dict[str, Any], Meta(extra_json_schema=_MESSAGE_SCHEMA)]


class ChatRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's fields and vLLM's; docs/http-api.md has them all."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    documents: Annotated[list[dict[str, Any]], Meta(max_length=256)] | None = None
    reasoning_effort: Annotated[str, Meta(max_length=32)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens wanted at each place; None without log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def is_continuation(self) -> bool:
        """Whether the model goes on with the last message."""
        return bool(self.continue_final_message)

    @property
    def has_generation_prompt(self) -> bool:
        """Whether the prompt ends with the beginning of an answer."""
        return not self.is_continuation if self.add_generation_prompt is None else self.add_generation_prompt

    def check_together(self) -> None:
        """See `SamplingFields`; the newer name of max_tokens goes before the older one."""
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        super().check_together()
        if self.max_tokens == 0:
            raise HttpError(400, "max_tokens: must be at least 1", param="max_tokens", code="invalid_value")
        if self.top_logprobs and not self.logprobs:
            raise HttpError(400, "top_logprobs needs logprobs=true", param="top_logprobs", code="invalid_value")
        if self.is_continuation and self.has_generation_prompt:
            raise HttpError(
                400,
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
                code="invalid_value",
            )

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the template gets beside the conversation.

        Raises:
            HttpError: 400; a name is reserved.
        """
        variables = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        for name, value in (self.chat_template_kwargs or {}).items():
            if name in _RESERVED_VARIABLES:
                path = f"chat_template_kwargs.{name}"
                raise HttpError(400, f"{path} is reserved", param=path, code="unsupported_parameter")
            variables[name] = value
        return variables

    def conversation(self) -> list[dict[str, Any]]:
        """The messages, their content as text.

        Raises:
            HttpError: 400 with the path of what is wrong.
        """
        return checked_messages(self.messages)


def checked_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """See `ChatRequest.conversation`."""
    return [_checked_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _checked_message(message: dict[str, Any], path: str) -> dict[str, Any]:
    role = message.get("role")
    if role is None:
        raise HttpError(400, f"{path}.role is missing", param=f"{path}.role", code="missing_parameter")
    if role not in _ROLES:
        shown = role[:40] if isinstance(role, str) else "another type"
        raise HttpError(
            400,
            f"{path}.role must be one of {', '.join(_ROLES)}, not {shown!r}",
            param=f"{path}.role",
            code="invalid_value" if isinstance(role, str) else "invalid_type",
        )
    content = message.get("content")
    if content is None:
        if role != "assistant" or not (message.get("tool_calls") or message.get("function_call")):
            raise HttpError(400, f"{path}.content is missing", param=f"{path}.content", code="missing_parameter")
        content = ""
    return {**message, "content": _as_text(content, f"{path}.content")}


def _as_text(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise HttpError(400, f"{path} must be a text or a list of parts", param=path, code="invalid_type")
    if not 0 < len(content) <= MAX_CONTENT_PARTS:
        raise HttpError(400, f"{path} must have 1 to {MAX_CONTENT_PARTS} parts", param=path, code="invalid_value")
    return "\n".join(_part_text(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part_text(part: Any, path: str) -> str:
    if not isinstance(part, dict):
        raise HttpError(400, f"{path} must be an object", param=path, code="invalid_type")
    kind = part.get("type")
    if kind not in ("text", "input_text", "output_text", "refusal"):
        shown = kind[:40] if isinstance(kind, str) else msgspec.json.encode(kind).decode()[:40]
        raise HttpError(
            400,
            f"{path}.type must be 'text', not {shown!r}: this model reads text only",
            param=f"{path}.type",
            code="missing_parameter" if kind is None else "unsupported_parameter",
        )
    field = "refusal" if kind == "refusal" else "text"
    if not isinstance(part.get(field), str):
        raise HttpError(400, f"{path}.{field} must be a text", param=f"{path}.{field}", code="invalid_type")
    text: str = part[field]
    return text
