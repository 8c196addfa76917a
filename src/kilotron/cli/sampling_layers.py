"""Sampling fields from several places, later ones winning: the model's defaults, the flags, a line of a file."""

from collections.abc import Mapping
from typing import Any

from kilotron.sampling_params import SamplingParams

_ALIASES = {"max_tokens": "num_tokens_to_generate", "stop": "stop_words"}
_LENGTHS = {"num_tokens_to_generate", "num_tokens_total"}


def merge_sampling(defaults: SamplingParams, *layers: Mapping[str, Any]) -> SamplingParams:
    """One SamplingParams of all.

    Raises:
        SamplingParamsError: the values contradict each other.
    """
    plain = vars(SamplingParams())
    values = {name: value for name, value in vars(defaults).items() if value != plain[name]}
    for layer in layers:
        named = {_ALIASES.get(name, name): value for name, value in layer.items()}
        if _LENGTHS & named.keys():
            values = {name: value for name, value in values.items() if name not in _LENGTHS}
        values |= named
    return SamplingParams.from_dict(values)
