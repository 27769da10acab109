"""What an operator sets for agents: models and their providers, prices, budgets, sandboxes. The section ``agents``.

It is read through ``Settings`` like all else: files, then ``CALLBOARD_AGENTS__…`` variables, each with its source.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, model_validator

from callboard.agents.sandbox_settings import SandboxSettings
from callboard.runtime import config_here
from callboard.runtime.config import Settings
from callboard.runtime.config_block import Shown
from callboard.runtime.config_field import Bytes, Count, Seconds, SecondsOrZero, Section, refuse

SECTION: Final = "agents"
# The variables that providers tell their users to set. They count less than any setting of our own.
VARIABLES: Final = {
    "OPENAI_API_KEY": "providers.openai.api_key",
    "OPENAI_BASE_URL": "providers.openai.base_url",
    "ANTHROPIC_API_KEY": "providers.anthropic.api_key",
}

_URL = re.compile(r"https?://[^\s@/?#]+(/[^\s@?#]*)?$")
_PROVIDER = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Usd = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class ProviderSettings(Section):
    """How to reach one provider. What is not set is the provider's own default.

    Attributes:
        kind: ``openai`` speaks the OpenAI protocol to ``base_url``; ``litellm`` goes through the extra ``llm``.
        base_url: Up to and including ``/v1``.
        api_key: Secret. ``${NAME:-}`` in a file takes it from a variable; ``…__API_KEY_FILE`` from a file.
        headers: Sent with each request; their values are secret.
        timeout_s: Longest time of one call, its retries included.
        idle_s: Longest silence in the middle of a stream.
        connect_s: Longest time until the connection stands.
        attempts: Requests of one call that fails in a way that passes, the first included.
        max_wait_s: A provider that asks for a longer pause than this is not waited for.
        answer_max_bytes: Longest answer, as it comes over the line.
        context_tokens, max_output_tokens: What its models hold, where that is not known here.
        has_tools, has_schema: Whether its models call tools, and keep to a JSON Schema.
        is_local: Whether it runs on the user's own machines and costs nothing.
    """

    kind: Literal["openai", "litellm"] = "openai"
    base_url: str | None = None
    api_key: SecretStr | None = None
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    timeout_s: Seconds = 600.0
    idle_s: Seconds = 120.0
    connect_s: Seconds = 10.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    max_wait_s: SecondsOrZero = 30.0
    answer_max_bytes: Bytes = 32 << 20
    context_tokens: Count | None = None
    max_output_tokens: Count | None = None
    has_tools: bool | None = None
    has_schema: bool | None = None
    is_local: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.base_url is not None and not _URL.match(self.base_url):
            # said without the value, which may hold a password
            refuse("base_url", "must look like http://host:port/v1, without user and password; those go into headers")
        return self


class PriceSettings(Section):
    """Prices of one model, in US dollars for a million tokens.

    Attributes:
        model: ``provider/model``; ``provider/*`` stands for all models of a provider that have no line of their own.
        input_usd, output_usd: For the prompt and for the answer.
        cached_usd: For the part of the prompt that the provider had seen before; default: ``input_usd``.
    """

    model: Annotated[str, Field(min_length=3)]
    input_usd: Usd | None = None
    output_usd: Usd | None = None
    cached_usd: Usd | None = None


class PricesSettings(Section):
    """Prices in place of, or beside, those that are built in.

    Attributes:
        mode: ``merge`` changes the named numbers of a model and keeps its others, ``override`` takes a model's line as
            it stands here, ``replace`` knows no price but these.
        models: One line for each model.
    """

    mode: Literal["merge", "override", "replace"] = "merge"
    models: tuple[PriceSettings, ...] = ()


class Allowance(Section):
    """How much one scope may spend; None is unlimited, 0 nothing."""

    tokens: Tokens | None = None
    usd: Usd | None = None
    seconds: SecondsOrZero | None = None


class BudgetSettings(Section):
    """Limits of scopes that were given none.

    Attributes:
        run: Of each run.
        agent_day: Of each type of agent on each day (UTC).
        warn_share, critical_share: Shares of a limit at which a warning, and one that a person should see, is given.
    """

    run: Allowance = Allowance()
    agent_day: Allowance = Allowance()
    warn_share: Share = 0.8
    critical_share: Share = 0.95

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.critical_share < self.warn_share:
            refuse("critical_share", f"must be at least warn_share ({self.warn_share:g}), is {self.critical_share:g}")
        return self


class AgentSettings(Section):
    """The section ``agents``.

    Attributes:
        model: Model of agents that name none, ``provider/model``; "" if none was chosen.
        providers: By the name that stands before the slash.
        prices: Changes to the built-in prices.
        budgets: Default limits.
        sandbox: Default sandbox and upper limits.
    """

    model: str = ""
    providers: dict[Annotated[str, Field(pattern=_PROVIDER)], ProviderSettings] = Field(default_factory=dict)
    prices: PricesSettings = PricesSettings()
    budgets: BudgetSettings = BudgetSettings()
    sandbox: SandboxSettings = SandboxSettings()

    @classmethod
    def of(cls, settings: Settings) -> AgentSettings:
        """Return the section of settings that were loaded.

        Raises:
            ConfigError: If it is wrong; one line for each mistake, with source and key.
        """
        return settings.block(SECTION, AgentSettings, variables=VARIABLES)

    @staticmethod
    def shown(settings: Settings) -> list[Shown]:
        """Return every setting of the section as text with its origin, secrets hidden.

        Raises:
            ConfigError: As ``of``.
        """
        return settings.shown_block(SECTION, AgentSettings, variables=VARIABLES)

    @classmethod
    def load(cls) -> AgentSettings:
        """Return the section as this process's settings have it: those of its worker, else files and environment.

        Raises:
            ConfigError: As ``of``.
        """
        return cls.of(config_here.settings())
