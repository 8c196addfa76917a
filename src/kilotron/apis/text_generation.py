"""Megatron's older text-generation functions, with its parameters and the shapes it returns, on the engines of today.

`generate` and `beam_search` give tensors; the `..._and_post_process` functions texts and lists.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from kilotron.apis.engine_parts import make_controller, wrap_model
from kilotron.contexts.static_context import StaticInferenceContext
from kilotron.engines.static_engine import StaticInferenceEngine
from kilotron.errors import ConfigError, InvalidRequestError
from kilotron.inference_request import InferenceRequest
from kilotron.models.gpt_model import GPTModel
from kilotron.sampling.random_uniform import derive_seed
from kilotron.sampling_params import MAX_BEAM_WIDTH, SamplingParams
from kilotron.tokenization import Tokenizer
from kilotron.tokenization.prompt_text import tokenize_prompt

# Of the static engine that is made for a bare model: the widest beam search has a row for each beam.
_MOST_ROWS = MAX_BEAM_WIDTH
_STOPS = {"stop_on_double_eol": "\n\n", "stop_on_eol": "\n"}


class GenerationOptions(TypedDict, total=False):
    """Parameters of `generate`, all optional; the defaults are Megatron's."""

    tokens_to_generate: int
    """0 (the default) generates nothing: the prompts are scored."""
    return_output_log_probs: bool
    top_k_sampling: int
    """0 keeps all, 1 is greedy."""
    top_p_sampling: float
    """0 keeps all. May be combined with `top_k_sampling`."""
    top_p_decay: float
    """Multiplies top-p after each token."""
    top_p_bound: float
    """The least that top-p decays to."""
    temperature: float
    add_BOS: bool
    """Put the begin-of-sequence id in front, or the end-of-sequence id where the tokenizer has no other."""
    use_eod_token_for_early_termination: bool
    """False goes on past end-of-sequence ids (Megatron computes on, and then cuts there all the same)."""
    stop_on_double_eol: bool
    """End after an empty line, as text, however the tokenizer spells it."""
    stop_on_eol: bool
    """End after a line break."""
    prevent_newline_after_colon: bool
    random_seed: int
    """-1 draws one."""
    return_topk_logprobs: int
    """Likeliest tokens listed at each place of a prompt that is scored."""


class BeamSearchOptions(TypedDict, total=False):
    """Parameters of `beam_search`."""

    tokens_to_generate: int
    """Most tokens of a continuation."""
    beam_size: int
    add_BOS: bool
    """As in `GenerationOptions`."""
    stop_token: int
    """Ends a beam, instead of the model's own end-of-sequence ids."""
    num_return_gen: int
    """How many continuations to return."""
    length_penalty: float
    """The power of the length by which sums of log-probabilities are divided."""
    prevent_newline_after_colon: bool


class TopLogProbs(NamedTuple):
    """Likeliest tokens at each place but the first; -inf and id -1 beyond a prompt's end."""

    values: Tensor
    """[prompts, longest - 1, k] float32"""
    indices: Tensor
    """[prompts, longest - 1, k] int64"""


class Generations(NamedTuple):
    """What `generate` gives. Rows are as long as the longest one."""

    tokens: Tensor
    """[prompts, longest] int64: prompt and output; the end-of-sequence id (or 0) beyond a row's end."""
    lengths: Tensor
    """[prompts] int64: prompt and output, what ended it included."""
    output_log_probs: Tensor | None
    """[prompts, longest - 1] float32: of all tokens but the first; 0 beyond a row's end. None if not asked for."""
    logprobs_topk: TopLogProbs | None


class BeamSearchResult(NamedTuple):
    """What `beam_search` gives, best first."""

    tokens: Tensor
    """[num_return_gen, longest] int64: prompt and output; the end-of-sequence id (or 0) beyond a row's end."""
    scores: Tensor
    """[num_return_gen] float32: summed log-probability over length to the power of `length_penalty`."""


