"""Sampling fields from several places, later ones winning: the model's defaults, the flags, a line of a file."""

from collections.abc import Mapping
from typing import Any

from kilotron.sampling_params import SamplingParams

# Names people type -> fields.
ALIASES = {"max_tokens": "num_tokens_to_generate", "stop": "stop_words"}
_LENGTHS = {"num_tokens_to_generate", "num_tokens_total"}


def merge_sampling(defaults: SamplingParams, *layers: Mapping[str, Any]) -> SamplingParams:
    """One SamplingParams of all.

    Raises:
        SamplingParamsError: the values contradict each other.
    """
    values = _changed(defaults)
    for layer in layers:
        named = {ALIASES.get(name, name): value for name, value in layer.items()}
        if _LENGTHS & named.keys():
            values = {name: value for name, value in values.items() if name not in _LENGTHS}
        values |= named
    return SamplingParams.from_dict(values)


def describe_sampling(params: SamplingParams) -> str:
    """The fields that differ from plain sampling, for people."""
    changed = _changed(params)
    return ", ".join(f"{name}={value!r}" for name, value in changed.items()) or "none, so temperature=1.0"


def _changed(params: SamplingParams) -> dict[str, Any]:
    plain = vars(SamplingParams())
    return {name: value for name, value in vars(params).items() if value != plain[name]}
