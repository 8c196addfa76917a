"""Turns what a person typed, a path or a hub id, into a checkpoint's folder, or says what to type next.

Knows which files make a checkpoint and what other formats look like; opens none of them.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from kilotron.checkpoints.bounded_file import list_entries
from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.hub_snapshot import CONFIG_FILE, find_hub_snapshot
from kilotron.checkpoints.megatron_folder import folder_around, is_megatron_folder
from kilotron.errors import CheckpointError, CheckpointNotFoundError

__all__ = ["CONFIG_FILE", "check_local_folder", "find_checkpoint_folder", "is_huggingface_folder"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_INNER = 100  # folders looked into for a hint


def find_checkpoint_folder(source: str | Path, *, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched first if `source` is a hub id and no such path exists here.

    Raises:
        CheckpointNotFoundError: there is no such folder, and no such hub id in reach.
        BrokenCheckpointError: the folder has no config.json or no weights.
        CheckpointError: it is a checkpoint of another format.
    """
    text = os.path.expanduser(source)
    if not text:
        raise CheckpointNotFoundError("the checkpoint's path is empty; give a folder or a hub id such as owner/name")
    path = Path(text)
    if os.path.isdir(path):
        if revision is not None:
            raise CheckpointError(f"{path} is a local folder; a revision ({shown(revision)}) goes with a hub id only")
        folder = path
    elif os.path.exists(path):
        raise _explain_file(path)
    elif HUB_ID.fullmatch(str(source)):
        folder = find_hub_snapshot(str(source), revision=revision, hint=_similar_folder(path))
    else:
        hint = _similar_folder(path) or "give the path of a folder, or a hub id of the form owner/name"
        raise CheckpointNotFoundError(f"no folder {shown(text)}; {hint}")
    _refuse_other_formats(folder)
    return folder


def check_local_folder(source: str) -> None:
    """Refuses at once a path that is no checkpoint's folder; a hub id that is no path here is not looked up.

    Raises:
        CheckpointError: as `find_checkpoint_folder` does.
    """
    if os.path.exists(os.path.expanduser(source)) or not HUB_ID.fullmatch(source):
        find_checkpoint_folder(source)


def is_huggingface_folder(folder: Path) -> bool:
    """Whether it has a configuration and weights, whatever else lies beside them."""
    entries = list_entries(folder)
    return CONFIG_FILE in entries and _has_weights(entries)


def _has_weights(entries: Iterable[str]) -> bool:
    return any(entry.endswith((".safetensors", ".safetensors.index.json")) for entry in entries)


def _similar_folder(path: Path) -> str:
    """Names the folder that was probably meant, or gives nothing. The mistake may lie further up."""
    wanted = path
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    siblings = [entry for entry in list_entries(path.parent) if (path.parent / entry).is_dir()]
    nearest = difflib.get_close_matches(path.name, siblings, n=1)
    if not nearest:
        return ""
    meant = path.parent / nearest[0]
    whole = meant / wanted.relative_to(path)
    return f"did you mean {whole if whole.is_dir() else meant}?"


def _explain_file(path: Path) -> CheckpointError:
    if (around := folder_around(path)) is not None:
        return CheckpointError(f"{path} is a part of a Megatron checkpoint; give its folder, {around}")
    if path.suffix == ".gguf":
        return _gguf_error(path)
    if path.suffix in PICKLE_ENDINGS:
        return _pickle_error(path)
    return CheckpointError(f"{path} is a file; give the folder with config.json and the weights, such as {path.parent}")


def _refuse_other_formats(folder: Path) -> None:
    if is_huggingface_folder(folder):
        return
    if (around := folder_around(folder)) is not None:
        raise CheckpointError(f"{folder} is one rank's part of a Megatron checkpoint; give its folder, {around}")
    entries = list_entries(folder)
    if "adapter_config.json" in entries:
        raise CheckpointError(
            f"{folder} is a LoRA adapter; this version reads whole models: merge it into its base model first"
        )
    if is_megatron_folder(folder):
        return
    has_weights = _has_weights(entries)
    if not has_weights:
        _refuse_other_weights(folder, entries)
    if CONFIG_FILE not in entries:
        inner = [entry for entry in entries[:MAX_INNER] if _is_checkpoint(folder / entry)]
        hint = f"; did you mean {folder / inner[0]}?" if inner else ""
        raise broken(folder / CONFIG_FILE, expected="the model's configuration", found=f"no such file{hint}")
    found = f"no *.safetensors file among {len(entries)} entries"
    raise broken(folder, expected="model.safetensors or model.safetensors.index.json", found=found)


def _is_checkpoint(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() or (folder.is_dir() and is_megatron_folder(folder))


def _refuse_other_weights(folder: Path, entries: list[str]) -> None:
    if name := _first(entries, re.compile(r".*\.gguf")):
        raise _gguf_error(folder / name)
    # Trainers leave small pickle files beside good weights; without weights, a pickle file is what there is.
    if name := _first(entries, re.compile(r".*\.(bin|pt|pth|ckpt|pkl)")):
        raise _pickle_error(folder / name)


def _first(entries: Iterable[str], pattern: re.Pattern[str]) -> str | None:
    return next((entry for entry in entries if pattern.fullmatch(entry)), None)


def _gguf_error(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a GGUF file, which kilotron does not read: use the Hugging Face folder it was made from "
        "(config.json and *.safetensors)"
    )


def _pickle_error(path: Path) -> CheckpointError:
    folder = path.parent
    script = (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained({str(folder)!r}).save_pretrained({str(folder) + '-safetensors'!r})"
    )
    return CheckpointError(
        f"{path} is a pickle file, which kilotron refuses (loading one can run any code): convert it to safetensors "
        f'with python -c "{script}", in a place where that is safe, and copy the tokenizer files beside the result'
    )
