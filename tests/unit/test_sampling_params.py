"""SamplingParams: every range, the aliases, add_attributes and from_dict."""

import copy
import sys
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilotron.errors import SamplingParamsError
from kilotron.sampling_params import MAX_STOP_WORDS, CommonInferenceParams, SamplingParams

FIELDS = [field.name for field in fields(SamplingParams)]
ALIASES = ["max_tokens", "stop", "logprobs", "prompt_logprobs"]

# field, lowest and highest good value, a bad one on each side
FLOAT_RANGES = [
    ("temperature", 0, 100, -0.01, 100.1),
    ("top_p", 0, 1, -0.01, 1.01),
    ("min_p", 0, 1, -0.01, 1.01),
    ("presence_penalty", -2, 2, -2.1, 2.1),
    ("frequency_penalty", -2, 2, -2.1, 2.1),
    ("repetition_penalty", 0.001, 100, 0, 100.1),
    ("length_penalty", -10, 10, -10.1, 10.1),
]
INT_RANGES = [
    ("top_k", -1, 2**31, -2, 2**31 + 1),
    ("num_tokens_to_generate", 0, 2**31, -1, 2**31 + 1),
    ("num_tokens_total", 1, 2**31, 0, 2**31 + 1),
    ("min_tokens", 0, 2**31, -1, 2**31 + 1),
    ("termination_id", -1, 2**31, -2, 2**31 + 1),
    ("streaming_interval", 1, 2**31, 0, 2**31 + 1),
    ("n", 1, 1024, 0, 1025),
    ("beam_width", 1, 64, 0, 65),
    ("seed", -(2**63), 2**64 - 1, -(2**63) - 1, 2**64),
    ("priority", -(2**31), 2**31, -(2**31) - 1, 2**31 + 1),
]
BOOLEANS = [
    field.name
    for field in fields(SamplingParams)
    if isinstance(field.default, bool) and field.name != "early_stopping"  # it may be "never", too
]
NOT_NUMBERS = ["1", None, True, [1], float("nan"), float("inf"), -float("inf"), 10**400, b"1", 1j]

# By name, because hypothesis cannot print the largest of them either.
ODDITIES: dict[str, Any] = {
    "hundreds of digits": 10**400,
    "thousands of digits": 10**5000,
    "below zero": -(10**5000),
    "long text": "x" * 5000,
    "half a character": "\ud800",
    "range": range(3),
    "bytearray": bytearray(b"ab"),
    "class": object,
}

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from(sorted(ODDITIES)).map(lambda name: ODDITIES[name]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner, max_size=3)
        | st.sets(st.integers() | st.text(max_size=2), max_size=3)
    ),
    max_leaves=6,
)


def nested_list(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


@pytest.mark.parametrize(("name", "low", "high", "below", "above"), FLOAT_RANGES + INT_RANGES)
def test_range_ends_are_accepted_and_beyond_is_refused(
    name: str, low: float, high: float, below: float, above: float
) -> None:
    for good in (low, high):
        SamplingParams(**{name: good})
    for bad in (below, above):
        with pytest.raises(SamplingParamsError, match=rf"^{name} must be .*, not {bad}$"):
            SamplingParams(**{name: bad})


@pytest.mark.parametrize("name", [name for name, *_ in FLOAT_RANGES + INT_RANGES])
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda value: repr(value)[:12])
def test_what_is_no_number_in_range_is_refused_by_the_fields_name(name: str, value: Any) -> None:
    if value is None and name in {"num_tokens_to_generate", "num_tokens_total", "termination_id", "seed"}:
        assert getattr(SamplingParams(**{name: value}), name) is None
        return
    with pytest.raises(SamplingParamsError, match=rf"^{name} must be a .*number in \["):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("name", BOOLEANS)
