"""One engine for all tests of this folder."""

import asyncio
from collections.abc import Iterator

import pytest

from kilotron.apis.assembly import Assembly, assemble
from kilotron.apis.engine_facts import read_engine_facts
from kilotron.apis.llm import MegatronLLM
from kilotron.config import InferenceConfig
from kilotron.coordinator.local_client import LocalClient
from serving import Service


@pytest.fixture(scope="session")
def assembly() -> Assembly:
    return assemble(None, None, InferenceConfig(num_threads=1))


@pytest.fixture(scope="session")
def service(assembly: Assembly) -> Iterator[Service]:
    facts = read_engine_facts(assembly)
    assert assembly.tokenizer is not None
    client = LocalClient(assembly.engine, facts)
    yield Service(client, facts, assembly.tokenizer)
    asyncio.run(client.close())


@pytest.fixture(scope="session")
def llm() -> Iterator[MegatronLLM]:
    """The same model, asked directly."""
    with MegatronLLM(inference_config=InferenceConfig(num_threads=1)) as llm:
        yield llm
