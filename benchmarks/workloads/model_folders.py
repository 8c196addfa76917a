"""Makes a checkpoint of a shape, once: random bfloat16 weights from a fixed seed, and a small tokenizer of its own.

The tokenizer is learned from the standard library's sources. It knows the first 16,000 ids; the rest of a vocabulary
has no text, which no workload needs.

    python -m workloads.model_folders SHAPE FOLDER
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workloads.shapes import SHAPES, Shape

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
TOKENIZER_SIZE = 16_000
MAX_POSITIONS = 8192
NUM_SOURCES = 400
SEED = 0


def make_folder(shape: Shape, folder: Path) -> None:
    """Writes the checkpoint beside its place and moves it there, so that a folder is whole or absent."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _make_model(shape).save_pretrained(unfinished)
    _make_tokenizer().save_pretrained(unfinished)
    unfinished.rename(folder)


def _make_model(shape: Shape) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    kinds: dict[str, tuple[Any, Any]] = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    config_type, model_type = kinds[shape.architecture]
    config = config_type(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=MAX_POSITIONS,
        rope_theta=shape.rope_base,
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        dtype="bfloat16",
    )
    torch.manual_seed(SEED)
    return model_type(config).to(torch.bfloat16)


def _make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_read_sources(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=MAX_POSITIONS
    )


def _read_sources() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))[:NUM_SOURCES]:
        yield path.read_text(encoding="utf-8", errors="ignore")


if __name__ == "__main__":
    make_folder(SHAPES[sys.argv[1]], Path(sys.argv[2]))
