"""Tables of a finished request that follow from its token ids: likeliest tokens by text, the text of each token."""

from kilotron.inference_request import InferenceRequest
from kilotron.tokenization.tokenizer import Tokenizer


def complete_tables(request: InferenceRequest, tokenizer: Tokenizer) -> None:
    """Fills the fields that were asked for."""
    if request.generated_top_n_ids is not None:
        request.generated_top_n_logprobs = [_by_text(top, tokenizer) for top in request.generated_top_n_ids]
    if request.prompt_top_n_ids is not None:
        request.prompt_top_n_logprobs = [_by_text(top, tokenizer) for top in request.prompt_top_n_ids]
    if request.sampling_params.return_segments:
        request.generated_segments = [tokenizer.token_text(token_id) for token_id in request.generated_tokens]


def _by_text(top_n: dict[int, float], tokenizer: Tokenizer) -> dict[str, float]:
    """Two ids may share a text; the likelier one counts."""
    result: dict[str, float] = {}
    for token_id, log_prob in top_n.items():
        text = tokenizer.token_text(token_id)
        result[text] = max(log_prob, result.get(text, log_prob))
    return result
