"""From a prompt as the user gave it to token ids, and back to the text that is shown."""

from typing import TYPE_CHECKING

from kilotron.cli.prompt_sources import PromptSource

if TYPE_CHECKING:
    from kilotron.apis.llm import MegatronLLM


def prompt_tokens(llm: "MegatronLLM", source: PromptSource, *, is_chat: bool = False, add_bos: bool = False) -> list[int]:
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


def prompt_text(llm: "MegatronLLM", source: PromptSource, tokens: list[int]) -> str:
    """What a reader sees as the prompt: the user's own text, or the text of the ids."""
    if isinstance(source.prompt, str):
        return source.prompt
    return "" if llm.tokenizer is None else llm.tokenizer.detokenize(tokens, skip_special_tokens=False)
