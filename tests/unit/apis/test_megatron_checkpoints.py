"""Megatron checkpoints behind the API: the tokenizer that lies with them, their real vocabulary, their identity."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kilotron.apis.assembly import BUNDLED_MODEL
from kilotron.apis.checkpoint_fingerprint import fingerprint
from kilotron.apis.llm import MegatronLLM
from kilotron.apis.model_loading import load_model
from kilotron.checkpoints.open_checkpoint import open_checkpoint
from kilotron.errors import ConfigError, TokenOutOfRangeError
from kilotron.model_inference_wrappers.gpt_inference_wrapper import GPTInferenceWrapper
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer, NullTokenizer
from unit.checkpoints.written_megatron import model_tensors, write_legacy
from unit.kernels.cpu_backends import needs_native

DATA = Path(__file__).parents[2] / "data" / "megatron" / "llama"
EXPECTED = load_file(DATA / "expected.safetensors")
PROMPT, GREEDY = EXPECTED["1.prompt"].tolist(), EXPECTED["1.greedy"].tolist()
NUM_TOKENS, NUM_ROWS = 99, 112
PARAMS = SamplingParams(temperature=0.0, num_tokens_to_generate=len(GREEDY), return_log_probs=True)
OPTIONS = {"buffer_size_gb": 0.01, "max_sequence_length": 32}
# Of a model that `written_megatron` writes, whose own arguments leave out what it does not need.
ARGS = {
    "num_attention_heads": 2,
    "kv_channels": 4,
    "group_query_attention": True,
    "num_query_groups": 1,
    "ffn_hidden_size": 12,
    "padded_vocab_size": 32,
    "max_position_embeddings": 64,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "add_qkv_bias": True,
    "add_bias_linear": False,
}


@pytest.fixture
def unnamed(tmp_path: Path) -> Path:
    """A checkpoint whose arguments name a tokenizer of another machine."""
    tensors = model_tensors()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("linear_proj.bias")}
    args = ARGS | {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "/lustre/llama"}
    return write_legacy(tmp_path / "iter_0000005", tensors, **args)


def test_numbers_are_the_text_of_a_checkpoint_with_a_null_tokenizer() -> None:
    with MegatronLLM(DATA / "torch_dist", **OPTIONS) as llm:
        (answer,) = llm.generate(" ".join(map(str, PROMPT)), PARAMS)
        assert isinstance(llm.tokenizer, NullTokenizer)
        assert llm.engine.intake.limits.eos_ids == {NUM_TOKENS - 1}
    assert answer.generated_tokens == GREEDY
    assert answer.generated_text.split() == list(map(str, GREEDY))


def test_padded_rows_of_the_vocabulary_are_not_scored() -> None:
    with MegatronLLM(DATA / "torch_dist", **OPTIONS) as llm:
        (answer,) = llm.generate([PROMPT], PARAMS)
    logits = EXPECTED["1.logits"][-1]
    assert len(logits) == NUM_ROWS
    expected = torch.log_softmax(logits[:NUM_TOKENS], dim=-1)[GREEDY[0]].item()
    assert answer.generated_log_probs[0] == pytest.approx(expected, abs=1e-5)


def test_a_model_without_an_engine_knows_its_real_vocabulary_too() -> None:
    model, tokenizer = load_model(DATA / "torch_dist")
    assert tokenizer is not None
    assert GPTInferenceWrapper(model).vocab_size == tokenizer.vocab_size == NUM_TOKENS


def test_padded_ids_are_refused() -> None:
    with MegatronLLM(DATA / "torch_dist", **OPTIONS) as llm, pytest.raises(TokenOutOfRangeError, match="0 to 98"):
        llm.generate([[NUM_TOKENS]], PARAMS)


def test_a_tokenizer_beside_the_checkpoint_is_taken(unnamed: Path) -> None:
    shutil.copy(BUNDLED_MODEL / "tokenizer.json", unnamed.parent)
    with MegatronLLM(unnamed, **OPTIONS) as llm:
        assert llm.tokenizer is not None
        assert llm.engine.intake.limits.vocab_size == min(llm.tokenizer.vocab_size, 32)


def test_without_a_tokenizer_a_warning_names_the_one_in_the_arguments_and_the_remedy(
    unnamed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), MegatronLLM(unnamed, **OPTIONS) as llm:
        assert llm.tokenizer is None
        assert len(llm.generate([[1, 2, 3]], PARAMS)[0].generated_tokens) == len(GREEDY)
        assert llm.engine.intake.limits.vocab_size == 32
    for told in ("HuggingFaceTokenizer of /lustre/llama", "--tokenizer PATH", str(unnamed)):
        assert told in caplog.text


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), "null:20", str(BUNDLED_MODEL)], ids=["ready", "null", "folder"])
def test_the_tokenizer_asked_for_wins(tokenizer: "ByteTokenizer | str") -> None:
    with MegatronLLM(DATA / "torch_dist", tokenizer, **OPTIONS) as llm:
        assert llm.tokenizer is not None
        assert llm.tokenizer is tokenizer or isinstance(tokenizer, str)
        assert llm.engine.intake.limits.vocab_size == min(llm.tokenizer.vocab_size, NUM_ROWS)


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="not int"):
        MegatronLLM(DATA / "torch_dist", 7, **OPTIONS)  # type: ignore[arg-type]


def test_copies_have_one_fingerprint_and_changed_weights_another(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(DATA / "torch_dist-tp2", tmp_path / "copy"))
    with open_checkpoint(DATA / "torch_dist-tp2") as checkpoint, open_checkpoint(copy) as copied:
        assert fingerprint(checkpoint) == fingerprint(copied)
        last = copied.list_files()[-1]
        original = fingerprint(checkpoint)
    content = bytearray(last.read_bytes())
    content[len(content) // 32 * 3 + 5] ^= 1
    last.write_bytes(content)
    with open_checkpoint(copy) as changed:
        assert fingerprint(changed) != original


def test_all_files_with_weights_are_listed() -> None:
    with open_checkpoint(DATA / "torch_dist-tp2") as checkpoint:
        names = {file.name for file in checkpoint.list_files()}
    assert names == {file.name for file in (DATA / "torch_dist-tp2/iter_0000001").glob("*.distcp")}


@needs_native
def test_packed_weights_are_kept_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for phase, cache in [("weights read and packed", "write"), ("packed weights mapped", "auto")]:
        with MegatronLLM(DATA / "torch_dist", weight_cache=cache, **OPTIONS) as llm:
            assert phase in {one.name for one in llm.load_phases}
            assert llm.generate([PROMPT], PARAMS)[0].generated_tokens == GREEDY
