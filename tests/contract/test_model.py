"""What every model does, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import pytest

from callboard.agents.contract.model import (
    CODES,
    AskingModelContract,
    ModelContract,
    Part,
    ToldModelContract,
)
from callboard.agents.llm.base import Model
from callboard.agents.llm.extractive import Extractive
from tests.support.models import REFUSALS, litellm, openai, script


def test_each_refusal_of_a_provider_is_played() -> None:
    assert tuple(REFUSALS) == CODES


class TestOpenai(AskingModelContract):
    def stage(self, parts: Sequence[Part]) -> AbstractAsyncContextManager[Model]:
        return openai(parts)


# what litellm's dependencies warn of is none of ours
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(180)
class TestLitellm(AskingModelContract):
    def stage(self, parts: Sequence[Part]) -> AbstractAsyncContextManager[Model]:
        return litellm(parts)


class TestScripted(ToldModelContract):
    def stage(self, parts: Sequence[Part]) -> AbstractAsyncContextManager[Model]:
        return script(parts)


class TestExtractive(ModelContract):
    def make(self, parts: Sequence[Part]) -> Model:
        return Extractive()
