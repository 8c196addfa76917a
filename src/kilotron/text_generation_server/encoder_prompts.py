"""The two prompts of an encoder-decoder model: what its encoder reads and what its decoder begins with, as ids."""

from functools import partial
from typing import Any

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.server_state import ServerState
from kilotron.text_generation_server.text_encoding import encode_text


async def read_encoder_prompt(
    state: ServerState, prompt: Any, place: str, *, add_special_tokens: bool, truncate_to: int | None = None
) -> list[int]:
    """What the encoder reads.

    Args:
        state: the server's.
        prompt: text or ids.
        place: the field it came in, for errors.
        add_special_tokens: whether a text gets the model's, such as the end of sequence that T5 was trained with.
        truncate_to: keep so many of the last tokens; -1: as many as the encoder takes.

    Raises:
        HttpError: 400; there is no encoder, or the prompt is empty, too long or of unknown ids.
    """
    longest = state.facts.max_encoder_length
    if not longest:
        message = "this model has no encoder; leave encoder_prompt out"
        raise HttpError(400, message, param="encoder_prompt", code="invalid_value")
    ids = await _ids_of(state, prompt, place, add_special_tokens=add_special_tokens, is_cut=truncate_to is not None)
    if truncate_to is not None:
        ids = ids[-longest:] if truncate_to == -1 else ids[-truncate_to:] if truncate_to else []
    _check(state, ids, place, "give at least one token")
    if len(ids) > longest:
        message = f"{place} has {len(ids)} tokens, but this model's encoder takes {longest}. Shorten it."
        raise HttpError(400, message, param=place, code="context_length_exceeded")
    return ids


async def begin_decoder(state: ServerState, prompt: Any, place: str) -> list[int]:
    """What the decoder begins with, without its start; empty for nothing.

    Raises:
        HttpError: 400; the prompt has unknown ids.
    """
    if not prompt:
        return []
    ids = await _ids_of(state, prompt, place, add_special_tokens=False)
    _check(state, ids, place, "leave it out or give at least one token")
    return ids


async def _ids_of(
    state: ServerState, prompt: Any, place: str, *, add_special_tokens: bool, is_cut: bool = False
) -> list[int]:
    if not isinstance(prompt, str):
        return list(prompt)
    if state.tokenizer is None:
        raise HttpError(400, "this model has no tokenizer; send token ids", param=place, code="invalid_type")
    encode = partial(state.tokenizer.tokenize, add_special_tokens=add_special_tokens)
    return await encode_text(state, prompt, encode, place=place, is_cut=is_cut)


def _check(state: ServerState, ids: list[int], place: str, remedy: str) -> None:
    if not ids:
        raise HttpError(400, f"{place} is empty; {remedy}", param=place, code="invalid_value")
    last = state.facts.vocab_size - 1
    for token_id in (min(ids), max(ids)):
        if not 0 <= token_id <= last:
            message = f"{place}: token id {token_id} is outside the vocabulary (0 to {last})"
            raise HttpError(400, message, param=place, code="invalid_value")
