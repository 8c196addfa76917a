"""The body of /v1/completions."""

from typing import Annotated, Any

from msgspec import Meta

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.sampling_fields import NumLogprobs, SamplingFields

MAX_PROMPTS = 256
MAX_CHOICES_OF_CALL = 1024
DEFAULT_MAX_TOKENS = 16

_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
# At the members of the union, since msgspec's own "anyOf" would replace one beside it.
_Text = Annotated[str, Meta(extra_json_schema={"minLength": 1})]
_EncoderText = Annotated[
    _Text,
    Meta(
        description="What an encoder reads, in the forms of prompt and one for each; decoders then begin with prompt."
    ),
]
_Prompts = Annotated[
    list[Any],
    Meta(
        extra_json_schema={
            "minItems": 1,
            "anyOf": [
                {"items": _TEXT, "maxItems": MAX_PROMPTS},
                {"items": _IDS["items"]},
                {"items": _IDS, "maxItems": MAX_PROMPTS},
            ],
        }
    ),
]


class CompletionRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's fields and vLLM's; docs/http-api.md has them all."""

    prompt: _Text | _Prompts
    encoder_prompt: _EncoderText | _Prompts | None = None
    echo: bool | None = None
    logprobs: NumLogprobs | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or ids.

        Raises:
            HttpError: 400; they are neither, or too many.
        """
        return _split(self.prompt, "prompt")

    @property
    def encoder_prompts(self) -> list[str | list[int]] | None:
        """What encoders read, one for each prompt; None where the prompts are all there is.

        Raises:
            HttpError: 400; they are neither texts nor ids, or not as many as prompts.
        """
        if self.encoder_prompt is None:
            return None
        found = _split(self.encoder_prompt, "encoder_prompt")
        num_prompts = len(self.prompts)
        if len(found) != num_prompts:
            raise HttpError(
                400,
                f"encoder_prompt holds {len(found)} prompts and prompt {num_prompts}; give one for each",
                param="encoder_prompt",
                code="invalid_value",
            )
        return found

    def check_together(self) -> None:
        """See `SamplingFields`."""
        super().check_together()
        _ = self.encoder_prompts
        num_prompts, num_sequences = len(self.prompts), max(self.num_choices, self.beam_width)
        if num_prompts * num_sequences > MAX_CHOICES_OF_CALL:
            name, things = ("best_of", "beams") if num_sequences > self.num_choices else ("n", "choices")
            message = f"{num_prompts} prompts with {name}={num_sequences} are more than {MAX_CHOICES_OF_CALL} {things}"
            raise HttpError(400, message, param=name, code="invalid_value")
        if self.max_tokens == 0 and not (self.echo or self.prompt_logprobs is not None):
            raise HttpError(
                400, "max_tokens: must be at least 1 unless echo is true", param="max_tokens", code="invalid_value"
            )


def _split(prompt: Any, field: str) -> list[str | list[int]]:
    """A text, ids, or a list of either, as a list."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise _wrong(field, f"{field} is an empty list; give a text or at least one token id")
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [prompt]
    if len(prompt) > MAX_PROMPTS:
        raise _wrong(field, f"{field} holds {len(prompt)} prompts, more than {MAX_PROMPTS}")
    if kinds == {str}:
        return list(prompt)
    for index, ids in enumerate(prompt):
        if not isinstance(ids, list) or set(map(type, ids)) != {int}:
            raise HttpError(
                400,
                f"{field} must be a text, a list of texts, a list of token ids or a list of such lists",
                param=f"{field}[{index}]",
                code="invalid_value" if ids == [] else "invalid_type",
            )
    return list(prompt)


def _wrong(field: str, message: str) -> HttpError:
    return HttpError(400, message, param=field, code="invalid_value")