def generate(
    model: Any,
    inference_context: StaticInferenceContext | None = None,
    *,
    prompts: Sequence[str],
    tokenizer: Tokenizer | None = None,
    **options: Unpack[GenerationOptions],
) -> Generations:
    """Continues prompts, or scores them with `tokens_to_generate=0`.

    Args:
        model: a `MegatronLLM`, an engine, or a `GPTModel`.
        inference_context: for a `GPTModel`: the sizes of the batch.
        prompts: the texts.
        tokenizer: for a `GPTModel`.
        **options: see `GenerationOptions`.

    Raises:
        InvalidRequestError: a prompt or an option is wrong; nothing was started.
        KilotronError: a request failed.
    """
    backend = _open(model, inference_context, tokenizer, len(prompts))
    return _as_tensors(_run(backend, prompts, options), backend.padding_id)


def generate_and_post_process(
    model: Any,
    inference_context: StaticInferenceContext | None = None,
    *,
    prompts: Sequence[str],
    tokenizer: Tokenizer | None = None,
    detokenize_segments: bool = True,
    **options: Unpack[GenerationOptions],
) -> tuple[Any, ...]:
    """The same, as texts and lists; arguments as for `generate`.

    Returns:
        Texts (prompt and output; of an encoder-decoder model the output), segments (the text of each token; none with
        `detokenize_segments=False`), log-probabilities of all tokens but the first (None if not asked for), token ids
        (padded to the longest); and with `return_topk_logprobs` a `TopLogProbs` as a fifth value.
    """
    backend = _open(model, inference_context, tokenizer, len(prompts))
    requests = _run(backend, prompts, options)
    found = _as_tensors(requests, backend.padding_id)
    texts = [_start_of_text(*pair) + pair[1].generated_text for pair in zip(prompts, requests, strict=True)]
    log_probs = None
    if found.output_log_probs is not None:
        pairs = zip(found.output_log_probs.tolist(), found.lengths.tolist(), strict=True)
        log_probs = [row[: length - 1] for row, length in pairs]
    rows = [request.prompt_tokens + request.generated_tokens for request in requests]
    segments = backend.segments(rows) if detokenize_segments else []
    result = (texts, segments, log_probs, found.tokens.tolist())
    return result if found.logprobs_topk is None else (*result, found.logprobs_topk)


def beam_search(
    model: Any,
    inference_context: StaticInferenceContext | None = None,
    *,
    prompts: Sequence[str],
    tokenizer: Tokenizer | None = None,
    **options: Unpack[BeamSearchOptions],
) -> BeamSearchResult:
    """Searches for the likeliest continuations of one prompt.

    Args:
        model: a `MegatronLLM`, an engine, or a `GPTModel`.
        inference_context: for a `GPTModel`: the sizes of the batch.
        prompts: one text, in a list.
        tokenizer: for a `GPTModel`.
        **options: see `BeamSearchOptions`; `beam_size` and `tokens_to_generate` have to be given.

    Raises:
        InvalidRequestError: there is more than one prompt, or an option is wrong.
        KilotronError: the request failed.
    """
    request, backend = _search(model, inference_context, prompts, tokenizer, options)
    rows = [request.prompt_tokens + beam.token_ids for beam in request.beams]
    scores = torch.tensor([beam.score for beam in request.beams], dtype=torch.float32)
    return BeamSearchResult(_padded(rows, backend.padding_id), scores)


def beam_search_and_post_process(
    model: Any,
    inference_context: StaticInferenceContext | None = None,
    *,
    prompts: Sequence[str],
    tokenizer: Tokenizer | None = None,
    detokenize_segments: bool = True,
    **options: Unpack[BeamSearchOptions],
) -> tuple[list[str], list[list[str]], list[float]]:
    """The same, as texts; arguments as for `beam_search`.

    Returns:
        Texts (prompt and continuation), segments (the text of each token; none with `detokenize_segments=False`) and
        scores, best first.
    """
    request, backend = _search(model, inference_context, prompts, tokenizer, options)
    texts = [_start_of_text(prompts[0], request) + beam.text for beam in request.beams]
    rows = [request.prompt_tokens + beam.token_ids for beam in request.beams]
    return texts, backend.segments(rows) if detokenize_segments else [], [beam.score for beam in request.beams]


