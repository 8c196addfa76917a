"""Puts an encoder's prompts and a decoder's together, as callers give them apart. Never imports torch."""

from collections.abc import Sequence

from kilotron.engines.encoder_intake import EncoderDecoderPrompt
from kilotron.engines.request_intake import Prompt
from kilotron.errors import InvalidRequestError


def pair_prompt(prompt: Prompt | None, encoder_prompt: Prompt | None) -> Prompt:
    """One prompt for an encoder-decoder model, if there is an encoder's; else what is given.

    Raises:
        InvalidRequestError: there is nothing, or one of the two is a pair already.
    """
    if encoder_prompt is None:
        if prompt is None:
            raise InvalidRequestError("there is no prompt; give a text or token ids")
        return prompt
    if isinstance(prompt, EncoderDecoderPrompt) or isinstance(encoder_prompt, EncoderDecoderPrompt):
        raise InvalidRequestError("an EncoderDecoderPrompt has its encoder_prompt already; give it as the prompt alone")
    return EncoderDecoderPrompt(encoder_prompt, prompt)


def pair_prompts(prompts: Sequence[Prompt], encoder_prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same for many. Without `prompts`, decoders begin with nothing.

    Raises:
        InvalidRequestError: they are not as many, or one is a pair already.
    """
    beginnings: Sequence[Prompt | None] = prompts or [None] * len(encoder_prompts)
    if len(beginnings) != len(encoder_prompts):
        raise InvalidRequestError(
            f"{len(encoder_prompts)} encoder_prompts for {len(beginnings)} prompts; give one for each, or no prompts"
        )
    return [pair_prompt(*pair) for pair in zip(beginnings, encoder_prompts, strict=True)]
