"""The two prompts of an encoder-decoder model: what its encoder reads and what its decoder begins with, as ids."""

from typing import Any

from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.server_state import ServerState
from kilotron.text_generation_server.text_encoding import check_ids, read_ids


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
    ids = await read_ids(state, prompt, place, add_special_tokens=add_special_tokens, is_cut=truncate_to is not None)
    if truncate_to is not None:
        ids = ids[-longest:] if truncate_to == -1 else ids[-truncate_to:] if truncate_to else []
    check_ids(state, ids, place)
    if len(ids) > longest:
        message = f"{place} has {len(ids)} tokens, but this model's encoder takes {longest}. Shorten it."
        raise HttpError(400, message, param=place, code="context_length_exceeded")
    return ids


async def begin_decoder(state: ServerState, prompt: Any, place: str) -> list[int]:
    """What the decoder begins with, without its start; empty for nothing.

    Raises:
        HttpError: 400; the prompt has unknown ids.
    """
    ids = await read_ids(state, prompt, place, add_special_tokens=False)
    if ids:
        check_ids(state, ids, place)
    return ids