class _Backend(NamedTuple):
    """Whatever generates, and the tokenizer that belongs to it."""

    engine: Any
    tokenizer: Tokenizer

    @property
    def padding_id(self) -> int:
        """Fills rows of tensors up."""
        return 0 if self.tokenizer.eos_id is None else self.tokenizer.eos_id

    def generate(
        self,
        prompts: Sequence[str],
        params: Sequence[SamplingParams],
        *,
        add_BOS: bool,  # noqa: N803
    ) -> list[InferenceRequest]:
        """
        Raises:
            KilotronError: a request failed.
        """
        given: list[Any] = list(prompts)
        if add_BOS and self.tokenizer.bos_id is None and self.tokenizer.eos_id is not None:
            eod = self.tokenizer.eos_id
            given = [[eod, *tokenize_prompt(self.tokenizer, prompt, add_BOS=False)] for prompt in prompts]
        elif add_BOS:
            params = [one.add_attributes({"add_BOS": True}) for one in params]
        requests: list[InferenceRequest] = self.engine.generate(given, params)
        for request in requests:
            if request.error is not None:
                raise request.error
        return requests

    def segments(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """The text of each token."""
        return [[self.tokenizer.token_text(token_id) for token_id in row] for row in rows]


def _open(model: Any, context: StaticInferenceContext | None, tokenizer: Tokenizer | None, num_rows: int) -> _Backend:
    """
    Raises:
        ConfigError: `model` is nothing that generates, or there is no tokenizer.
    """
    if isinstance(model, GPTModel):
        controller = make_controller(wrap_model(model, context), tokenizer)
        num_rows = min(max(num_rows, 1), _MOST_ROWS)
        model = StaticInferenceEngine(controller, num_rows if context is None else None)
    elif context is not None or tokenizer is not None:
        raise ConfigError("inference_context and tokenizer go with a GPTModel; a MegatronLLM or an engine has its own")
    if not hasattr(model, "generate"):
        raise ConfigError(f"model must be a MegatronLLM, an engine or a GPTModel, not {type(model).__name__}")
    held = getattr(model, "tokenizer", None) or getattr(getattr(model, "controller", None), "tokenizer", None)
    if held is None:
        raise ConfigError("these functions work on texts, and there is no tokenizer; use engine.generate for token ids")
    return _Backend(model, held)


def _search(
    model: Any,
    context: StaticInferenceContext | None,
    prompts: Sequence[str],
    tokenizer: Tokenizer | None,
    options: BeamSearchOptions,
) -> tuple[InferenceRequest, _Backend]:
    _check_texts(prompts)
    _check_names(options, BeamSearchOptions)
    if len(prompts) != 1:
        raise InvalidRequestError(f"When doing beam_search, batch size must be 1, not {len(prompts)}")
    width = options.get("beam_size", 0)
    if width < 2:
        raise InvalidRequestError(f"beam_size must be above 1, not {width}; use generate to sample one continuation")
    backend = _open(model, context, tokenizer, width)
    params = SamplingParams(
        beam_width=width,
        num_return_gen=options.get("num_return_gen", 1),
        length_penalty=options.get("length_penalty", 1.0),
        num_tokens_to_generate=options.get("tokens_to_generate", 0),
        termination_id=options.get("stop_token"),
        prevent_newline_after_colon=options.get("prevent_newline_after_colon", False),
    )
    return backend.generate(prompts, [params], add_BOS=options.get("add_BOS", False))[0], backend


def _start_of_text(prompt: str, request: InferenceRequest) -> str:
    """What an encoder reads is not continued."""
    return "" if request.encoder_tokens else prompt


def _check_texts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequestError(f"prompts must be a list of texts, not {prompts!r:.80}")


def _check_names(options: Mapping[str, Any], known: type) -> None:
    for name in options:
        if name not in known.__annotations__:
            raise InvalidRequestError(f"unknown option {name!r}; known: {', '.join(known.__annotations__)}")


def _run(backend: _Backend, prompts: Sequence[str], options: GenerationOptions) -> list[InferenceRequest]:
    """
    Raises:
        InvalidRequestError: the prompts are not a list of texts, or an option is wrong.
    """
    _check_texts(prompts)
    _check_names(options, GenerationOptions)
    params = _sampling_params(options)
    seed = options.get("random_seed", -1)
    # Each prompt has a seed of its own, so that equal prompts of a batch differ.
    every = [
        copy.copy(params).add_attributes({"seed": None if seed == -1 else derive_seed(seed, index) % 2**64})
        for index in range(len(prompts))
    ]
    return backend.generate(prompts, every, add_BOS=options.get("add_BOS", False))


def _sampling_params(options: GenerationOptions) -> SamplingParams:
    num_tokens, top_n = options.get("tokens_to_generate", 0), options.get("return_topk_logprobs", 0)
    if top_n and num_tokens:
        raise InvalidRequestError(
            f"return_topk_logprobs={top_n} is for prompts that are scored (tokens_to_generate=0); for generated tokens "
            "use engine.generate with top_n_logprobs"
        )
    stop_words = [text for name, text in _STOPS.items() if options.get(name)]
    return SamplingParams(
        num_tokens_to_generate=num_tokens,
        return_log_probs=num_tokens == 0 or options.get("return_output_log_probs", False),
        top_n_logprobs=top_n,
        top_k=options.get("top_k_sampling", 0),
        top_p=options.get("top_p_sampling", 0.0),
        top_p_decay=options.get("top_p_decay", 0.0),
        top_p_bound=options.get("top_p_bound", 0.0),
        temperature=options.get("temperature", 1.0),
        ignore_eos=not options.get("use_eod_token_for_early_termination", True),
        stop_words=stop_words,
        detokenize_stop_sequence=True,
        prevent_newline_after_colon=options.get("prevent_newline_after_colon", False),
    )


def _as_tensors(requests: Sequence[InferenceRequest], padding_id: int) -> Generations:
    rows = [request.prompt_tokens + request.generated_tokens for request in requests]
    log_probs = top = None
    if requests and requests[0].prompt_log_probs is not None:
        scores = [(request.prompt_log_probs or []) + (request.generated_log_probs or []) for request in requests]
        log_probs = _padded(scores, 0.0)
    if requests and requests[0].prompt_top_n_ids is not None:
        top = _list_top([request.prompt_top_n_ids or [] for request in requests], requests[0].sampling_params)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    return Generations(_padded(rows, padding_id), lengths, log_probs, top)


def _list_top(rows: Sequence[Sequence[dict[int, float]]], params: SamplingParams) -> TopLogProbs:
    """The prompt's own token is in each dict too, wherever it ranks; only the likeliest k are wanted."""
    shape = (len(rows), max(map(len, rows), default=0), params.top_n_logprobs)
    top = TopLogProbs(torch.full(shape, -torch.inf), torch.full(shape, -1, dtype=torch.int64))
    for index, row in enumerate(rows):
        for place, listed in enumerate(row):
            best = list(listed.items())[: params.top_n_logprobs]
            top.indices[index, place, : len(best)] = torch.tensor([token_id for token_id, _ in best])
            top.values[index, place, : len(best)] = torch.tensor([log_prob for _, log_prob in best])
    return top


def _padded(rows: Sequence[Sequence[Any]], padding: Any) -> Tensor:
    """[rows, longest]"""
    longest = max(map(len, rows), default=0)
    filled = [[*row, *[padding] * (longest - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.float32 if isinstance(padding, float) else torch.int64)
