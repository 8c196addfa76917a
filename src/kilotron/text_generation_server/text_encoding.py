"""Text to ids without holding up the event loop, and without beginning what cannot end well."""

import asyncio
import math
from collections.abc import Callable
from functools import partial

from kilotron.errors import InvalidRequestError
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.server_state import ServerState
from kilotron.tokenization.tokenizer import Tokenizer

# From this length on a text is worked on beside the event loop: about a millisecond's work.
LONG_TEXT_CHARS = 8192


async def read_ids(
    state: ServerState, prompt: str | list[int], place: str, *, add_special_tokens: bool, is_cut: bool = False
) -> list[int]:
    """The ids of a prompt, which may be ids already; see `encode_text`.

    Raises:
        HttpError: 400; it is a text that cannot be encoded, or too long.
    """
    if not isinstance(prompt, str):
        return list(prompt)
    if state.tokenizer is None:
        raise HttpError(400, "this model has no tokenizer; send token ids", param=place, code="invalid_type")
    encode = partial(state.tokenizer.tokenize, add_special_tokens=add_special_tokens)
    return await encode_text(state, prompt, encode, place=place, is_cut=is_cut)


def check_ids(state: ServerState, ids: list[int], place: str) -> None:
    """Whether a prompt has tokens, and only such as the model knows.

    Raises:
        HttpError: 400 naming field and id.
    """
    if not ids:
        raise HttpError(400, f"{place} is empty; give at least one token", param=place, code="invalid_value")
    last = state.facts.vocab_size - 1
    for token_id in (min(ids), max(ids)):
        if not 0 <= token_id <= last:
            message = f"{place}: token id {token_id} is outside the vocabulary (0 to {last})"
            raise HttpError(400, message, param=place, code="invalid_value")


async def encode_text(
    state: ServerState, text: str, encode: Callable[[str], list[int]], *, place: str, is_cut: bool = False
) -> list[int]:
    """The ids of a text.

    Args:
        state: the server's.
        text: any text.
        encode: makes ids of it.
        place: the field it came in, for errors.
        is_cut: it will be shortened, so that no length is too much.

    Raises:
        HttpError: 400; the tokenizer cannot read it, or it is longer than the context could ever be. That is found out
            without tokenizing it, which would take seconds.
    """
    try:
        if len(text) < LONG_TEXT_CHARS:
            return encode(text)
        if not is_cut:
            await check_length(state, len(text), place)
        return await asyncio.to_thread(encode, text)
    except InvalidRequestError as error:
        raise HttpError(400, f"{place}: {error}", param=place, code="invalid_value") from None


async def check_length(state: ServerState, num_chars: int, place: str) -> None:
    """Whether so many characters could fit into the context, if all tokens were of the longest kind.

    Raises:
        HttpError: 400 naming both numbers of tokens.
    """
    if num_chars < LONG_TEXT_CHARS or state.tokenizer is None:
        return
    if state.longest_token_chars is None:
        state.longest_token_chars = await asyncio.to_thread(_count_longest_token, state.tokenizer)
    longest = state.facts.max_sequence_length
    if num_chars > longest * state.longest_token_chars:
        least = math.ceil(num_chars / state.longest_token_chars)
        raise HttpError(
            400,
            f"This model's maximum context length is {longest} tokens, but your prompt of {num_chars} characters has "
            f"at least {least} tokens. Shorten the prompt.",
            param=place,
            code="context_length_exceeded",
        )


def _count_longest_token(tokenizer: Tokenizer) -> int:
    return max((len(tokenizer.token_text(token_id)) for token_id in range(tokenizer.vocab_size)), default=1) or 1
