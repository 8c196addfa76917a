"""Makes the checkpoints of this folder with the real megatron-core, on a CPU. README.md describes what lies here.

Two environments on Python 3.11, each with torch>=2.11,<2.14 (CPU build), numpy, safetensors:

    python3.11 -m venv NEW && NEW/bin/pip install "torch>=2.11,<2.14" numpy safetensors packaging pyyaml tqdm
    NEW/bin/pip download --no-deps --ignore-requires-python --python-version 3.12 --only-binary=:all: \\
        --dest /tmp/wheel megatron-core==0.19.2
    NEW/bin/pip install --no-deps --ignore-requires-python --python-version 3.12 --only-binary=:all: \\
        --target NEW/lib/python3.11/site-packages /tmp/wheel/*.whl
    NEW/bin/pip install --no-deps triton psutil einops absl-py

    python3.11 -m venv OLD && OLD/bin/pip install "torch>=2.11,<2.14" numpy safetensors packaging pyyaml tqdm
    OLD/bin/pip install --no-deps megatron-core==0.16.1 triton psutil einops absl-py

Then, from any folder (all, or only the named ones; those made from others' weights make them anew beside):

    python make_checkpoints.py --new NEW/bin/python --old OLD/bin/python [gpt2 llama/torch_dist-tp2 ...]

The seeds are fixed: weights, ids and logits come out the same. The files' bytes do not: torch saves ids.
Made with torch 2.13.0, triton 3.9.0, einops 0.8.2, absl-py 2.5.1, psutil 7.2.2.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NUM_TOKENS = 99  # NullTokenizer's; padded to 112 at TP1, 128 at TP2
SIZES = {"num-layers": 2, "hidden-size": 16, "num-attention-heads": 2, "seq-length": 64, "max-position-embeddings": 64}
RUN = {
    "micro-batch-size": 1,
    "train-iters": 10,
    "lr": 1e-3,
    "save-interval": 1,
    "attention-dropout": 0,
    "hidden-dropout": 0,
    "init-method-std": 0.02,
    "distributed-backend": "gloo",
    "transformer-impl": "local",
    "use-cpu-initialization": True,
    "no-gradient-accumulation-fusion": True,
    "no-masked-softmax-fusion": True,
    "no-persist-layer-norm": True,
    "no-rope-fusion": True,
    "no-save-rng": True,
}
VOCABULARY = {"tokenizer-type": "NullTokenizer", "vocab-size": NUM_TOKENS, "make-vocab-size-divisible-by": 16}
BASE = SIZES | RUN | VOCABULARY
LLAMA = BASE | {
    "position-embedding-type": "rope",
    "normalization": "RMSNorm",
    "norm-epsilon": 1e-3,  # large enough to be seen
    "swiglu": True,
    "ffn-hidden-size": 24,
    "num-attention-heads": 4,
    "kv-channels": 8,  # not hidden size / heads
    "group-query-attention": True,
    "num-query-groups": 2,
    "untie-embeddings-and-output-weights": True,
    "disable-bias-linear": True,
}
EXPERTS = LLAMA | {
    "num-experts": 4,
    "moe-router-topk": 2,
    "moe-router-load-balancing-type": "none",
    "moe-token-dispatcher-type": "allgather",
    "moe-ffn-hidden-size": 12,
}
SIGMOID_ROUTER = {
    "moe-ffn-hidden-size": 8,
    "moe-layer-freq": "([0]+[1]*1)",
    "moe-router-score-function": "sigmoid",
    "moe-router-enable-expert-bias": True,
    "moe-router-topk-scaling-factor": 2.5,
    "moe-shared-expert-intermediate-size": 12,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": BASE | {"ffn-hidden-size": 32, "position-embedding-type": "learned_absolute", "norm-epsilon": 1e-3},
    "llama": LLAMA,
    "llama31": {name: value for name, value in LLAMA.items() if name != "kv-channels"}
    | {
        "hidden-size": 32,
        "ffn-hidden-size": 40,
        "use-rope-scaling": True,
        "rope-scaling-factor": 4.0,
        "rotary-base": 500000,
        "add-qkv-bias": True,
    },
    "qwen3": {name: value for name, value in LLAMA.items() if not name.startswith("untie")}
    | {"qk-layernorm": True, "rotary-base": 1000000},
    "mixtral": EXPERTS,
    "moe-sigmoid": EXPERTS | SIGMOID_ROUTER | {"moe-shared-expert-gate": True},
    "deepseek": EXPERTS
    | SIGMOID_ROUTER
    | {
        "num-experts": 8,
        "group-query-attention": False,
        "num-query-groups": False,
        "moe-router-num-groups": 4,
        "moe-router-group-topk": 2,
        "moe-router-topk": 4,
        "multi-latent-attention": True,
        "qk-layernorm": True,
        "q-lora-rank": 16,
        "kv-lora-rank": 24,
        "qk-head-dim": 8,
        "qk-pos-emb-head-dim": 4,
        "v-head-dim": 8,
        "rope-type": "rope",
    },
    "nemotron": {name: value for name, value in LLAMA.items() if name != "swiglu"}
    | {
        "normalization": "LayerNorm",
        "apply-layernorm-1p": True,
        "squared-relu": True,
        "rotary-percent": 0.5,
    },
    "gptoss": {name: value for name, value in EXPERTS.items() if name not in ("swiglu", "disable-bias-linear")}
    | {
        "quick-geglu": True,
        "glu-linear-offset": 1.0,
        "activation-func-clamp-value": 2.0,
        "no-bias-gelu-fusion": True,
        "softmax-type": "learnable",
        "window-size": "7,0",
        "window-attn-skip-freq": 2,
        "position-embedding-type": "yarn",
        "rotary-scaling-factor": 8.0,
        "yarn-original-max-position-embeddings": 16,
    },
    "t5": BASE
    | {
        "position-embedding-type": "learned_absolute",
        "norm-epsilon": 1e-3,
        "num-layers": False,
        "encoder-num-layers": 2,
        "decoder-num-layers": 1,
        "seq-length": False,
        "encoder-seq-length": 64,
        "decoder-seq-length": 64,
        "ffn-hidden-size": 24,
    },
}
TP2 = {"tensor-model-parallel-size": 2}
PP2 = {"pipeline-model-parallel-size": 2}
EP2 = {"expert-model-parallel-size": 2}


@dataclass(frozen=True)
class Checkpoint:
    """One folder: which family's weights, in which format and parallel layout, by which release."""

    format: str = "torch_dist"
    layout: dict[str, int] = field(default_factory=dict)
    has_release: bool = False
    has_optimizer: bool = False
    flags: dict[str, Any] = field(default_factory=dict)
    release_of_megatron: str = "0.19.2"

    @property
    def num_ranks(self) -> int:
        number = 1
        for size in self.layout.values():
            number *= size
        return number


