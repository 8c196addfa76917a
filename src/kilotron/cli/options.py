"""The flags that several commands share, as dataclasses: how to run the engine, how to sample, where prompts are.

Fields of `EngineOptions` and `SamplingOptions` are those of `InferenceConfig` and `SamplingParams`, by the same names;
values are checked there. Flags that people know from other engines are aliases.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from kilotron.config import InferenceConfig
from kilotron.sampling_params import SamplingParams

PROMPT_GROUP = Group("Prompts", sort_key=1)
OUTPUT_GROUP = Group("Output", sort_key=2)
_SERVER = Group("Server", sort_key=2)
_SAMPLING = Group("Sampling (else as the model's generation_config.json says)", sort_key=3)
_BEAMS = Group("Beam search", sort_key=4)
_ENGINE = Group("Engine", sort_key=5)

_DEFAULTS = InferenceConfig()


def _whole(kind: Any, value: str, **_: Any) -> list[str]:
    return [value]


# For flags whose value is text: an environment variable is one text, blanks and all, and "-" and "-5" are texts too.
TEXT: dict[str, Any] = {"env_var_split": _whole, "allow_leading_hyphen": True}


def flag(help: str, *names: str, **options: Any) -> Parameter:  # noqa: A002 - cyclopts' word
    """A flag; `names` replace the one made of the field's name."""
    return Parameter(name=names or None, help=help, **options)


def many(help: str, *names: str, **options: Any) -> Parameter:  # noqa: A002 - cyclopts' word
    """A flag that may be given again and again, each time with one value."""
    return flag(help + " May be repeated.", *names, negative=(), show_default=False, json_list=False, **options)


def switch(help: str, *names: str, **options: Any) -> Parameter:  # noqa: A002 - cyclopts' word
    """A flag without a value and without an opposite."""
    return flag(help, *names, negative=(), show_default=False, **options)


Model = Annotated[
    str | None,
    Parameter(
        help="Checkpoint folder (Hugging Face's or Megatron's) or Hugging Face id. Omitted: the tiny model that comes "
        "with kilotron."
    ),
]


@Parameter(name="*", group=OUTPUT_GROUP)
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the command talks to the user."""

    verbose: Annotated[bool, switch("Tell what was decided and why, and where the time went.", "--verbose", "-v")] = (
        False
    )
    progress: Annotated[bool | None, flag("Show progress bars; by default on a terminal.")] = None
    config: Annotated[
        Path | None, flag("File with flags: keys for all commands, tables such as [generate] for one.")
    ] = None


@Parameter(name="*", group=PROMPT_GROUP)
@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Where prompts come from."""

    prompt: Annotated[Sequence[str], many("A prompt; - reads standard input.", "--prompt", "-p", **TEXT)] = ()
    prompt_file: Annotated[
        Path | None,
        flag(
            'A prompt per line, or .jsonl with {"prompt": ...}, {"prompt_token_ids": [...]} or {"messages": [...]}, '
            'and per line "id", "encoder_prompt" and sampling fields; - reads standard input.',
            "--prompt-file",
            "-f",
            allow_leading_hyphen=True,
        ),
    ] = None
    whole_file: Annotated[bool, switch("The file is one prompt, newlines and all.")] = False
    prompt_ids: Annotated[Sequence[str], many('A prompt as token ids: "1,2,3".', **TEXT)] = ()
    encoder_prompt: Annotated[
        Sequence[str],
        many(
            "What the encoder of a model such as T5 reads: one for each --prompt, which the answer then continues, or "
            "alone. Without it the encoder reads the --prompt.",
            **TEXT,
        ),
    ] = ()


@Parameter(name="*", group=_SERVER)
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """A server that speaks OpenAI's protocol, instead of a model here. A key never stands on a command line."""

    url: Annotated[str | None, flag("Let this server answer: http://localhost:8000, with or without /v1.")] = None
    api_key_file: Annotated[
        Path | None, flag("File with the server's key; by default KILOTRON_API_KEY, else OPENAI_API_KEY.")
    ] = None


@Parameter(name="*", group=_SAMPLING)
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Fields of SamplingParams; None leaves the model's default."""

    num_tokens_to_generate: Annotated[
        int | None, flag("Most tokens to generate.", "--max-tokens", "--num-tokens-to-generate")
    ] = None
    min_tokens: Annotated[int | None, flag("No end before so many tokens.")] = None
    temperature: Annotated[
        float | None, flag("0 takes the likeliest token each time; 1 samples as the model says.")
    ] = None
    top_p: Annotated[float | None, flag("Sample from the likeliest tokens that make up this share.")] = None
    top_k: Annotated[int | None, flag("Sample from the k likeliest tokens; 0 is all.")] = None
    min_p: Annotated[float | None, flag("Drop tokens below this share of the likeliest one's.")] = None
    stop_words: Annotated[Sequence[str] | None, many("Text that ends the answer.", "--stop", **TEXT)] = None
    stop_token_ids: Annotated[Sequence[int] | None, many("Token id that ends the answer.", "--stop-token-id")] = None
    ignore_eos: Annotated[bool | None, switch("Go on past the model's end of text.")] = None
    seed: Annotated[int | None, flag("Same seed, same answer.")] = None
    n: Annotated[int | None, flag("Independent continuations of each prompt.", "--n", "--num-continuations")] = None
    presence_penalty: Annotated[float | None, flag("Subtracted from tokens that occurred, -2 to 2.")] = None
    frequency_penalty: Annotated[float | None, flag("Subtracted per occurrence, -2 to 2.")] = None
    repetition_penalty: Annotated[float | None, flag("Above 1 avoids tokens of prompt and answer.")] = None
    bad_words: Annotated[Sequence[str] | None, many("Text that is never generated.", "--bad-word", **TEXT)] = None
    add_BOS: Annotated[bool | None, switch("Begin the prompt with the begin-of-text token.", "--add-bos")] = None  # noqa: N815
    logprobs: Annotated[
        int | None, flag("With --json: log-probability of each token, and of so many likeliest ones.")
    ] = None

    def given(self, beams: "BeamOptions | None" = None) -> dict[str, Any]:
        """What was asked for, here and of beam search, as fields of SamplingParams.

        Raises:
            SamplingParamsError: a value is out of range.
        """
        values = {name: value for name, value in asdict(self).items() if value is not None}
        if beams is not None:
            values |= beams.given()
        SamplingParams(**values)  # the model has not been loaded yet: a mistake is told at once
        return values


