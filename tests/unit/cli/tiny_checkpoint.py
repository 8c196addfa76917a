"""A checkpoint folder for tests of the command line: random Llama weights, one token per byte, a chat template."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONTEXT_LENGTH = 128
HIDDEN, FFN, LAYERS = 32, 48, 2
SPECIAL = ["<s>", "</s>"]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_tiny_checkpoint(folder: Path, *, has_template: bool = True) -> Path:
    """Writes the folder and returns it."""
    folder.mkdir(parents=True)
    vocab_size = _write_tokenizer(folder, has_template=has_template)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"do_sample": True, "temperature": 0.5, "top_p": 0.9})
    save_file(_weights(vocab_size), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write_tokenizer(folder: Path, *, has_template: bool) -> int:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    _write_json(folder / "tokenizer_config.json", options | ({"chat_template": TEMPLATE} if has_template else {}))
    return int(tokenizer.get_vocab_size())


def _weights(vocab_size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    weights = {"model.embed_tokens.weight": draw(vocab_size, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": torch.ones(HIDDEN),
            prefix + "post_attention_layernorm.weight": torch.ones(HIDDEN),
            prefix + "self_attn.q_proj.weight": draw(HIDDEN, HIDDEN),
            prefix + "self_attn.k_proj.weight": draw(HIDDEN // 2, HIDDEN),
            prefix + "self_attn.v_proj.weight": draw(HIDDEN // 2, HIDDEN),
            prefix + "self_attn.o_proj.weight": draw(HIDDEN, HIDDEN),
            prefix + "mlp.gate_proj.weight": draw(FFN, HIDDEN),
            prefix + "mlp.up_proj.weight": draw(FFN, HIDDEN),
            prefix + "mlp.down_proj.weight": draw(HIDDEN, FFN),
        }
    return weights


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
