"""What Megatron-Bridge writes beside the weights says the same as Megatron's own arguments."""

from pathlib import Path

import pytest
import torch

from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.megatron_run_config import read_run_config
from kilotron.errors import BrokenCheckpointError
from unit.checkpoints.written_megatron import model_tensors, stacked, write_dist

LLAMA = """
model:
  _target_: megatron.bridge.models.llama.llama_provider.Llama31ModelProvider
  activation_func: {_call_: false, _target_: torch.nn.functional.silu}
  attention_backend: {_args_: [5], _call_: true, _target_: megatron.core.transformer.enums.AttnBackend}
  gated_linear_unit: true
  num_layers: 16
  num_query_groups: 8
  params_dtype: {_call_: false, _target_: torch.bfloat16}
  scale_factor: 32.0
  seq_length: 131072
  share_embeddings_and_output_weights: true
  window_size: null
tokenizer: {tokenizer_type: HuggingFaceTokenizer, tokenizer_model: meta-llama/Llama-3.2-1B, vocab_file: null}
train: {train_iters: 10}
"""


def config_of(folder: Path, text: str) -> dict[str, object]:
    (folder / "run_config.yaml").write_text(text)
    return read_run_config(folder / "run_config.yaml")


def test_fields_have_the_names_of_megatrons_arguments(tmp_path: Path) -> None:
    config = config_of(tmp_path, LLAMA)
    expected = {
        "activation_func": "silu", "attention_backend": "AttnBackend(5)", "params_dtype": "bfloat16", "num_layers": 16,
        "swiglu": True, "quick_geglu": False, "squared_relu": False, "untie_embeddings_and_output_weights": False,
        "group_query_attention": True, "max_position_embeddings": 131072, "window_size": None,
        "use_rope_scaling": True, "rope_scaling_factor": 32.0, "tokenizer_type": "HuggingFaceTokenizer",
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert "train_iters" not in config


@pytest.mark.parametrize(
    "text",
    [
        "", "model: 5", "model: {}", "- 1", "model: [", "a: !!python/object/apply:os.system ['touch canary']",
        "model: {num_layers: &a [*a]}", "x: 2026-99-99", "\x00", "a: &a [x]\nb: *nothing",
    ],
)  # fmt: skip
def test_what_is_no_run_config_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BrokenCheckpointError, match=r"run_config\.yaml: expected "):
        config_of(tmp_path, text)


def test_values_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9)]
    with pytest.raises(BrokenCheckpointError, match="more than 200000 of them"):
        config_of(tmp_path, "model:\n  num_layers: 1\n" + "".join(f"  {line}\n" for line in lines))


def test_a_checkpoint_without_arguments_takes_the_run_config(tmp_path: Path) -> None:
    folder = write_dist(tmp_path / "iter_0000005", stacked(model_tensors()), has_common_file=True)
    torch.save({"iteration": 5}, folder / "common.pt")
    (folder / "run_config.yaml").write_text(LLAMA)
    assert MegatronCheckpoint.open(tmp_path).args["num_query_groups"] == 8


def test_nemo_gets_a_remedy(tmp_path: Path) -> None:
    folder = write_dist(tmp_path / "weights", stacked(model_tensors()), has_common_file=True)
    torch.save({}, folder / "common.pt")
    (tmp_path / "context").mkdir()
    with pytest.raises(BrokenCheckpointError, match=r"NeMo keeps only what differs .* write all of the model's fields"):
        MegatronCheckpoint.open(tmp_path)
    (folder / "run_config.yaml").write_text(LLAMA)
    assert MegatronCheckpoint.open(tmp_path).args["num_layers"] == 16


LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (LAUGHS + "model: {num_layers: 1, x: {_target_: a.b, _args_: [*a9]}}", "more than 200000 of them"),
        (LAUGHS + "model: {num_layers: *a9}", "more than 200000 of them"),
        ("a: &a {x: 1}\nmodel: {num_layers: 1, <<: [*a, *a]}", "a key <<"),
        ("model: {num_layers: 1" + ":1" * 100 + "}", "a number of 201 characters"),
        ("model: {num_layers: 1" + ":1" * 100 + ".5}", "a number of 203 characters"),
        ("model: {num_layers: " + "[" * 30 + "]" * 30 + "}", "nested deeper than 20"),
        ("model: {num_layers: 1, x: " + "a" * 1_000_000 + "}", "expected at most 1000000 bytes of YAML"),
    ],
)
def test_a_few_bytes_cannot_ask_for_much(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(BrokenCheckpointError, match=found):
        config_of(tmp_path, text)
