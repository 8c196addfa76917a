"""What quantizing the weights costs in quality: the tables of docs/quantization.md.

    python benchmarks/bench_quantization_error.py [--documents 200] [--layers 4] [--hidden 1024] [--threads 1]

The perplexity is that of the bundled model on fresh text of the kind it was trained on (tools/tiny_corpus.py, a seed
that training did not use), over the tokens that count as learned. The logit error is measured on a random Qwen3 with
normally distributed weights, against the same model in bfloat16, in standard deviations of its logits; the last line
says how far bfloat16 itself is from float32.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tools"), str(ROOT / "tests")]

import tiny_corpus  # noqa: E402 - tools are no package

from kilotron.apis.assembly import BUNDLED_MODEL  # noqa: E402
from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint  # noqa: E402
from kilotron.kernels.reference.backend import ReferenceBackend  # noqa: E402
from kilotron.models.gpt_model import GPTModel  # noqa: E402
from kilotron.models.quantization.rounding import Rounding  # noqa: E402
from kilotron.models.registry import read_transformer_config  # noqa: E402
from kilotron.models.weight_loading import load_weights  # noqa: E402
from kilotron.tokenization import load_tokenizer  # noqa: E402
from parity.model_runner import BLOCK_SIZE, ModelRunner  # noqa: E402

CORPUS_SEED = 1_000_003
MOST_TOKENS = 1000
SCHEMES: dict[str, Rounding | None] = {
    "bfloat16": None,
    "int8": Rounding(bits=8, group_size=None),
    "int4, groups of 32": Rounding(bits=4, group_size=32),
    "int4, groups of 64": Rounding(bits=4, group_size=64),
    "int4, groups of 128": Rounding(bits=4, group_size=128),
}


class Text(NamedTuple):
    """A document's tokens, and which of them count."""

    token_ids: list[int]
    is_learned: list[bool]


class Loaded(NamedTuple):
    """A model, and how long it took to load."""

    model: GPTModel
    seconds: float


def read_texts(count: int) -> list[Text]:
    """Documents of a stream that training has not seen."""
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    stream: Iterator[tiny_corpus.Document] = tiny_corpus.documents(CORPUS_SEED)
    texts = []
    for document in (next(stream) for _ in range(count)):
        pieces = [(tokenizer.tokenize(text), learned) for text, learned in (*document, (tiny_corpus.END, True))]
        token_ids = [token for ids, _ in pieces for token in ids][:MOST_TOKENS]
        texts.append(Text(token_ids, [learned for ids, learned in pieces for _ in ids][:MOST_TOKENS]))
    return texts


def load(folder: Path, rounding: Rounding | None, dtype: torch.dtype = torch.bfloat16) -> Loaded:
    """The model with its weights rounded; the reference backend dequantizes them to `dtype`."""
    with HuggingFaceCheckpoint.open(folder) as checkpoint:
        model = GPTModel(read_transformer_config(checkpoint.config), ReferenceBackend())
        start = time.process_time()
        load_weights(model, checkpoint, dtype, rounding=rounding)
        return Loaded(model, time.process_time() - start)


def compute_logits(model: GPTModel, token_ids: list[int], dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """[tokens, vocabulary] float32"""
    runner = ModelRunner(model, dtype, num_blocks=2 + len(token_ids) // BLOCK_SIZE)
    return runner.step({0: token_ids})[0]


def measure_perplexity(model: GPTModel, texts: list[Text]) -> float:
    """Of all learned tokens together."""
    total, count = 0.0, 0
    for text in texts:
        log_probs = compute_logits(model, text.token_ids)[:-1].log_softmax(dim=-1)
        chosen = log_probs.gather(1, torch.tensor(text.token_ids[1:])[:, None])[:, 0]
        counts = torch.tensor(text.is_learned[1:])
        total, count = total - chosen[counts].double().sum().item(), count + int(counts.sum())
    return math.exp(total / count)


def write_random_model(folder: Path, layers: int, hidden: int) -> None:
    """A Qwen3 whose weights are drawn so that activations keep their size from layer to layer."""
    heads, vocab, ffn = hidden // 64, 8192, 3 * hidden
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).bfloat16()

    tensors = {
        "model.embed_tokens.weight": draw(vocab, hidden),
        "lm_head.weight": draw(vocab, hidden),
        "model.norm.weight": torch.ones(hidden).bfloat16(),
    }
    for layer in (f"model.layers.{number}." for number in range(layers)):
        shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden)}
        shapes |= {f"self_attn.{name}_proj": (hidden // 2, hidden) for name in "kv"}
        shapes |= {"mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn)}
        tensors |= {f"{layer}{name}.weight": draw(*shape) for name, shape in shapes.items()}
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        norms |= {"self_attn.q_norm": 64, "self_attn.k_norm": 64}
        tensors |= {f"{layer}{name}.weight": torch.ones(size).bfloat16() for name, size in norms.items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


def describe_error(found: Tensor, wanted: Tensor) -> str:
    """Mean and largest difference, in standard deviations of what is wanted."""
    error = (found - wanted).abs() / wanted.std()
    return f"{error.mean().item():.4f}, {error.max().item():.3f}"


def bits_per_weight(rounding: Rounding | None) -> str:
    """As QuantizedWeight holds them once 4-bit values are packed: a float32 scale and a byte of zero for each group."""
    if rounding is None:
        return "16"
    return f"{rounding.bits + (0 if rounding.group_size is None else 40 / rounding.group_size):.2f}"


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = read_texts(arguments.documents)
    probe = torch.randint(0, 8192, (256,), generator=torch.Generator().manual_seed(1)).tolist()
    print(f"{sum(sum(text.is_learned[1:]) for text in texts)} learned tokens in {len(texts)} documents")
    print("| scheme | bits per weight | perplexity, bundled model | mean, largest logit error, random model | CPU s |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        write_random_model(Path(name), arguments.layers, arguments.hidden)
        wanted = compute_logits(load(Path(name), None).model, probe)
        for scheme, rounding in SCHEMES.items():
            perplexity = measure_perplexity(load(BUNDLED_MODEL, rounding).model, texts)
            model, seconds = load(Path(name), rounding)
            errors = describe_error(compute_logits(model, probe), wanted)
            row = (scheme, bits_per_weight(rounding), f"{perplexity:.4f}", errors, f"{seconds:.2f}")
            print(f"| {' | '.join(row)} |", flush=True)
        exact = compute_logits(load(Path(name), None, torch.float32).model, probe, torch.float32)
        print(f"bfloat16 against float32: {describe_error(wanted, exact)}")


if __name__ == "__main__":
    main()
