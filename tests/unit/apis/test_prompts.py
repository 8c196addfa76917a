"""The forms in which prompts may be given."""

from typing import Any

import numpy as np
import pytest
import torch

from fakes import make_llm
from kilotron.apis.prompts import as_prompts, is_single_prompt
from kilotron.errors import InvalidRequestError
from kilotron.sampling_params import SamplingParams

IDS = [72, 105]
SINGLE: list[Any] = ["Hi", IDS, tuple(IDS), np.array(IDS), torch.tensor(IDS), [np.int64(72), np.int32(105)]]
SINGLE += [[torch.tensor(72), torch.tensor(105)], range(72, 74)]
MANY: list[Any] = [["Hi"], [IDS], [np.array(IDS)], [torch.tensor(IDS)], np.array([IDS]), torch.tensor([IDS]), (IDS,)]


@pytest.mark.parametrize("prompts", SINGLE, ids=repr)
def test_one_prompt_is_recognized(prompts: Any) -> None:
    assert is_single_prompt(prompts)
    assert len(as_prompts(prompts)) == 1


@pytest.mark.parametrize("prompts", MANY, ids=repr)
def test_a_list_of_one_prompt_is_a_list(prompts: Any) -> None:
    assert not is_single_prompt(prompts)
    assert len(as_prompts(prompts)) == 1


@pytest.mark.parametrize("prompts", SINGLE[1:7] + MANY[1:], ids=repr)
def test_ids_are_taken_from_whatever_holds_them(prompts: Any) -> None:
    with make_llm() as llm:
        request = llm.generate(prompts, SamplingParams(num_tokens_to_generate=1))[0]
    assert request.prompt_tokens == IDS
    assert all(type(token_id) is int for token_id in request.prompt_tokens)
    assert request.prompt is None


def test_texts_and_ids_may_be_mixed_and_come_from_a_generator() -> None:
    with make_llm() as llm:
        requests = llm.generate((prompt for prompt in ("Hi", IDS)), SamplingParams(num_tokens_to_generate=1))  # type: ignore[arg-type]
    assert [request.prompt_tokens for request in requests] == [[256, *IDS], IDS]
    assert requests[0].prompt == "Hi"


@pytest.mark.parametrize("prompts", [None, 5, 2.5, {"prompt": "Hi"}])
def test_what_is_no_prompt_is_refused(prompts: Any) -> None:
    with pytest.raises(InvalidRequestError, match="prompts must be texts, token ids or lists of them"):
        as_prompts(prompts)


@pytest.mark.parametrize("prompt", [b"Hi", bytearray(b"Hi"), memoryview(b"Hi")])
def test_bytes_are_neither_text_nor_ids(prompt: Any) -> None:
    with make_llm() as llm:
        for prompts in (prompt, [prompt]):
            with pytest.raises(InvalidRequestError, match=r"not (bytes|bytearray|memoryview)"):
                llm.generate(prompts)