@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_switches_are_true_or_false_and_nothing_else(name: str, value: Any) -> None:
    with pytest.raises(SamplingParamsError, match=f"^{name} must be True or False, not {value!r}$"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("name", ["stop_words", "bad_words"])
def test_words_are_texts_of_bounded_number_and_length(name: str) -> None:
    SamplingParams(**{name: ["x" * 1024] * MAX_STOP_WORDS})
    for bad in ([""], ["x" * 1025], ["x"] * (MAX_STOP_WORDS + 1), [5], 5, b"ab", {"a": 1}):
        with pytest.raises(SamplingParamsError, match=f"^{name} must "):
            SamplingParams(**{name: bad})


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids"])
def test_id_lists_hold_ids(name: str) -> None:
    assert getattr(SamplingParams(**{name: {7}}), name) == (7,)
    for bad in ([-1], [1.0], ["1"], [True], [2**31 + 1], "12", 5):
        with pytest.raises(SamplingParamsError, match=f"^{name} (entry )?must "):
            SamplingParams(**{name: bad})


def test_no_allowed_token_at_all_is_refused() -> None:
    with pytest.raises(SamplingParamsError, match="allowed_token_ids is empty, so no token could be generated"):
        SamplingParams(allowed_token_ids=[])


def test_logit_bias_maps_ids_to_values_in_range() -> None:
    SamplingParams(logit_bias={0: -100, 5: 100.0})
    with pytest.raises(SamplingParamsError, match=r"^logit_bias\[3\] must be a number in \[-100, 100\], not 101$"):
        SamplingParams(logit_bias={3: 101})
    with pytest.raises(SamplingParamsError, match=r"^logit_bias key must be a whole number"):
        SamplingParams(logit_bias={"3": 1})  # type: ignore[dict-item]
    with pytest.raises(SamplingParamsError, match=r"^logit_bias must map"):
        SamplingParams(logit_bias=[(3, 1)])  # type: ignore[arg-type]


def test_contradictions_are_named_with_both_values() -> None:
    with pytest.raises(SamplingParamsError, match="num_tokens_total=9 and num_tokens_to_generate=5 exclude each other"):
        SamplingParams(num_tokens_total=9, num_tokens_to_generate=5)
    with pytest.raises(SamplingParamsError, match="min_tokens=6 exceeds num_tokens_to_generate=5"):
        SamplingParams(min_tokens=6, num_tokens_to_generate=5)
    with pytest.raises(SamplingParamsError, match="top_n_logprobs=3 needs return_log_probs=True"):
        SamplingParams(top_n_logprobs=3)


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"max_tokens": 5}, "num_tokens_to_generate", 5),
        ({"stop": "end"}, "stop_words", ("end",)),
        ({"stop": ["a", "b"]}, "stop_words", ("a", "b")),
        ({"stop_words": "end"}, "stop_words", ("end",)),
        ({"stop_words": None}, "stop_words", ()),
        ({"logit_bias": None}, "logit_bias", {}),
        ({"top_k": -1}, "top_k", 0),
    ],
)
def test_other_spellings_mean_the_same(given: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(SamplingParams(**given), name) == value


def test_aliases_can_be_read() -> None:
    params = SamplingParams(num_tokens_to_generate=5, stop_words=["x"])
    assert (params.max_tokens, params.stop) == (5, ("x",))


def test_alias_and_name_with_different_values_are_refused() -> None:
    with pytest.raises(SamplingParamsError, match="max_tokens=5 is an alias of num_tokens_to_generate=6"):
        SamplingParams(max_tokens=5, num_tokens_to_generate=6)


def test_logprobs_asks_for_generated_tokens_only_and_prompt_logprobs_for_all() -> None:
    generated, prompt = SamplingParams(logprobs=0), SamplingParams(prompt_logprobs=3)
    assert (generated.return_log_probs, generated.wants_prompt_log_probs, generated.top_n_logprobs) == (True, False, 0)
    assert (prompt.return_log_probs, prompt.wants_prompt_log_probs, prompt.top_n_logprobs) == (True, True, 3)


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("value", [-1, 1001, True, "3"])
def test_logprobs_out_of_range_are_refused_by_their_own_name(name: str, value: Any) -> None:
    with pytest.raises(SamplingParamsError, match=rf"^{name} must be a whole number in \[0, 1000\]"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("given", "is_greedy"), [({}, False), ({"temperature": 0}, True), ({"top_k": 1}, True), ({"top_p": 0}, False)]
)
def test_greedy_is_temperature_zero_or_a_single_candidate(given: dict[str, Any], is_greedy: bool) -> None:
    assert SamplingParams(**given).is_greedy == is_greedy


def test_megatrons_name_is_the_same_class() -> None:
    assert CommonInferenceParams is SamplingParams


def test_add_attributes_sets_fields_and_keeps_the_rest() -> None:
    params = SamplingParams().add_attributes({"min_length": 3, "eod_id": 9, "max_new_tokens": 8, "mine": "x"})
    assert (params.min_tokens, params.termination_id, params.num_tokens_to_generate) == (3, 9, 8)
    assert params.attributes == {"mine": "x"}


def test_add_attributes_understands_logprobs() -> None:
    params = SamplingParams().add_attributes({"logprobs": 2})
    assert (params.return_log_probs, params.skip_prompt_log_probs, params.top_n_logprobs) == (True, True, 2)
    assert params.attributes == {}


@pytest.mark.parametrize("bad", [{"top_k": -7}, {"attributes": 5}, {"temperature": 10**5000}, {"logprobs": -1}])
def test_add_attributes_changes_all_or_nothing(bad: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0.5, attributes={"mine": 1})
    before = copy.deepcopy(params)
    with pytest.raises(SamplingParamsError):
        params.add_attributes({"temperature": 0.9, "return_log_probs": True, "yours": 2, **bad})
    assert params == before


def test_add_attributes_does_not_reach_a_copy() -> None:
    params = SamplingParams(attributes={"mine": 1})
    copied = copy.copy(params)
    params.add_attributes({"yours": 2})
    assert copied.attributes == {"mine": 1}


def test_unknown_field_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(SamplingParamsError, match="unknown sampling field 'min_token'; did you mean 'min_tokens'"):
        SamplingParams.from_dict({"min_token": 1})


def test_field_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(SamplingParamsError, match="unknown sampling field 'zzz'; known: add_BOS, allowed_token_ids"):
        SamplingParams.from_dict({"zzz": 1})


def test_field_that_is_no_text_is_unknown() -> None:
    with pytest.raises(SamplingParamsError, match="unknown sampling field 5"):
        SamplingParams.from_dict({5: 1})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", FIELDS)
def test_default_of_every_field_is_accepted(name: str) -> None:
    default = getattr(SamplingParams(), name)
    assert getattr(SamplingParams.from_dict({name: default}), name) == default


@pytest.mark.parametrize("name", FIELDS + ALIASES)
@pytest.mark.parametrize("oddity", ODDITIES)
def test_value_too_large_to_print_is_refused_in_few_words(name: str, oddity: str) -> None:
    assert len(complaint_about({name: ODDITIES[oddity]})) < 1000


def test_value_nested_too_deeply_to_print_is_refused_in_few_words() -> None:
    nested = nested_list(sys.getrecursionlimit() + 10)
    assert complaint_about({"logit_bias": nested}) == (
        "logit_bias must map token ids to numbers, not a list too large to print"
    )


@settings(derandomize=True, deadline=None, max_examples=1000)
@given(name=st.sampled_from(FIELDS + ALIASES), value=junk)
def test_any_value_is_taken_or_refused_with_our_own_error(name: str, value: Any) -> None:
    for values in ({name: value}, {"logprobs": 1, name: value}):
        assert len(complaint_about(values)) < 1000


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(FIELDS + ALIASES), junk, max_size=4))
def test_any_mapping_is_taken_or_refused_with_our_own_error(values: dict[str, Any]) -> None:
    assert len(complaint_about(values)) < 1000


def complaint_about(values: dict[str, Any]) -> str:
    """What is said against these values, by both ways in; nothing if they are accepted."""
    complaint = ""
    for build in (SamplingParams.from_dict, SamplingParams().add_attributes):
        try:
            assert isinstance(build(values), SamplingParams)
        except SamplingParamsError as error:
            complaint = str(error) if len(str(error)) > len(complaint) else complaint
    return complaint
