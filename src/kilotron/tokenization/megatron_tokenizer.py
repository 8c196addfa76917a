"""Finds the tokenizer that a Megatron checkpoint's saved arguments name, among the files that lie with it.

The paths in the arguments are those of the machine that trained, and are never followed; nothing that they name is
imported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kilotron.tokenization.loading import has_tokenizer

NULL_TYPES = ("NullTokenizer", "NullMultimodalTokenizer")
PATH_ARGUMENTS = ("tokenizer_model", "vocab_file", "merge_file")
# NeMo keeps its tokenizer beside the weights.
SUBFOLDERS = ("tokenizer", "context/nemo_tokenizer")


def find_megatron_tokenizer(args: Mapping[str, Any], folder: Path) -> str | None:
    """What `load_tokenizer` makes it of; None where nothing lies beside the checkpoint.

    Args:
        args: The saved arguments.
        folder: That of the weights: `iter_0000001`, or `weights` below it. The folders above it, which hold the tracker
            file or several iterations, are looked through too.
    """
    if args.get("tokenizer_type") in NULL_TYPES:
        return _null_tokenizer(args)
    above = folder.parent.parent if folder.name == "weights" else folder.parent
    roots = dict.fromkeys((folder, folder.parent, above))
    candidates = [root / name for root in roots for name in SUBFOLDERS] + list(roots)
    return next((str(one) for one in candidates if has_tokenizer(one)), None)


def describe_megatron_tokenizer(args: Mapping[str, Any]) -> str:
    """What the arguments say of the tokenizer, for people."""
    kind = args.get("tokenizer_type") or "no tokenizer"
    paths = [str(args[name]) for name in PATH_ARGUMENTS if args.get(name)]
    return f"{kind} of {', '.join(paths)}" if paths else str(kind)


def _null_tokenizer(args: Mapping[str, Any]) -> str | None:
    """Up to Megatron 0.16 an id was added to end documents; since then, the last one or a chosen one does."""
    size = args.get("vocab_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        return None
    if "null_tokenizer_eod_id" not in args:
        return f"null:{size}"
    eod = args["null_tokenizer_eod_id"]
    return f"null:{size}:{size - 1 if eod is None else eod}"