LEGACY_LAYOUTS = {
    "torch": Checkpoint("torch"),
    "torch-tp2": Checkpoint("torch", TP2),
    "torch-pp2": Checkpoint("torch", PP2),
    "torch-tp2-pp2": Checkpoint("torch", TP2 | PP2),
}
LAYOUTS = {
    "torch_dist-tp2": Checkpoint(layout=TP2),
    "torch_dist-pp2": Checkpoint(layout=PP2),
    "torch_dist-tp2-pp2": Checkpoint(layout=TP2 | PP2),
}
OLD = Checkpoint(release_of_megatron="0.16.1")
CHECKPOINTS: dict[str, Checkpoint] = (
    {f"{family}/torch_dist": Checkpoint() for family in FAMILIES}
    | {f"{family}/torch_dist-0.16.1": OLD for family in ("gpt2", "llama")}
    | {f"{family}/{name}": one for family in ("gpt2", "llama") for name, one in LEGACY_LAYOUTS.items()}
    | {f"{family}/{name}": one for family in ("gpt2", "llama", "qwen3", "mixtral") for name, one in LAYOUTS.items()}
    | {
        "llama/torch_dcp": Checkpoint("torch_dcp"),
        "llama31/torch-release": Checkpoint("torch", has_release=True),
        "qwen3/torch_dist-optimizer": Checkpoint(has_optimizer=True, flags={"no-save-rng": False}),
        "qwen3/torch-optimizer": Checkpoint("torch", has_optimizer=True),
        "mixtral/torch": Checkpoint("torch"),
        "mixtral/torch-ep2": Checkpoint("torch", EP2),
        "mixtral/torch_dist-ep2": Checkpoint(layout=EP2),
        "deepseek/torch": Checkpoint("torch"),
        "t5/torch": Checkpoint("torch"),
        # Its output bias cannot be loaded with other padding than it was saved with.
        "t5/torch_dist-tp2": Checkpoint(layout=TP2, flags={"make-vocab-size-divisible-by": 8}),
    }
)


