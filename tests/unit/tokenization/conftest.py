from pathlib import Path

import pytest

from kilotron.tokenization import FastTokenizer
from unit.tokenization.trained_tokenizers import KINDS, token_names, write_folder


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FastTokenizer]:
    root: Path = tmp_path_factory.mktemp("tokenizers")
    return {kind: FastTokenizer.from_folder(write_folder(root / kind, kind, token_names())) for kind in KINDS}
