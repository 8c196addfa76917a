"""Runs llama.cpp's own converter, from its sources, on a checkpoint whose tokenizer it does not know.

python -m workloads.gguf_converter LLAMA_SOURCE CHECKPOINT OUT.gguf bf16|f16|q8_0
"""

import importlib
import sys


def main() -> None:
    """Names the tokenizer's way of splitting text, which the converter else looks up by a hash."""
    source, checkpoint, target, kind = sys.argv[1:5]
    sys.path[:0] = [source, f"{source}/gguf-py"]
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda _model, _tokenizer: "gpt-2"
    converter = importlib.import_module("convert_hf_to_gguf")
    sys.argv = ["convert_hf_to_gguf", checkpoint, "--outfile", target, "--outtype", kind]
    converter.main()


if __name__ == "__main__":
    main()