def command_line(options: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        if value is not False:
            words += [f"--{name}"] + ([] if value is True else [str(value)])
    return words


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_job(python: str, job: dict[str, Any], num_ranks: int, folder: Path) -> None:
    """All ranks of one job, in `folder`: what they are told of paths is relative, so that nothing of it is saved."""
    (folder / "job.json").write_text(json.dumps(job | {"port": free_port()}))
    environment = os.environ | {
        "WORLD_SIZE": str(num_ranks),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    ranks = [
        subprocess.Popen(
            [python, str(HERE / "write_one_checkpoint.py"), "job.json"],
            cwd=folder,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(num_ranks)
    ]
    exit_codes = [rank.wait() for rank in ranks]
    if any(exit_codes):
        sys.exit(f"{job['name']}: a rank failed")


def make(name: str, pythons: dict[str, str], scratch: Path) -> None:
    family, one = name.split("/")[0], CHECKPOINTS[name]
    scratch = scratch / name.replace("/", "-")
    scratch.mkdir()
    is_reference = name.endswith("/torch_dist")
    needs_source = one.num_ranks > 1
    if needs_source:
        shutil.copytree(HERE / family / "torch_dist", scratch / "source")
    # The arguments' validation lets torch_dcp pass with FSDP only, which needs a GPU; saving asks nothing of the kind.
    save_format = {"ckpt-format": "torch_dist" if one.format == "torch_dcp" else one.format}
    options = FAMILIES[family] | one.layout | save_format | one.flags
    if not one.has_optimizer:
        options["no-save-optim"] = True
    job = {
        "name": name,
        "model": "t5" if family == "t5" else "gpt",
        "flags": command_line(options),
        "format": one.format,
        "folder": "saved",
        "args_file": "args.pkl",
        "expected": "expected.safetensors",
        "source": "source" if needs_source else None,
        "num_tokens": NUM_TOKENS,
        "release": one.has_release,
        "optimizer": one.has_optimizer,
        "release_of_megatron": "0.19.2",
    }
    run_job(pythons["0.19.2"], job, one.num_ranks, scratch)
    if one.release_of_megatron != "0.19.2":  # it borrows the newer release's Namespace
        shutil.rmtree(scratch / "saved")
        old = job | {"release_of_megatron": one.release_of_megatron}
        run_job(pythons[one.release_of_megatron], old, one.num_ranks, scratch)
    shutil.rmtree(HERE / name, ignore_errors=True)
    shutil.copytree(scratch / "saved", HERE / name)
    expected = HERE / family / "expected.safetensors"
    if is_reference:
        shutil.copyfile(scratch / "expected.safetensors", expected)
    elif not needs_source and expected.read_bytes() != (scratch / "expected.safetensors").read_bytes():
        sys.exit(f"{name}: not the logits of {family}/torch_dist")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the Megatron test checkpoints.")
    parser.add_argument("--new", required=True, help="python with megatron-core 0.19.2")
    parser.add_argument("--old", required=True, help="python with megatron-core 0.16.1")
    parser.add_argument("names", nargs="*", help="families (gpt2) or folders (gpt2/torch); all by default")
    options = parser.parse_args()
    chosen = [
        name
        for name in CHECKPOINTS
        if not options.names or name in options.names or name.split("/")[0] in options.names
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen:
            print(f"=== {name}", flush=True)
            make(name, {"0.19.2": options.new, "0.16.1": options.old}, Path(scratch))


if __name__ == "__main__":
    main()
