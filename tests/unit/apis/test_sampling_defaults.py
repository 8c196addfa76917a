"""What is taken of a checkpoint's generation_config.json when a caller says nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from kilotron import MegatronLLM, SamplingParams
from unit.cli.tiny_checkpoint import write_tiny_checkpoint

BART: dict[str, Any] = {
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "max_length": 142,
    "min_length": 56,
}


@pytest.mark.parametrize(
    ("recommended", "expected"),
    [
        ({}, SamplingParams()),
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.9}, SamplingParams(temperature=0.6, top_k=20, top_p=0.9)),
        ({"do_sample": False, "top_p": 0.9}, SamplingParams(temperature=0.0)),
        (
            {"do_sample": False, "repetition_penalty": 1.1},
            SamplingParams(temperature=0.0, repetition_penalty=1.1),
        ),
        (BART, SamplingParams(temperature=0.0)),
        (BART | {"do_sample": True, "top_k": 9}, SamplingParams(top_k=9)),
        ({"num_beams": 1}, SamplingParams()),
    ],
)
def test_a_search_or_greedy_choice_becomes_greedy_and_the_rest_is_sampled(
    recommended: dict[str, Any], expected: SamplingParams, tmp_path: Path
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(recommended), encoding="utf-8")
    with MegatronLLM(folder) as llm:
        assert llm.default_sampling_params == expected
