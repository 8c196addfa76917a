"""SamplingParams: what a caller asks of one request, checked when it is built.

Megatron's field names are the canonical ones; vLLM's spellings are accepted as aliases. Knows nothing of tensors:
what the fields do to logits is in `sampling/`, when generation stops is in `text_generation_controllers/`.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from typing import Any, Literal, Self

from kilotron.errors import SamplingParamsError

# Attribute names of Megatron's `add_attributes` examples and of other engines -> our field.
_ATTRIBUTE_ALIASES = {
    "min_length": "min_tokens",
    "eod_id": "termination_id",
    "max_tokens": "num_tokens_to_generate",
    "max_new_tokens": "num_tokens_to_generate",
    "stop": "stop_words",
}
MAX_CHOICES = 1024
MAX_BEAM_WIDTH = 64
MAX_BEAM_STOP_IDS = 16
MAX_STOP_WORDS = 64
MAX_STOP_WORD_CHARS = 1024
MAX_TOP_N_LOGPROBS = 1000
MAX_TOKEN_LIST = 100_000


@dataclass(kw_only=True)
class SamplingParams:
    """How to continue a prompt. Every field is checked at construction.

    Megatron's names are canonical. Accepted aliases at construction: `max_tokens` for `num_tokens_to_generate`, `stop`
    for `stop_words`, `logprobs=k` for `return_log_probs=True, top_n_logprobs=k` of generated tokens only, and
    `prompt_logprobs=k` for the same of prompt tokens too. To vary params, `copy.copy(params).add_attributes({...})`
    (`dataclasses.replace` hands the old value of an alias back in).

    Raises:
        SamplingParamsError: a field has the wrong type or lies outside its range; the message names field, value
            and range.

    Example:
        >>> SamplingParams(temperature=0.7, top_p=0.9, num_tokens_to_generate=64, seed=1).is_greedy
        False
    """

    temperature: float = 1.0
    """Divides the logits; 0 is greedy. Range [0, 100]."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 and -1 mean all."""
    top_p: float = 0.0
    """Keep the smallest set of most likely tokens whose mass reaches p; 0 and 1 mean all."""
    top_p_decay: float = 0.0
    """Multiplies `top_p` after each generated token; 0 and 1 leave it. Range [0, 1]."""
    top_p_bound: float = 0.0
    """With `top_p_decay`: the least that `top_p` becomes; at most `top_p`."""
    min_p: float = 0.0
    """Drop tokens less likely than `min_p` times the most likely one. Range [0, 1]."""
    num_tokens_to_generate: int | None = None
    """Most tokens to generate; None means up to the context length."""
    num_tokens_total: int | None = None
    """Prompt plus generated tokens; excludes `num_tokens_to_generate`."""
    min_tokens: int = 0
    """End-of-sequence and stop ids are forbidden until so many tokens were generated."""
    termination_id: int | None = None
    """Ends generation instead of the model's own end-of-sequence ids; -1 means none does."""
    stop_token_ids: Sequence[int] = ()
    """Further ids that end generation."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence ids."""
    stop_words: Sequence[str] = ()
    """Texts that end generation; matched on text, across token boundaries."""
    detokenize_stop_sequence: bool = False
    """Keep the stop text (or the text of the ending token) in the result."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    return_log_probs: bool = False
    """Return the log-probability of each generated and, unless skipped, each prompt token but the first."""
    skip_prompt_log_probs: bool = False
    """With `return_log_probs`: leave out the prompt's."""
    top_n_logprobs: int = 0
    """Return the n most likely tokens at each place as well (and the chosen one, wherever it ranks)."""
    return_prompt_tokens: bool = True
    """Carry `prompt_tokens` in the result; otherwise the list is empty once the request has ended."""
    return_segments: bool = False
    """Return the text of each generated token in `generated_segments`."""
    add_BOS: bool = False  # noqa: N815 - Megatron's spelling
    """Put the begin-of-sequence id in front of a text prompt that does not start with it."""
    streaming: bool = False
    """The caller reads the result as it grows."""
    streaming_interval: int = 1
    """Tokens between two stream items."""
    n: int = 1
    """Number of independent continuations; they share the prompt's KV blocks."""
    seed: int | None = None
    """Same seed, same params, same prompt: same tokens. None draws one."""
    presence_penalty: float = 0.0
    """Subtracted from logits of tokens already generated. Range [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted per earlier occurrence among the generated tokens. Range [-2, 2]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or output. Range (0, 100]."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> value added to its logit. Values in [-100, 100]."""
    bad_words: Sequence[str] = ()
    """Texts whose token sequences must not be generated."""
    prevent_newline_after_colon: bool = False
    """No token that begins with a line break may follow one that ends with a colon."""
    allowed_token_ids: Sequence[int] | None = None
    """Only these ids may be generated."""
    beam_width: int = 1
    """Above 1: beam search with so many beams, which draws nothing; temperature, top_k, top_p, min_p and seed then mean
    nothing."""
    length_penalty: float = 1.0
    """A beam's score is its summed log-probability over its length to this power; 0 is the sum, above 1 favours long
    ones."""
    early_stopping: bool | Literal["never"] = False
    """When beam search ends, once `beam_width` beams are finished: True at once, False when the best live beam, scored
    at its present length, is no better than the worst of them, "never" when it cannot become better either."""
    num_return_gen: int = 1
    """Best beams to return; at most `beam_width`."""
    num_beam_groups: int = 1
    """Groups that search side by side and avoid each other's tokens; must divide `beam_width`."""
    diversity_penalty: float = 0.0
    """With groups: taken off a token's score for each beam of an earlier group that takes it at the same place."""
    priority: int = 0
    """Lower runs first."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What `add_attributes` was given that is not a field; for controllers of your own."""
    max_tokens: InitVar[int | None] = None
    stop: InitVar[str | Sequence[str] | None] = None
    logprobs: InitVar[int | None] = None
    prompt_logprobs: InitVar[int | None] = None

    def __post_init__(
        self,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        logprobs: int | None,
        prompt_logprobs: int | None,
    ) -> None:
        if max_tokens is not None:
            self._accept_alias("max_tokens", "num_tokens_to_generate", max_tokens, unset=None)
        if stop is not None:
            self._accept_alias("stop", "stop_words", stop, unset=())
        if logprobs is not None or prompt_logprobs is not None:
            self._accept_logprobs(logprobs, prompt_logprobs)
        self._normalize()
        self._check()

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def is_beam_search(self) -> bool:
        """Whether the continuation is searched for, not drawn token by token."""
        return self.beam_width > 1

    @property
    def wants_prompt_log_probs(self) -> bool:
        """Whether the prompt's own log-probabilities are part of the result."""
        return self.return_log_probs and not self.skip_prompt_log_probs

    def add_attributes(self, attributes: Mapping[str, Any]) -> Self:
        """Sets fields by name, as Megatron does; what is no field is kept in `attributes`.

        `min_length` and `eod_id` of Megatron's documentation set `min_tokens` and `termination_id`.

        Raises:
            SamplingParamsError: a field's new value is out of range; no field was changed then.
        """
        known = {f.name for f in fields(self)}
        resolved = {_ATTRIBUTE_ALIASES.get(name, name): value for name, value in attributes.items()}
        before = dict(self.__dict__)
        try:
            logprobs, prompt_logprobs = resolved.pop("logprobs", None), resolved.pop("prompt_logprobs", None)
            for name, value in resolved.items():
                if name in known:
                    setattr(self, name, value)
            if logprobs is not None or prompt_logprobs is not None:
                self._accept_logprobs(logprobs, prompt_logprobs)
            self._normalize()
            self._check()
        except SamplingParamsError:
            self.__dict__.update(before)
            raise
        self.attributes = self.attributes | {k: v for k, v in resolved.items() if k not in known}
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds from a mapping of field or alias names.

        Raises:
            SamplingParamsError: a name is unknown (the message offers the nearest one) or a value is out of range.
        """
        known = {f.name for f in fields(cls)} | {"max_tokens", "stop", "logprobs", "prompt_logprobs"}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), sorted(known), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
                raise SamplingParamsError(f"unknown sampling field {name!r}{hint}")
        return cls(**values)

    def _accept_alias(self, alias: str, name: str, value: Any, unset: Any) -> None:
        if getattr(self, name) != unset and getattr(self, name) != value:
            raise SamplingParamsError(
                f"{alias}={_shorten(value)} is an alias of {name}={_shorten(getattr(self, name))}; give one of them"
            )
        setattr(self, name, value)

    def _accept_logprobs(self, logprobs: int | None, prompt_logprobs: int | None) -> None:
        _check_int("top_n_logprobs", self.top_n_logprobs, 0, MAX_TOP_N_LOGPROBS)
        for name, value in (("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)):
            if value is not None:
                _check_int(name, value, 0, MAX_TOP_N_LOGPROBS)
        self.return_log_probs = True
        self.skip_prompt_log_probs = prompt_logprobs is None
        self.top_n_logprobs = max(self.top_n_logprobs, logprobs or 0, prompt_logprobs or 0)

    def _normalize(self) -> None:
        if isinstance(self.stop_words, str):
            self.stop_words = (self.stop_words,)
        if isinstance(self.bad_words, str):
            self.bad_words = (self.bad_words,)
        for name in ("stop_words", "bad_words", "stop_token_ids", "allowed_token_ids"):
            value = getattr(self, name)
            if value is None and name != "allowed_token_ids":
                setattr(self, name, ())
            elif isinstance(value, Sequence | set | frozenset) and not isinstance(value, tuple | bytes):
                setattr(self, name, tuple(value))
        if self.logit_bias is None:
            self.logit_bias = {}
        if self.top_k == -1:
            self.top_k = 0

    def _check(self) -> None:
        self._check_numbers()
        self._check_lengths()
        self._check_texts()
        self._check_token_lists()
        self._check_beams()
        for name in _BOOLEANS:
            if not isinstance(getattr(self, name), bool):
                raise SamplingParamsError(f"{name} must be True or False, not {_shorten(getattr(self, name))}")
        if not isinstance(self.attributes, dict):
            raise SamplingParamsError(f"attributes must be a dict, not {_shorten(self.attributes)}")

    def _check_numbers(self) -> None:
        for name, low, high in _FLOAT_RANGES:
            _check_float(name, getattr(self, name), low, high)
        for name, least, most in _INT_RANGES:
            _check_int(name, getattr(self, name), least, most)
        for name in ("top_p_decay", "top_p_bound"):
            if getattr(self, name) and not self.top_p:
                raise SamplingParamsError(f"{name}={getattr(self, name)} needs top_p")
        if self.top_p_bound > self.top_p:
            raise SamplingParamsError(f"top_p_bound={self.top_p_bound} exceeds top_p={self.top_p}")

    def _check_lengths(self) -> None:
        if self.num_tokens_to_generate is not None:
            _check_int("num_tokens_to_generate", self.num_tokens_to_generate, 0, 2**31)
        if self.num_tokens_total is not None:
            _check_int("num_tokens_total", self.num_tokens_total, 1, 2**31)
            if self.num_tokens_to_generate is not None:
                raise SamplingParamsError(
                    f"num_tokens_total={self.num_tokens_total} and num_tokens_to_generate="
                    f"{self.num_tokens_to_generate} exclude each other; give one of them"
                )
        if self.num_tokens_to_generate is not None and self.min_tokens > self.num_tokens_to_generate:
            raise SamplingParamsError(
                f"min_tokens={self.min_tokens} exceeds num_tokens_to_generate={self.num_tokens_to_generate}"
            )
        if self.termination_id is not None:
            _check_int("termination_id", self.termination_id, -1, 2**31)
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**64 - 1)
        if self.top_n_logprobs and not self.return_log_probs:
            raise SamplingParamsError(f"top_n_logprobs={self.top_n_logprobs} needs return_log_probs=True")

    def _check_beams(self) -> None:
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise SamplingParamsError(
                f'early_stopping must be True, False or "never", not {_shorten(self.early_stopping)}'
            )
        if self.num_return_gen > self.beam_width:
            raise SamplingParamsError(f"num_return_gen={self.num_return_gen} exceeds beam_width={self.beam_width}")
        if self.beam_width % self.num_beam_groups:
            raise SamplingParamsError(
                f"num_beam_groups={self.num_beam_groups} does not divide beam_width={self.beam_width}"
            )
        if self.diversity_penalty and self.num_beam_groups == 1:
            raise SamplingParamsError(f"diversity_penalty={self.diversity_penalty} needs num_beam_groups above 1")
        if self.is_beam_search:
            self._check_beam_company()

    def _check_beam_company(self) -> None:
        """What cannot be had together with beam search."""
        beams = f"beam_width={self.beam_width}"
        if self.n != 1:
            raise SamplingParamsError(
                f"{beams} gives one search, not n={self.n}; use num_return_gen for its best beams"
            )
        if self.streaming:
            raise SamplingParamsError(f"{beams} cannot stream: which beam is best is known only at the end")
        if self.stop_words:
            raise SamplingParamsError(f"{beams} does not look for stop_words; end beams by stop_token_ids")
        if len(self.stop_token_ids) > MAX_BEAM_STOP_IDS:
            raise SamplingParamsError(
                f"{beams} takes at most {MAX_BEAM_STOP_IDS} stop_token_ids, not {len(self.stop_token_ids)}"
            )
        if self.top_n_logprobs:
            raise SamplingParamsError(f"{beams} does not list top_n_logprobs={self.top_n_logprobs} tokens; use 0")
        if self.num_tokens_to_generate == 0:
            raise SamplingParamsError(f"{beams} needs something to search for: num_tokens_to_generate is 0")

    def _check_texts(self) -> None:
        for name in ("stop_words", "bad_words"):
            words = getattr(self, name)
            if not isinstance(words, tuple) or len(words) > MAX_STOP_WORDS:
                raise SamplingParamsError(f"{name} must be at most {MAX_STOP_WORDS} texts, not {_shorten(words)}")
            for word in words:
                if not isinstance(word, str) or not 0 < len(word) <= MAX_STOP_WORD_CHARS:
                    raise SamplingParamsError(
                        f"{name} must hold texts of 1 to {MAX_STOP_WORD_CHARS} characters, not {_shorten(word)}"
                    )

    def _check_token_lists(self) -> None:
        for name in ("stop_token_ids", "allowed_token_ids"):
            ids = getattr(self, name)
            if ids is None:
                continue
            if not isinstance(ids, tuple) or len(ids) > MAX_TOKEN_LIST:
                raise SamplingParamsError(f"{name} must be a list of at most {MAX_TOKEN_LIST} ids, not {_shorten(ids)}")
            for token_id in ids:
                _check_int(f"{name} entry", token_id, 0, 2**31)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise SamplingParamsError("allowed_token_ids is empty, so no token could be generated; use None for all")
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_TOKEN_LIST:
            raise SamplingParamsError(f"logit_bias must map token ids to numbers, not {_shorten(self.logit_bias)}")
        for token_id, value in self.logit_bias.items():
            _check_int("logit_bias key", token_id, 0, 2**31)
            _check_float(f"logit_bias[{token_id}]", value, -100.0, 100.0)


def _property_of(name: str) -> Callable[[SamplingParams], Any]:
    return lambda params: getattr(params, name)


# The aliases read as well as they write. (Set afterwards: a dataclass takes a property for an InitVar's default.)
for _alias, _name in (("max_tokens", "num_tokens_to_generate"), ("stop", "stop_words")):
    setattr(SamplingParams, _alias, property(_property_of(_name)))

CommonInferenceParams = SamplingParams

_FLOAT_RANGES = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("top_p_decay", 0.0, 1.0),
    ("top_p_bound", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.001, 100.0),  # logits are divided by it, and must stay finite
    ("length_penalty", -10.0, 10.0),
    ("diversity_penalty", 0.0, 1000.0),
)
_INT_RANGES = (
    ("top_k", 0, 2**31),
    ("min_tokens", 0, 2**31),
    ("top_n_logprobs", 0, MAX_TOP_N_LOGPROBS),
    ("streaming_interval", 1, 2**31),
    ("n", 1, MAX_CHOICES),
    ("beam_width", 1, MAX_BEAM_WIDTH),
    ("num_return_gen", 1, MAX_BEAM_WIDTH),
    ("num_beam_groups", 1, MAX_BEAM_WIDTH),
    ("priority", -(2**31), 2**31),
)
_BOOLEANS = (
    "return_log_probs",
    "skip_prompt_log_probs",
    "detokenize_stop_sequence",
    "skip_special_tokens",
    "return_prompt_tokens",
    "return_segments",
    "add_BOS",
    "streaming",
    "ignore_eos",
    "prevent_newline_after_colon",
)


def _check_float(name: str, value: Any, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise SamplingParamsError(f"{name} must be a number in [{low:g}, {high:g}], not {_shorten(value)}")


def _check_int(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SamplingParamsError(f"{name} must be a whole number in [{low}, {high}], not {_shorten(value)}")


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python prints neither integers of thousands of digits nor lists nested as deep.
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= 80 else text[:77] + "..."
