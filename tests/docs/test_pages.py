"""Each code block of the README and the docs is a file, or runs, or is looked at."""

from __future__ import annotations

import os

import pytest
from sybil import Document

from tests.docs.pages import PAGES, Blocks, Missing, excerpt_of, read, skip_for


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_in_a_page_is_proved(page: str) -> None:
    missing: list[Missing] = []
    document = read(page)
    for block in document.examples():
        try:
            block.evaluate()
        except Missing as answer:  # noqa: PERF203 - each is looked at
            missing.append(answer)
        except NameError:  # what such a block would have made
            if not missing:
                raise
    if relay := document.namespace.get("relay"):
        relay.close()
    if os.environ.get("TOX_ENV_NAME") == "web":  # which has everything
        assert missing == []
    skip_for(missing)


def prove(text: str) -> None:
    """Prove the blocks of a page with this text."""
    document = Document(text, "page.md")
    for region in Blocks()(document):
        document.add(region)
    document.namespace.update(read("README.md").namespace)
    for block in document.examples():
        block.evaluate()


@pytest.mark.parametrize(
    "text",
    [
        "```python\n1 / 0\n```\n",
        "```python\nx =\n```\n",
        "```python\nprint('a')\n```\n\n```text\nb\n```\n",
        "```python\nprint('not what the model says')\n```\n",
        "<!-- file: examples/script.py -->\n```python\nprint('not in it')\n```\n",
        "```console\nqueuestream demo --speed 3\n```\n",
        '```console\npip install "queuestream[telegraph]"\n```\n',
        "```console\ntox -e nowhere\n```\n",
        "```console\npython examples/nothing.py\n```\n",
        "```console\nrm -r docs\n```\n",
        "```toml\na = \n```\n",
        "```yaml\na: b\n```\n",
        "```\nwithout a language\n```\n",
    ],
)
def test_a_block_that_is_wrong_fails(text: str) -> None:
    """The canary: a check that passes everything proves nothing."""
    with pytest.raises((AssertionError, ArithmeticError, SyntaxError, ValueError)):
        prove(text)


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint('a')\n```\n\n```text\na\n```\n",
        "```python\nasync def f():\n    return 3\n\n\nassert await f() == 3\n```\n",
        "```python\nx = 1\n```\n\n```python\nassert x == 1\n```\n",
        "```console\npython3 -m venv .venv && .venv/bin/pip install . # all\n```\n",
    ],
)
def test_a_block_that_is_right_passes(text: str) -> None:
    prove(text)


@pytest.mark.parametrize(
    "block, is_part",
    [("b\n", True), ("a\nb\n", True), ("a\n...\nc\n", True), ("a\nc\n", False), ("c\na\n", False)],
)
def test_an_excerpt(block: str, *, is_part: bool) -> None:
    assert excerpt_of(block, "a\nb\nc\n") is is_part