@Parameter(name="*", group=_BEAMS)
@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """Fields of SamplingParams that only beam search has."""

    beam_width: Annotated[int | None, flag("Search with so many beams instead of sampling.")] = None
    length_penalty: Annotated[
        float | None, flag("A beam's log-probability is divided by its length to this power; 0 is the plain sum.")
    ] = None
    early_stopping: Annotated[
        Literal["true", "false", "never"] | None,
        flag("End as soon as enough beams are finished; never: only when no beam can become better."),
    ] = None
    num_return_gen: Annotated[int | None, flag("Best beams to show.")] = None
    num_beam_groups: Annotated[int | None, flag("Groups of beams that avoid each other's tokens.")] = None
    diversity_penalty: Annotated[float | None, flag("How much a token costs that an earlier group took.")] = None

    def given(self) -> dict[str, Any]:
        """What was asked for, as fields of SamplingParams."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        if self.early_stopping in ("true", "false"):
            values["early_stopping"] = self.early_stopping == "true"
        return values


@Parameter(name="*", group=_ENGINE)
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Fields of InferenceConfig, and the tokenizer."""

    tokenizer: Annotated[
        str | None,
        flag("Folder or file of the tokenizer, or null:N (N ids, each a number); by default the checkpoint's."),
    ] = None
    dtype: Annotated[str, flag("auto (the checkpoint's), float32, bfloat16 or float16.")] = _DEFAULTS.dtype
    kv_cache_dtype: Annotated[
        str, flag("Type of the KV cache: auto (that of the activations), or int8 for twice as many tokens.")
    ] = _DEFAULTS.kv_cache_dtype
    quantization: Annotated[str | None, flag("Quantize the weights of a plain checkpoint: int8 or int4.")] = (
        _DEFAULTS.quantization
    )
    quantization_group_size: Annotated[
        int | None, flag("With int4, columns that share a scale: 32, 64 or 128; by default 64.")
    ] = _DEFAULTS.quantization_group_size
    weight_cache: Annotated[
        str, flag("Packed weights for the next start: auto (use them), write (make them too) or off.")
    ] = _DEFAULTS.weight_cache
    device: Annotated[str, flag("auto, cpu, or a torch device name.")] = _DEFAULTS.device
    kernels: Annotated[str, flag("Kernel backend; kilotron env lists them.")] = _DEFAULTS.kernels
    num_threads: Annotated[int | None, flag("CPU threads; by default torch's choice, 1 for the bundled model.")] = (
        _DEFAULTS.num_threads
    )
    max_sequence_length: Annotated[
        int | None,
        flag("Most tokens of prompt plus answer; by default the model's.", "--max-sequence-length", "--max-model-len"),
    ] = _DEFAULTS.max_sequence_length
    max_requests: Annotated[int, flag("Most requests that run at once.", "--max-requests", "--max-num-seqs")] = (
        _DEFAULTS.max_requests
    )
    max_tokens: Annotated[
        int | None,
        flag(
            "Most tokens in one step (InferenceConfig.max_tokens); longer prompts go in chunks.",
            "--max-num-batched-tokens",
        ),
    ] = _DEFAULTS.max_tokens
    buffer_size_gb: Annotated[
        float | None, flag("Size of the KV cache in GiB; by default as needed.", "--buffer-size-gb")
    ] = _DEFAULTS.buffer_size_gb
    block_size_tokens: Annotated[int, flag("Tokens in a KV-cache block.", "--block-size", "--block-size-tokens")] = (
        _DEFAULTS.block_size_tokens
    )
    enable_prefix_caching: Annotated[bool, flag("Requests that start alike share what was computed.")] = (
        _DEFAULTS.enable_prefix_caching
    )
    enable_chunked_prefill: Annotated[bool, flag("Split long prompts over steps.")] = _DEFAULTS.enable_chunked_prefill
    random_seed: Annotated[int | None, flag("Seeds the seeds of requests that bring none.")] = _DEFAULTS.random_seed

    profile: Annotated[
        str | None, flag("Write a Chrome trace of all steps and operations to this file, and a summary to stderr.")
    ] = _DEFAULTS.profile

    def changed(self) -> list[str]:
        """The flags that are not at their defaults."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value != getattr(ENGINE, name)]

    def to_config(self) -> InferenceConfig:
        """The engine's options.

        Raises:
            ConfigError: a value is out of range.
        """
        return InferenceConfig(**{name: value for name, value in asdict(self).items() if name != "tokenizer"})


RUN = RunOptions()
PROMPTS = PromptOptions()
SERVER = ServerOptions()
SAMPLING = SamplingOptions()
BEAMS = BeamOptions()
ENGINE = EngineOptions()
