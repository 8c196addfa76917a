"""A finished request as the JSON object that --json prints."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kilotron.inference_request import InferenceRequest
from kilotron.tokenization import Tokenizer


def describe_request(
    request: InferenceRequest, prompt: str, prompt_id: object, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """One prompt's result; with n > 1 the continuations stand in `choices`."""
    result: dict[str, Any] = {} if prompt_id is None else {"id": prompt_id}
    result |= {"prompt": prompt, "prompt_token_ids": request.prompt_tokens}
    if request.encoder_tokens:
        result |= {"encoder_prompt": request.encoder_prompt, "encoder_token_ids": request.encoder_tokens}
    if request.prompt_log_probs is not None:
        tokens, log_probs = request.prompt_tokens[1:], request.prompt_log_probs
        result["prompt_logprobs"] = describe_tokens(tokens, log_probs, request.prompt_top_n_ids, tokenizer)
    choices = [_describe_choice(choice, tokenizer) for choice in request.choices]
    if len(choices) == 1:
        return result | choices[0]
    return result | {"choices": [{"index": index} | choice for index, choice in enumerate(choices)]}


def describe_tokens(
    token_ids: Sequence[int],
    log_probs: Sequence[float | None],
    top_n: Sequence[dict[int, float]] | None,
    tokenizer: Tokenizer | None,
) -> list[dict[str, Any]]:
    """Each token with its log-probability and, if asked, the likeliest ones in its place, likeliest first."""
    rows = []
    for index, (token_id, log_prob) in enumerate(zip(token_ids, log_probs, strict=False)):
        row = _describe_token(token_id, log_prob, tokenizer)
        if top_n is not None:
            best = sorted(top_n[index].items(), key=lambda entry: -entry[1])
            row["top"] = [_describe_token(top_id, top_log_prob, tokenizer) for top_id, top_log_prob in best]
        rows.append(row)
    return rows


def _describe_choice(choice: InferenceRequest, tokenizer: Tokenizer | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "text": choice.generated_text,
        "token_ids": choice.generated_tokens,
        "finish_reason": choice.finish_reason,
    }
    if choice.stop_reason is not None:
        result["stop_reason"] = choice.stop_reason
    if choice.generated_log_probs is not None:
        result["logprobs"] = describe_tokens(
            choice.generated_tokens, choice.generated_log_probs, choice.generated_top_n_ids, tokenizer
        )
    if choice.beams:
        result["beams"] = [asdict(beam) for beam in choice.beams]
    if choice.error is not None:
        result["error"] = {"type": type(choice.error).__name__, "message": str(choice.error)}
    timings = choice.timings
    result["timings"] = {
        "queue_s": _rounded(timings.queue_s),
        "time_to_first_token_s": _rounded(timings.ttft_s),
        "time_per_output_token_s": _rounded(choice.tpot),
        "latency_s": _rounded(timings.latency_s),
        "cached_prompt_tokens": choice.num_cached_tokens,
    }
    return result


def _describe_token(token_id: int, log_prob: float | None, tokenizer: Tokenizer | None) -> dict[str, Any]:
    text = None if tokenizer is None else tokenizer.token_text(token_id)
    return {"token": text, "id": token_id, "logprob": log_prob}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
