"""Reads model.safetensors.index.json: which shard holds which tensor. A shard's name is not trusted as a path."""

from pathlib import Path, PurePosixPath
from typing import Any

from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.json_file import read_json_object

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 256_000_000
MAX_TENSORS = 1_000_000
MAX_NAMED = 5  # of a long list in a message, so many are named


def read_shard_index(file: Path) -> dict[str, Path]:
    """Tensor name -> shard beside the index; whether the shards are there is not asked.

    Raises:
        BrokenCheckpointError: the index is missing or not one, or names a file outside its folder.
    """
    weight_map = read_json_object(file, max_bytes=MAX_INDEX_BYTES, unique_keys=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise broken(file, expected="weight_map to map tensor names to shards", found=shown(weight_map))
    if len(weight_map) > MAX_TENSORS:
        raise broken(file, expected=f"at most {MAX_TENSORS} tensors", found=f"{len(weight_map)}")
    for name, shard in weight_map.items():
        if not _is_shard_name(shard):
            expected = "the name of a .safetensors file inside the folder"
            raise broken(file, tensor=name, expected=expected, found=shown(shard))
    path_of_shard = {shard: file.parent / shard for shard in set(weight_map.values())}
    return {name: path_of_shard[shard] for name, shard in weight_map.items()}


def check_shards_exist(index_file: Path, shards: list[Path]) -> None:
    """Names every shard that is missing, not just the first: each may take an hour to fetch.

    Raises:
        BrokenCheckpointError: a shard is missing.
    """
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        named = ", ".join(missing[:MAX_NAMED])
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        found = f"{len(shards) - len(missing)}; missing: {named}{more}"
        raise broken(index_file, expected=f"{len(shards)} shards beside it", found=found)


def _is_shard_name(shard: Any) -> bool:
    if not isinstance(shard, str) or not shard.endswith(".safetensors") or "\\" in shard or not shard.isprintable():
        return False
    path = PurePosixPath(shard)
    return not path.is_absolute() and ".." not in path.parts
