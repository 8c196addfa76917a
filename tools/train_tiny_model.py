"""Train the bundled tiny model: tokenizer, weights, chat template, configuration and model card.

    OMP_NUM_THREADS=2 python tools/train_tiny_model.py --out src/kilotron/assets/tiny --work build/tiny

One seed decides the text, the initial weights and the order of the batches. All text comes from `tiny_corpus.py`.
The run writes a checkpoint to --work now and then; --resume continues from it, and --export-only writes the model of
the last checkpoint (an average of its recent weights) to --out. Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import tiny_corpus
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 2048
SPECIAL = (tiny_corpus.END, tiny_corpus.TURN, tiny_corpus.TURN_END, tiny_corpus.PADDING)
END_ID, TURN_END_ID, PADDING_ID = 0, 2, 3
CONTEXT = 1024
TOKENS_PER_STEP = 4096
# Rows of one step: (length, share of the steps). Long rows teach the later positions.
ROW_LENGTHS = ((256, 0.9), (1024, 0.1))
IGNORED = -100
# From this step on, a share of the documents are exercises in what is learned slowly.
DRILLS_FROM, DRILLS_SHARE = 600, 0.4
CHECKPOINT_EVERY = 100
EMA_DECAY = 0.98


def train_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer that keeps every digit apart and can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = islice(tiny_corpus.documents(seed), 40_000)
    texts = [text.removesuffix(tiny_corpus.TURN_END) for document in documents for text, _ in document]
    tokenizer.train_from_iterator((text for text in texts if not text.startswith(tiny_corpus.TURN)), trainer)
    return tokenizer


def encoded(tokenizer: Tokenizer, seed: int, drills: float = 0.0) -> Iterator[tuple[list[int], list[int]]]:
    """Endless documents as (token ids, labels), each closed by the end token."""
    source = tiny_corpus.documents(seed, drills)
    while True:
        chunk = list(islice(source, 500))
        segments = [segment for document in chunk for segment in document]
        encodings = iter(tokenizer.encode_batch([text for text, _ in segments]))
        for document in chunk:
            ids: list[int] = []
            labels: list[int] = []
            for _, learned in document:
                piece = next(encodings).ids
                ids += piece
                labels += piece if learned else [IGNORED] * len(piece)
            yield [*ids, END_ID], [*labels, END_ID]


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (inputs, labels). Every row begins with a new document, one in five with an end token before it."""
    source = encoded(tokenizer, seed)
    generator = torch.Generator().manual_seed(seed)
    for step in count():
        if step == DRILLS_FROM:
            source = encoded(tokenizer, seed + 1, DRILLS_SHARE)
        is_long = torch.rand(1, generator=generator).item() < ROW_LENGTHS[1][1]
        length = ROW_LENGTHS[1][0] if is_long else ROW_LENGTHS[0][0]
        rows = []
        for _ in range(TOKENS_PER_STEP // length):
            with_end = torch.rand(1, generator=generator).item() < 0.2
            ids, labels = ([END_ID], [END_ID]) if with_end else ([], [])
            while len(ids) <= length:
                more_ids, more_labels = next(source)
                ids, labels = ids + more_ids, labels + more_labels
            rows.append((ids[:length], labels[1 : length + 1]))
        yield torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])


def build_model(seed: int) -> Qwen3ForCausalLM:
    """The untrained model, about four million parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=PADDING_ID,
        attn_implementation="sdpa",
    )
    return Qwen3ForCausalLM(config)


def build_optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.02, momentum=0.95),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def rate(step: int, steps: int) -> float:
    """Learning rate factor: warm up, hold, and fall to zero over the last 40 percent."""
    return min(1.0, (step + 1) / 40, (steps - step) / (0.4 * steps))


class Average:
    """An exponential moving average of the weights, good to export at any time."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move towards the current weights; quicker at the start, when the average knows little."""
        share = 1 - min(EMA_DECAY, (step + 1) / (step + 10))
        for name, p in model.named_parameters():
            self.weights[name].lerp_(p, share)


