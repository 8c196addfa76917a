"""Brings a checkpoint into the form that a peer reads, once, beside the checkpoint.

OpenVINO: with optimum-intel in the peer's own environment. llama.cpp: with the converter among its sources, run by
this command's interpreter, and its `llama-quantize` beside the server for what the converter cannot write.
"""

import os
import subprocess
import sys
from pathlib import Path

from workloads.shapes import SHAPES
from workloads.systems import ROOT, System, SystemFailure

# For OpenVINO 16-bit weights are stored as fp16 and computed in bf16: as many bytes, and the export that it documents.
OPENVINO_FORMATS = {"bf16": "fp16", "int8": "int8", "int4": "int4"}
QUANTIZED_BY_TOOL = {"q4_0": "Q4_0"}
TAIL_LINES = 15


def make_checkpoint(shape_name: str, folder: Path) -> Path:
    """The Hugging Face folder, made where it is missing."""
    place = folder / SHAPES[shape_name].name
    if not (place / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "workloads.model_folders", shape_name, str(place)])
    return place


def convert(system: System, checkpoint: Path, llama_source: Path | None) -> Path:
    """The model as this system reads it.

    Raises:
        SystemFailure: the conversion failed; the message holds the end of what it printed.
    """
    if system.kind == "openvino":
        return _to_openvino(system, checkpoint)
    if system.kind == "llama.cpp":
        return _to_gguf(system, checkpoint, llama_source)
    return checkpoint


def _to_openvino(system: System, checkpoint: Path) -> Path:
    variant = system.variant or "bf16"
    target = checkpoint.with_name(f"{checkpoint.name}-openvino-{variant}")
    if not target.exists():
        unfinished = target.with_name(target.name + ".unfinished")
        words = ["-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", str(checkpoint)]
        words += ["--task", "text-generation-with-past", "--library", "transformers"]
        words += ["--weight-format", OPENVINO_FORMATS[variant], str(unfinished)]
        _run([*system.command, *words])
        unfinished.rename(target)
    return target


def _to_gguf(system: System, checkpoint: Path, source: Path | None) -> Path:
    variant = system.variant or "bf16"
    target = checkpoint.with_name(f"{checkpoint.name}-{variant}.gguf")
    if target.exists():
        return target
    unfinished = target.with_name(target.name + ".unfinished")
    if variant in QUANTIZED_BY_TOOL:
        plain = _to_gguf(System("llama.cpp", "bf16", system.command), checkpoint, source)
        quantizer = Path(system.command[0]).with_name("llama-quantize")
        _run([str(quantizer), str(plain), str(unfinished), QUANTIZED_BY_TOOL[variant]])
    else:
        if source is None:
            raise SystemFailure(f"{target} is missing: --llama-source FOLDER names llama.cpp's sources to make it")
        _run([sys.executable, "-m", "workloads.gguf_converter", str(source), str(checkpoint), str(unfinished), variant])
    unfinished.rename(target)
    return target


def _run(command: list[str]) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-TAIL_LINES:])
        raise SystemFailure(f"{' '.join(command)} ended with code {done.returncode}:\n{tail}")
