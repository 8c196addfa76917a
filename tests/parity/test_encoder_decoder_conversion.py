"""Converted encoder-decoders: back bit for bit, loaded by transformers, run by kilotron with the same tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from kilotron.apis.convert import ConversionOptions, convert_checkpoint
from kilotron.apis.llm import MegatronLLM
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.models.megatron_args import find_megatron_gaps
from kilotron.models.registry import read_transformer_config
from kilotron.sampling_params import SamplingParams
from parity.tiny_encoder_decoders import CASES, make_tiny_encoder_decoder

SMALL_FILES = ConversionOptions(max_shard_bytes=30_000)
MEGATRON_T5 = Path(__file__).parents[1] / "data" / "megatron" / "t5" / "torch_dist"
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=0, return_prompt_tokens=True)
INPUTS = [[7, 8, 9], list(range(20, 60))]


def folder_of(name: str, folder: Path) -> Path:
    """A tiny model converted: `source`, `megatron` and `back`."""
    dtype = torch.bfloat16 if name == "mt5" else torch.float32
    model = make_tiny_encoder_decoder(name, folder / "source")
    model.to(dtype).save_pretrained(folder / "source")
    convert_checkpoint(folder / "source", folder / "megatron", SMALL_FILES)
    return folder


@torch.no_grad()
def transformers_logits(folder: Path, architecture: str) -> Tensor:
    model = getattr(transformers, architecture).from_pretrained(folder, dtype="auto").eval()
    logits: Tensor = model(input_ids=torch.tensor(INPUTS[1:]), decoder_input_ids=torch.tensor([[0, 5, 6]])).logits
    return logits


def kilotron_answers(folder: Path) -> list[Any]:
    options: dict[str, Any] = {"block_size_tokens": 8, "buffer_size_gb": 0.01, "max_requests": 4}
    with MegatronLLM(folder, max_sequence_length=64, **options) as llm:
        requests = llm.generate(INPUTS, GREEDY)
    return [(one.prompt_tokens, one.generated_tokens, one.generated_log_probs) for one in requests]


@pytest.mark.filterwarnings("ignore")  # transformers comments on its own configurations
@pytest.mark.parametrize("name", CASES)
def test_a_round_trip_is_bit_identical_and_gives_the_same_answers(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    report = convert_checkpoint(folder / "megatron", folder / "back")

    before, after = (load_file(folder / side / "model.safetensors") for side in ("source", "back"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype
        assert torch.equal(value.view(torch.uint8), after[key].view(torch.uint8)), key
    for file in ("config.json", "generation_config.json"):
        assert (folder / "source" / file).read_bytes() == (folder / "back" / file).read_bytes()
    logits = [transformers_logits(folder / side, report.architecture) for side in ("source", "back")]
    assert torch.equal(*logits)
    assert kilotron_answers(folder / "source") == kilotron_answers(folder / "megatron")


@pytest.mark.parametrize(("name", "stack"), [("t5-v1.1", "encoder"), ("bart", "encoder"), ("bart", "decoder")])
def test_heads_lie_as_megatron_has_them(name: str, stack: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    source = load_file(folder / "source" / "model.safetensors")
    config = make_tiny_encoder_decoder(name, tmp_path / "again").config
    num_heads = getattr(config, f"{stack}_attention_heads", config.num_attention_heads)
    theirs = f"model.{stack}.layers.1.self_attn." if name == "bart" else f"{stack}.block.1.layer.0.SelfAttention."
    parts = [source[f"{theirs}{part}{'_proj' if name == 'bart' else ''}.weight"] for part in "qkv"]

    with MegatronCheckpoint.open(folder / "megatron") as checkpoint:
        stored = checkpoint.read(f"{stack}.layers.1.self_attention.linear_qkv.weight")

    by_head = torch.stack([part.unflatten(0, (num_heads, -1)) for part in parts], dim=1)
    assert torch.equal(stored, by_head.flatten(0, 2))


def test_keys_and_values_of_cross_attention_alternate_by_head(tmp_path: Path) -> None:
    folder = folder_of("t5-v1.1", tmp_path)
    source = load_file(folder / "source" / "model.safetensors")
    parts = [source[f"decoder.block.1.layer.1.EncDecAttention.{part}.weight"].unflatten(0, (4, -1)) for part in "kv"]

    with MegatronCheckpoint.open(folder / "megatron") as checkpoint:
        stored = checkpoint.read("decoder.layers.1.cross_attention.linear_kv.weight")
        assert "decoder_relative_pos_emb.relative_attention_bias.weight" in checkpoint.tensors

    assert torch.equal(stored, torch.stack(parts, dim=1).flatten(0, 2))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("t5", "scaled hidden states in front of the output layer"),
        ("t5-v1.1", "an attention scale of its own"),
        ("mt5", "tied output weights with no bias"),
        ("umt5", "a table of relative positions in every layer"),
        ("bart", "a table of learned positions in each stack"),
    ],
)
def test_what_megatron_has_no_option_for_is_told(name: str, told: str, tmp_path: Path) -> None:
    make_tiny_encoder_decoder(name, tmp_path / "source")

    report = convert_checkpoint(tmp_path / "source", tmp_path / "megatron")

    assert told in "\n".join(report.notes)


def test_a_padded_vocabulary_is_cut_in_the_output_bias_too(tmp_path: Path) -> None:
    folder = folder_of("bart", tmp_path)

    convert_checkpoint(folder / "megatron", folder / "back", ConversionOptions(vocab_size=100))

    before, after = (load_file(folder / side / "model.safetensors") for side in ("source", "back"))
    assert torch.equal(after["final_logits_bias"], before["final_logits_bias"][:, :100])
    assert torch.equal(after["model.shared.weight"], before["model.shared.weight"][:100])


def test_megatrons_own_t5_lacks_nothing_there() -> None:
    with MegatronCheckpoint.open(MEGATRON_T5) as checkpoint:
        assert find_megatron_gaps(read_transformer_config(checkpoint.config, checkpoint.tensors)) == []
