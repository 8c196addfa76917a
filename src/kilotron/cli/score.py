"""`kilotron score`: how likely a model finds texts, token by token."""

import math
from typing import Annotated, Any

from kilotron.cli.failures import EXIT_FAILED, UsageError, print_error
from kilotron.cli.loaded_model import LoadedModel, check_model_name, open_model
from kilotron.cli.options import (
    ENGINE,
    OUTPUT_GROUP,
    PROMPTS,
    RUN,
    EngineOptions,
    Model,
    PromptOptions,
    RunOptions,
    flag,
    switch,
)
from kilotron.cli.output import format_table, print_json
from kilotron.cli.prompt_sources import PromptSource, read_prompts
from kilotron.cli.ready_prompts import make_ready, naming_prompts

_LEAST_MEAN = -700.0  # below it a perplexity is no float


def score(
    model: Model = None,
    /,
    *,
    prompts: PromptOptions = PROMPTS,
    top: Annotated[int, flag("With --json: so many of the likeliest tokens at each place.", group=OUTPUT_GROUP)] = 0,
    json: Annotated[bool, switch("One JSON object per text.", group=OUTPUT_GROUP)] = False,
    run: RunOptions = RUN,
    engine: EngineOptions = ENGINE,
) -> int:
    """Log-probabilities and perplexity of texts.

    The first token has nothing before it, so it has no log-probability and does
    not count.

    Try:
      kilotron score -p "Once upon a time"
      kilotron score ./checkpoint --prompt-file article.txt --whole-file --json
    """
    check_model_name(model)
    sources = read_prompts(prompts, command="score")
    for source in sources:
        if source.sampling:
            raise UsageError(f"{source.where}: score takes no sampling fields ({', '.join(source.sampling)})")
    with open_model(model, engine, run) as loaded:
        return _score_all(loaded, sources, top=top, is_json=json)


def _score_all(loaded: LoadedModel, sources: list[PromptSource], *, top: int, is_json: bool) -> int:
    from kilotron.apis.prompts import scoring_params

    params = scoring_params(top)
    prompts = [make_ready(loaded.llm, source, params) for source in sources]
    with naming_prompts(loaded.llm, prompts):
        inputs = [prompt.prompt for prompt in prompts]
        requests = loaded.llm.generate(inputs, params, show_progress=loaded.run.progress)
    loaded.mark("scoring")
    exit_code = 0
    for prompt, request in zip(prompts, requests, strict=True):
        source = prompt.source
        if request.error is not None:
            print_error(f"{source.where}: {request.error}")
            exit_code = EXIT_FAILED
            continue
        result = {} if source.id is None else {"id": source.id}
        result |= {"prompt": prompt.text, "prompt_token_ids": prompt.tokens}
        result |= _describe_scores(request, loaded)
        if is_json:
            print_json(result)
        else:
            _print_table(result, heading=f"=== {source.where} ===" if len(sources) > 1 else "")
    loaded.tell_times()
    return exit_code


def _describe_scores(request: Any, loaded: LoadedModel) -> dict[str, Any]:
    from kilotron.cli.result_json import describe_tokens

    log_probs = request.prompt_log_probs
    total = math.fsum(log_probs)
    mean = total / len(log_probs) if log_probs else None
    first = describe_tokens(request.prompt_tokens[:1], [None], None, loaded.llm.tokenizer)
    rest = describe_tokens(request.prompt_tokens[1:], log_probs, request.prompt_top_n_ids, loaded.llm.tokenizer)
    return {
        "tokens": first + rest,
        "sum_logprob": total,
        "mean_logprob": mean,
        "perplexity": None if mean is None or mean < _LEAST_MEAN else math.exp(-mean),
    }


def _print_table(result: dict[str, Any], *, heading: str) -> None:
    rows = []
    for index, token in enumerate(result["tokens"]):
        log_prob = "-" if token["logprob"] is None else f"{token['logprob']:.4f}"
        text = "" if token["token"] is None else repr(token["token"])
        rows.append((index, token["id"], log_prob, text))
    if heading:
        print(heading)
    print(format_table(rows, ("place", "id", "logprob", "token"), right=(0, 1, 2)))
    if result["mean_logprob"] is None:
        print("a single token has no log-probability")
        return
    perplexity = "too large" if result["perplexity"] is None else f"{result['perplexity']:.4f}"
    print(
        f"sum {result['sum_logprob']:.4f}, mean {result['mean_logprob']:.4f} over {len(rows) - 1} tokens, "
        f"perplexity {perplexity}"
    )
