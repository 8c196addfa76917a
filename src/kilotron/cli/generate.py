"""`kilotron generate`: continues one prompt or many."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from kilotron.cli.failures import EXIT_FAILED, print_error
from kilotron.cli.loaded_model import LoadedModel, check_model_name, open_model
from kilotron.cli.options import (
    ENGINE,
    OUTPUT_GROUP,
    PROMPT_GROUP,
    PROMPTS,
    RUN,
    SAMPLING,
    EngineOptions,
    Model,
    PromptOptions,
    RunOptions,
    SamplingOptions,
    flag,
    switch,
)
from kilotron.cli.output import dim, print_json
from kilotron.cli.prompt_sources import PromptSource, read_prompts
from kilotron.errors import SamplingParamsError

if TYPE_CHECKING:
    from kilotron.inference_request import InferenceRequest
    from kilotron.sampling_params import SamplingParams


def generate(
    model: Model = None,
    /,
    *,
    prompts: PromptOptions = PROMPTS,
    chat: Annotated[
        bool, switch("Each prompt is what a user says: write it with the model's chat template.", group=PROMPT_GROUP)
    ] = False,
    json: Annotated[
        bool, switch("One JSON object per prompt: text, token ids, finish reason, timings.", group=OUTPUT_GROUP)
    ] = False,
    echo: Annotated[bool, flag("Print the prompt before its continuation.", group=OUTPUT_GROUP)] = True,
    sampling: SamplingOptions = SAMPLING,
    run: RunOptions = RUN,
    engine: EngineOptions = ENGINE,
) -> int:
    """Continue one prompt or many.

    One prompt is written as it is generated; several run together and are
    written in order. Without --max-tokens an answer has 256 tokens at most.

    Try:
      kilotron generate -p "Once upon a time"
      kilotron generate ./checkpoint -p "The sky is" -p "The sea is" --json
      kilotron generate ./checkpoint --temperature 0 --max-tokens 9 -p "2 + 2 ="
      kilotron generate Qwen/Qwen3-0.6B --prompt-file in.jsonl --json > out.jsonl
      cat story.txt | kilotron generate ./checkpoint
    """
    check_model_name(model)
    sources = read_prompts(prompts, command="generate")
    asked = sampling.given()
    with open_model(model, engine, run) as loaded:
        jobs = [_prepare(loaded, source, asked, is_chat=chat) for source in sources]
        if len(jobs) == 1 and not json and jobs[0].params.n == 1:
            _stream(loaded, jobs[0], echo=echo)
            return 0
        return _generate_all(loaded, jobs, is_json=json, echo=echo)


@dataclass(frozen=True)
class _Job:
    """A prompt ready for the engine."""

    source: PromptSource
    tokens: list[int]
    text: str
    params: "SamplingParams"


def _prepare(loaded: LoadedModel, source: PromptSource, asked: dict[str, object], *, is_chat: bool) -> _Job:
    from kilotron.cli.prompt_tokens import checked_tokens, prompt_text

    try:
        params = loaded.sampling_params(asked, source.sampling)
    except SamplingParamsError as error:
        raise SamplingParamsError(f"{source.where}: {error}") from error
    tokens = checked_tokens(loaded.llm, source, params, is_chat=is_chat)
    return _Job(source, tokens, prompt_text(loaded.llm, source, tokens), params)


def _stream(loaded: LoadedModel, job: _Job, *, echo: bool) -> None:
    out = sys.stdout
    if echo:
        out.write(dim(job.text, out))
        out.flush()
    try:
        for item in loaded.llm.generate_stream(job.tokens, job.params):
            loaded.mark("first token")
            out.write(item.text)
            out.flush()
        loaded.mark("the rest")
    finally:
        out.write("\n")
        out.flush()
    loaded.tell_times()


def _generate_all(loaded: LoadedModel, jobs: list[_Job], *, is_json: bool, echo: bool) -> int:
    requests = loaded.llm.generate(
        [job.tokens for job in jobs], [job.params for job in jobs], show_progress=loaded.run.progress
    )
    loaded.mark("generation")
    failures = 0
    for index, (job, request) in enumerate(zip(jobs, requests, strict=True), start=1):
        if is_json:
            from kilotron.cli.result_json import describe_request

            print_json(
                describe_request(request, prompt=job.text, prompt_id=job.source.id, tokenizer=loaded.llm.tokenizer)
            )
        else:
            _print_text(job, request, heading=f"{index} of {len(jobs)}", echo=echo)
        for choice in request.choices:
            if choice.error is not None:
                failures += 1
                print_error(f"{job.source.where}: {choice.error}")
    loaded.tell_times()
    return EXIT_FAILED if failures else 0


def _print_text(job: _Job, request: "InferenceRequest", *, heading: str, echo: bool) -> None:
    for choice in request.choices:
        of_many = f", continuation {choice.choice_index + 1} of {job.params.n}" if job.params.n > 1 else ""
        print(f"=== prompt {heading}{of_many} ===")
        print((dim(job.text, sys.stdout) if echo else "") + choice.generated_text)