def train(arguments: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, float]:
    """The training loop. Returns the facts for the model card."""
    model = build_model(arguments.seed)
    optimizers, average = build_optimizers(model), Average(model)
    source = batches(tokenizer, arguments.seed + 1)
    first, smooth, seconds = 0, math.log(VOCABULARY), 0.0
    checkpoint = arguments.work / "checkpoint.pt"
    if arguments.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.weights = state["average"]
        first, smooth, seconds = state["step"], state["loss"], state["seconds"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        next(islice(source, first - 1, None))
    for step in range(first, arguments.steps):
        start = time.perf_counter()
        inputs, labels = next(source)
        loss = one_step(model, optimizers, inputs, labels, rate(step, arguments.steps))
        average.update(model, step)
        smooth += (loss - smooth) * max(0.02, 1 / (step + 1))
        seconds += time.perf_counter() - start
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == arguments.steps:
            print(f"step {step + 1}/{arguments.steps} loss {smooth:.4f} time {seconds:.0f}s", flush=True)
            state = {
                "model": model.state_dict(),
                "average": average.weights,
                "step": step + 1,
                "loss": smooth,
                "seconds": seconds,
                "optimizers": [o.state_dict() for o in optimizers],
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return {"step": arguments.steps, "loss": smooth, "seconds": seconds}


def one_step(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    factor: float,
) -> float:
    """One update. Returns the loss."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    loss.backward()
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def write_json(path: Path, value: object) -> None:
    """`value` as readable JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """The tokenizer files, with the chat template where everybody looks for it."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(tiny_corpus.CHAT_TEMPLATE + "\n", encoding="utf-8")
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": tiny_corpus.END,
            "eos_token": tiny_corpus.END,
            "pad_token": tiny_corpus.PADDING,
            "additional_special_tokens": [tiny_corpus.TURN, tiny_corpus.TURN_END],
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT,
            "chat_template": tiny_corpus.CHAT_TEMPLATE,
        },
    )


def export_model(arguments: argparse.Namespace) -> None:
    """Weights and configuration of the last checkpoint: the average, or the last weights of a finished run."""
    state = torch.load(arguments.work / "checkpoint.pt", weights_only=True)
    model = build_model(arguments.seed)
    finished = state["step"] >= arguments.steps
    model.load_state_dict(state["model"] if finished else state["average"], strict=False)
    model = model.to(torch.bfloat16)
    bad = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        raise ValueError(f"weights are not finite: {bad}")
    model.generation_config.update(
        bos_token_id=END_ID,
        eos_token_id=[END_ID, TURN_END_ID],
        pad_token_id=PADDING_ID,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        max_new_tokens=200,
    )
    model.save_pretrained(arguments.out)
    (arguments.out / "model.safetensors").chmod(0o644)
    # Readers older than `rope_parameters` look for the base at the top level, and would guess another one.
    config = json.loads((arguments.out / "config.json").read_text(encoding="utf-8"))
    write_json(arguments.out / "config.json", config | {"rope_theta": config["rope_parameters"]["rope_theta"]})
    write_json(
        arguments.out / "training.json",
        {
            "seed": arguments.seed,
            "steps": state["step"],
            "planned_steps": arguments.steps,
            "tokens": state["step"] * TOKENS_PER_STEP,
            "loss": round(state["loss"], 4),
            "seconds": round(state["seconds"]),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    )


def main() -> None:
    """Train, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("src/kilotron/assets/tiny"), help="folder of the model")
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --work")
    parser.add_argument("--export-only", action="store_true", help="only write the last checkpoint to --out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer_file = arguments.work / "tokenizer.json"
    if (arguments.resume or arguments.export_only) and tokenizer_file.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    else:
        tokenizer = train_tokenizer(arguments.seed)
        tokenizer.save(str(tokenizer_file))
    if not arguments.export_only:
        train(arguments, tokenizer)
    export_tokenizer(tokenizer, arguments.out)
    export_model(arguments)


if __name__ == "__main__":
    main()
