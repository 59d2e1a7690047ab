"""The real clients of model providers, as the tests use them.

Each has HTTP clients of its own, so that no test finds the connections of another one's
loop (fact 22).  langchain-anthropic keeps one a base URL, and each scenario has its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient
from pydantic import SecretStr

if TYPE_CHECKING:
    from tests.support.server import Scenario

__all__ = ["anthropic_client", "openai_client"]


def openai_client(scenario: Scenario, **options: Any) -> ChatOpenAI:
    """Return LangChain's client for OpenAI; it does not try again on its own account."""
    return ChatOpenAI(
        model="m",
        base_url=scenario.openai_url,
        api_key=SecretStr("none"),
        max_retries=0,
        # To load the certificates, which loopback needs none of, takes longer than a test.
        http_client=DefaultHttpxClient(verify=False),
        http_async_client=DefaultAsyncHttpxClient(verify=False),
        **options,
    )


def anthropic_client(scenario: Scenario, **options: Any) -> ChatAnthropic:
    """Return LangChain's client for Anthropic; it does not try again on its own account."""
    return ChatAnthropic(
        model_name="m",
        base_url=scenario.url,
        api_key=SecretStr("none"),
        max_retries=0,
        timeout=None,
        stop=None,
        **options,
    )
