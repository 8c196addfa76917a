"""From prompts as the user gave them to what the engine takes, and back to the text that is shown."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kilotron.cli.prompt_sources import PromptSource
from kilotron.errors import InvalidRequestError
from kilotron.sampling_params import SamplingParams

if TYPE_CHECKING:
    from kilotron.apis.llm import MegatronLLM
    from kilotron.engines.request_intake import Prompt

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class ReadyPrompt:
    """A prompt ready for the engine."""

    source: PromptSource
    prompt: "Prompt"
    """What the engine takes."""
    tokens: list[int]
    """Of the user's own text or ids."""
    text: str
    """The user's own text, or the text of the ids."""
    shown: str
    """The text as it stands before its continuation."""
    params: SamplingParams


def make_ready(
    llm: "MegatronLLM", source: PromptSource, params: SamplingParams, *, is_chat: bool = False
) -> ReadyPrompt:
    """Encodes a prompt. `params` that ask for no length get the default one, or what the context leaves if less.

    Raises:
        ChatTemplateError: it is a conversation, and the model has no template or it refuses the messages.
        InvalidRequestError: it cannot be encoded.
    """
    has_encoder = llm.engine.intake.limits.encoder is not None
    try:
        tokens = _encode(llm, source, is_chat=is_chat, add_bos=params.add_BOS)
    except InvalidRequestError as error:
        raise type(error)(f"{source.where}: {error}") from error
    if params.num_tokens_to_generate is None and params.num_tokens_total is None:
        # A prompt alone is read by the encoder, if there is one, and the decoder begins with its start token.
        is_encoded = has_encoder and source.encoder_prompt is None
        room = llm.config.max_sequence_length - (1 if is_encoded else len(tokens) + has_encoder)
        if room > 0:  # else the engine says what is wrong
            params.num_tokens_to_generate = min(max(DEFAULT_MAX_TOKENS, params.min_tokens), room)
    text = _text(llm, source, tokens)
    prompt: Prompt = tokens
    if source.encoder_prompt is not None:
        from kilotron.engines.encoder_intake import EncoderDecoderPrompt

        prompt = EncoderDecoderPrompt(source.encoder_prompt, tokens)
    is_continued = not has_encoder or source.encoder_prompt is not None
    shown = f"{text}\n" if is_chat or not is_continued else text
    return ReadyPrompt(source, prompt, tokens, text, shown, params)


@contextmanager
def naming_prompts(llm: "MegatronLLM", prompts: Sequence[ReadyPrompt]) -> Iterator[None]:
    """A refusal from within says which of the prompts is meant."""
    try:
        yield
    except InvalidRequestError:
        for prompt in prompts:
            try:
                llm.engine.build_all([prompt.prompt], prompt.params)
            except InvalidRequestError as error:
                raise type(error)(f"{prompt.source.where}: {error}") from error
        raise


def _encode(llm: "MegatronLLM", source: PromptSource, *, is_chat: bool, add_bos: bool) -> list[int]:
    from kilotron.apis.prompts import chat_prompts

    messages = source.messages
    if is_chat and isinstance(source.prompt, str):
        messages = [{"role": "user", "content": source.prompt}]
    if messages is not None:
        return list(chat_prompts(llm.tokenizer, messages, {})[0])  # type: ignore[arg-type]
    if isinstance(source.prompt, str) and source.encoder_prompt is not None and llm.tokenizer is not None:
        return llm.tokenizer.tokenize(source.prompt, add_special_tokens=False)
    if isinstance(source.prompt, str):
        return llm.controller.tokenize_prompt(source.prompt, add_BOS=add_bos)
    return list(source.prompt or ())


def _text(llm: "MegatronLLM", source: PromptSource, tokens: list[int]) -> str:
    if isinstance(source.prompt, str):
        return source.prompt
    return "" if llm.tokenizer is None else llm.tokenizer.detokenize(tokens, skip_special_tokens=False)
