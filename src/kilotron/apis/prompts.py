"""The forms in which callers give prompts, brought into one."""

from collections.abc import Mapping, Sequence
from typing import Any

from kilotron.engines.encoder_intake import EncoderDecoderPrompt
from kilotron.engines.prompt_pairs import pair_prompts
from kilotron.engines.request_intake import Prompt
from kilotron.errors import ChatTemplateError, InvalidRequestError
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import Tokenizer


def is_single_prompt(prompts: Any) -> bool:
    """Whether this is one text or one list of ids, not a list of prompts."""
    if isinstance(prompts, str | EncoderDecoderPrompt):
        return True
    if isinstance(prompts, Sequence):
        # Arrays of any shape have __index__; only those without an axis are a number.
        return bool(prompts) and hasattr(prompts[0], "__index__") and getattr(prompts[0], "ndim", 0) == 0
    # A tensor or array of ids.
    return getattr(prompts, "ndim", None) == 1


def as_prompts(prompts: Any) -> list[Prompt]:
    """A list of prompts, whatever was given.

    Raises:
        InvalidRequestError: it is neither text, ids, nor a list of them.
    """
    if is_single_prompt(prompts):
        return [prompts]
    if isinstance(prompts, bytes | Mapping) or not hasattr(prompts, "__iter__"):
        raise InvalidRequestError(f"prompts must be texts, token ids or lists of them, not {type(prompts).__name__}")
    return list(prompts)


def with_encoder_prompts(prompts: Any, encoder_prompts: Any) -> list[Prompt]:
    """The same for encoder-decoder models: what each encoder reads beside what its decoder begins with.

    Args:
        prompts: None where decoders begin with nothing.
        encoder_prompts: a text, ids or a list of them; None where `prompts` is all there is.

    Raises:
        InvalidRequestError: they are of a wrong kind, or not as many.
    """
    if encoder_prompts is None:
        return as_prompts(prompts)
    return pair_prompts([] if prompts is None else as_prompts(prompts), as_prompts(encoder_prompts))


def chat_prompts(tokenizer: Tokenizer | None, messages: Any, variables: Mapping[str, object]) -> list[Prompt]:
    """Each conversation as the token ids that its chat template makes of it.

    Raises:
        ChatTemplateError: there is no template, or it refuses the messages.
        InvalidRequestError: `messages` is not a list of messages or of such lists.
    """
    if tokenizer is None:
        raise ChatTemplateError("this engine has no tokenizer, so it has no chat template; send token ids to generate")
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise InvalidRequestError("messages must be a list of {'role': ..., 'content': ...}, or a list of such lists")
    conversations = [messages] if isinstance(messages[0], Mapping) else messages
    return [_render(tokenizer, conversation, variables) for conversation in conversations]


def scoring_params(top_n_logprobs: int) -> SamplingParams:
    """Generate nothing, return the prompt's log-probabilities."""
    return SamplingParams(
        num_tokens_to_generate=0, return_log_probs=True, top_n_logprobs=top_n_logprobs, temperature=0.0
    )


def _render(tokenizer: Tokenizer, messages: Any, variables: Mapping[str, object]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, **variables)  # type: ignore[arg-type]
    return tokenizer.tokenize(text, add_special_tokens=False)
