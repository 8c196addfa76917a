"""From a prompt as the user gave it to token ids, and back to the text that is shown."""

from typing import TYPE_CHECKING

from kilotron.cli.prompt_sources import PromptSource
from kilotron.errors import InvalidRequestError
from kilotron.sampling_params import SamplingParams

if TYPE_CHECKING:
    from kilotron.apis.llm import MegatronLLM

DEFAULT_MAX_TOKENS = 256


def prompt_tokens(
    llm: "MegatronLLM", source: PromptSource, *, is_chat: bool = False, add_bos: bool = False
) -> list[int]:
    """The ids the engine gets.

    Raises:
        ChatTemplateError: messages, and the model has no template or it refuses them.
        InvalidRequestError: the prompt cannot be encoded.
    """
    from kilotron.apis.prompts import chat_prompts

    messages = source.messages
    if is_chat and isinstance(source.prompt, str):
        messages = [{"role": "user", "content": source.prompt}]
    if messages is not None:
        return list(chat_prompts(llm.tokenizer, messages, {})[0])  # type: ignore[arg-type]
    if isinstance(source.prompt, str):
        return llm.controller.tokenize_prompt(source.prompt, add_BOS=add_bos)
    return list(source.prompt or ())


def checked_tokens(
    llm: "MegatronLLM", source: PromptSource, params: SamplingParams, *, is_chat: bool = False
) -> list[int]:
    """The ids, after the engine has agreed to them; without a length asked for, `params` get the default one.

    Raises:
        InvalidRequestError: (or one of its kinds) the engine refuses; says which prompt it is.
    """
    try:
        tokens = prompt_tokens(llm, source, is_chat=is_chat, add_bos=params.add_BOS)
        if params.num_tokens_to_generate is None and params.num_tokens_total is None:
            room = llm.config.max_sequence_length - len(tokens)
            if room > 0:  # else the engine says what is wrong
                params.num_tokens_to_generate = min(max(DEFAULT_MAX_TOKENS, params.min_tokens), room)
        llm.engine.build_all([tokens], params)
    except InvalidRequestError as error:
        raise type(error)(f"{source.where}: {error}") from error
    return tokens


def prompt_text(llm: "MegatronLLM", source: PromptSource, tokens: list[int]) -> str:
    """What a reader sees as the prompt: the user's own text, or the text of the ids."""
    if isinstance(source.prompt, str):
        return source.prompt
    return "" if llm.tokenizer is None else llm.tokenizer.detokenize(tokens, skip_special_tokens=False)
