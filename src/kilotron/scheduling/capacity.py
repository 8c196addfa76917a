"""Whether a request could ever run: a question of numbers, asked in a front end as well as in the scheduler."""

from kilotron.errors import RequestNeverFitsError
from kilotron.inference_request import InferenceRequest
from kilotron.scheduling.step_planner import SchedulerLimits


def most_generated(num_prompt: int, beam_width: int, block_size: int, num_blocks: int) -> int:
    """How many tokens a request can generate in an empty cache; below 1 if it does not fit at all."""
    if beam_width == 1:
        num_own = num_blocks - 1
    else:
        num_shared = num_prompt // block_size
        num_own = num_shared + (num_blocks - 1 - num_shared) // beam_width
    # The last token generated is never computed.
    return num_own * block_size - num_prompt + 1


def check_capacity(request: InferenceRequest, limits: SchedulerLimits, num_blocks: int) -> None:
    """Says at once when a request can never run, however empty the engine is.

    Args:
        request: checked in all other respects.
        limits: the scheduler's.
        num_blocks: blocks of the KV cache, the null block included.

    Raises:
        RequestNeverFitsError: it needs more blocks, or a longer chunk, than there are.
    """
    # The last token generated is never computed.
    num_positions = request.prompt_length + max(request.max_generated - 1, 0)
    num_needed = -(-num_positions // limits.block_size)
    width = request.sampling_params.beam_width
    if width > 1:
        # Beams share the full blocks of the prompt at least; each is left one block to go on with.
        num_shared = request.prompt_length // limits.block_size
        num_needed = num_shared + width * max(num_needed - num_shared, 1)
    num_encoded = len(request.encoder_tokens)
    num_needed += -(-num_encoded // limits.block_size)
    if num_needed > num_blocks - 1:
        tokens = f"{num_positions + num_encoded} tokens" + (f" for {width} beams" if width > 1 else "")
        remedy = "fewer tokens or beams" if width > 1 else "fewer tokens"
        raise RequestNeverFitsError(
            f"request {request.request_id} may need {num_needed} KV blocks ({tokens}) but the cache has "
            f"{num_blocks - 1}; ask for {remedy} or raise buffer_size_gb"
        )
    if width > limits.max_requests:
        raise RequestNeverFitsError(
            f"request {request.request_id} has beam_width={width}, but only max_requests={limits.max_requests} "
            "sequences run at once; ask for fewer beams or raise max_requests"
        )
    if num_encoded and num_encoded >= limits.max_tokens:
        raise RequestNeverFitsError(
            f"request {request.request_id} has {num_encoded} encoder tokens, which are computed in one step together "
            f"with a decoder token, more than max_tokens={limits.max_tokens}; shorten it or raise max_tokens"
        )
    num_prompt = request.prompt_length + num_encoded
    if not limits.enable_chunked_prefill and num_prompt > limits.max_tokens:
        raise RequestNeverFitsError(
            f"request {request.request_id} has {num_prompt} prompt tokens, more than max_tokens="
            f"{limits.max_tokens}; enable chunked prefill or raise max_tokens"
        )
    is_scored_at_once = request.sampling_params.wants_prompt_log_probs and not limits.enable_chunked_prefill
    if is_scored_at_once and request.prompt_length > limits.max_logits_tokens:
        raise RequestNeverFitsError(
            f"request {request.request_id} wants log-probabilities of {request.prompt_length} prompt tokens, more "
            f"than max_logits_tokens={limits.max_logits_tokens}; enable chunked prefill or raise max_logits_tokens"
        )
