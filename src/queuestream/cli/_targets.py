"""From a word of the command line to what it names: a target, a model, an input."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from typing import Any

from queuestream.cli._ends import UsageError, say

__all__ = ["load_model", "load_target", "read_input"]


def load_target(path: str) -> Any:
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(f"{path!r} is no import path; expected module:attribute")
    if os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"there is no module {error.name!r} to import") from error
        raise UsageError(f"module {module_name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"module {module_name!r} cannot be imported: {say(error)}") from error
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise UsageError(f"{path!r} leads nowhere: {error}") from error


def load_model(name: str) -> Any:
    try:
        from langchain.chat_models import init_chat_model  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name != "langchain":
            raise UsageError(f"langchain cannot be imported: {error}") from error
        raise UsageError(
            "--model needs the package langchain, which is not installed: pip install langchain"
        ) from error
    try:
        return init_chat_model(name)
    except ImportError as error:
        raise UsageError(f"{error}") from error  # LangChain names the package to install
    except Exception as error:
        raise UsageError(f"no model {name!r}: {say(error)}") from error


def read_input(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict | list) else text
