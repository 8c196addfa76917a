"""EncoderDecoderPrompt and EncoderLimits: an encoder-decoder model's two prompts, and what the model allows of them.

Never imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kilotron.errors import EmptyPromptError, InvalidRequestError, PromptTooLongError
from kilotron.inference_request import InferenceRequest


@dataclass(frozen=True, slots=True)
class EncoderDecoderPrompt:
    """What an encoder reads, and what its decoder begins with. A model without an encoder refuses it."""

    encoder_prompt: str | Sequence[int]
    prompt: str | Sequence[int] | None = None
    """None or empty: the decoder begins with its start token alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLimits:
    """What an encoder-decoder model and its engine allow besides."""

    max_encoder_length: int
    """Tokens of one encoder input."""
    decoder_start_token_id: int | None
    """What a decoder begins with that is given nothing; None where that is not known."""
    has_fixed_start: bool = True
    """Whether it also comes in front of what a decoder is given."""

    def check_length(self, encoder_tokens: list[int]) -> None:
        """
        Raises:
            EmptyPromptError: there is nothing to read.
            PromptTooLongError: there is too much.
        """
        if not encoder_tokens:
            raise EmptyPromptError("the encoder's prompt is empty; give at least one token")
        if len(encoder_tokens) > self.max_encoder_length:
            raise PromptTooLongError(
                f"the encoder's prompt has {len(encoder_tokens)} tokens, but the engine takes "
                f"{self.max_encoder_length}; shorten it"
            )

    def decoder_tokens(self, given: list[int]) -> list[int]:
        """The decoder's tokens, with its start.

        Raises:
            EmptyPromptError: it is given nothing, and nobody knows what it starts with.
        """
        start = self.decoder_start_token_id
        if given and (not self.has_fixed_start or given[0] == start):
            return given
        if start is None:
            raise EmptyPromptError(
                "this checkpoint does not say what its decoder begins with; give that as prompt, and what the encoder "
                "is to read as encoder_prompt"
            )
        return [start, *given]


def check_encoder_tokens(request: InferenceRequest, limits: EncoderLimits | None) -> None:
    """Whether a request that was built elsewhere has an encoder input exactly where the model reads one.

    Raises:
        InvalidRequestError: it has not.
    """
    if limits is not None:
        limits.check_length(request.encoder_tokens)
    elif request.encoder_tokens:
        raise InvalidRequestError("this model has no encoder; leave encoder_prompt out")


def split_prompt(prompt: Any, limits: EncoderLimits | None, *, scores_prompt: bool) -> tuple[Any, Any]:
    """-> what the decoder gets, None for nothing, and what the encoder reads, None without an encoder.

    A prompt alone is the encoder's, as in transformers.

    Raises:
        InvalidRequestError: there is no encoder; or the decoder's tokens are to be scored, and there are none.
    """
    is_split = isinstance(prompt, EncoderDecoderPrompt)
    if limits is None:
        if is_split:
            raise InvalidRequestError("this model has no encoder; leave encoder_prompt out")
        return prompt, None
    decoder_prompt, encoder_prompt = (prompt.prompt, prompt.encoder_prompt) if is_split else (None, prompt)
    if decoder_prompt is not None and hasattr(decoder_prompt, "__len__") and len(decoder_prompt) == 0:
        decoder_prompt = None
    if decoder_prompt is None and scores_prompt:
        raise InvalidRequestError(
            "log-probabilities of a prompt are those of the decoder's; give the text to score as prompt, and what the "
            "encoder is to read as encoder_prompt"
        )
    return decoder_prompt, encoder_prompt
