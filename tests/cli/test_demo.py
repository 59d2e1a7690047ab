"""``queuestream demo`` and the model it streams."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

import pytest
from langchain_core.language_models import BaseChatModel

from queuestream.demo import PASSAGE, DemoChatModel, model
from tests.cli.commands import queuestream

if TYPE_CHECKING:
    from tests.cli.commands import Call

CLOSING = re.compile(
    r"^-- \d+ tokens in \d+\.\d\d s, the first after \d+\.\d{3} s, \d+\.\d tokens/s$", re.MULTILINE
)


def test_it_prints_the_passage_once_through_each_loop() -> None:
    done = queuestream("demo", "--pace", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(PASSAGE) == 2
    assert len(CLOSING.findall(done.stdout)) == 2
    sync, other = done.stdout.split("# async for", 1)
    assert sync.startswith("# for ")
    assert PASSAGE in other


@pytest.mark.parametrize("loop, heading", [("for", "# for "), ("async-for", "# async for ")])
def test_one_of_the_loops_can_be_picked(call: Call, loop: str, heading: str) -> None:
    done = call("demo", "--pace", "0", "--iterate", loop)
    assert done.code == 0
    assert done.out.startswith(heading)
    assert done.out.count(PASSAGE) == 1


@pytest.mark.parametrize("pace", ["-1", "nan", "inf", "soon"])
def test_a_pace_that_is_none(call: Call, pace: str) -> None:
    done = call("demo", f"--pace={pace}")
    assert done.code == 2
    assert "--pace" in done.err


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "queuestream", "demo", "--pace=0", "--iterate=for"],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert PASSAGE in done.stdout


def test_the_installed_command_knows_its_version() -> None:
    command = shutil.which("queuestream", path=sysconfig.get_path("scripts"))
    if command is None:
        pytest.skip("the package is not installed here")
    said = subprocess.check_output([command, "--version"], encoding="utf-8")
    assert said.split() == ["queuestream", importlib.metadata.version("queuestream")]


class TestTheModel:
    def test_it_is_a_chat_model_at_a_natural_pace(self) -> None:
        assert isinstance(model, BaseChatModel)
        assert model.pace == pytest.approx(0.03)

    def test_all_ways_to_call_it_agree(self) -> None:
        burst = DemoChatModel(pace=0)

        async def collect() -> list[str]:
            return [chunk.text async for chunk in burst.astream("")]

        streamed = [chunk.text for chunk in burst.stream("")]
        assert "".join(streamed) == PASSAGE
        assert len(streamed) > 100
        assert asyncio.run(collect()) == streamed
        assert burst.invoke("").text == PASSAGE
        assert asyncio.run(burst.ainvoke("")).text == PASSAGE

    def test_it_tells_its_usage(self) -> None:
        burst = DemoChatModel(passage="one two three", pace=0)
        told = {"input_tokens": 2, "output_tokens": 3, "total_tokens": 5}
        assert burst.invoke("two words").usage_metadata == told
        assert sum(chunk.usage_metadata is not None for chunk in burst.stream("x")) == 1
        assert asyncio.run(burst.ainvoke("two words")).usage_metadata == told

    def test_it_obeys_stop(self) -> None:
        burst = DemoChatModel(passage="one two three two", pace=0)
        assert burst.invoke("", stop=["three", "two"]).text == "one "
        assert burst.invoke("", stop=["one"]).text == ""

    @pytest.mark.parametrize("pace", [-0.1, float("nan"), float("inf")])
    def test_it_refuses_a_pace_that_is_none(self, pace: float) -> None:
        with pytest.raises(ValueError, match="pace"):
            DemoChatModel(pace=pace)

    def test_it_waits_between_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waits: list[float] = []
        monkeypatch.setattr("time.sleep", waits.append)
        paced = DemoChatModel(passage="one two", pace=7)
        assert paced.invoke("").text == "one two"
        assert waits == [7, 7]

    def test_its_async_side_can_be_cancelled_while_it_waits(self) -> None:
        async def cancel() -> None:
            task = asyncio.create_task(DemoChatModel(pace=3600).ainvoke(""))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancel())
