"""Answers that outlive their connection: ``/v1/answers/``, over a real Redis."""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
import redis
from langchain_core.runnables import RunnableLambda

from tests.relay.servers import RedisServer, relays
from tests.serve.conftest import ask, chunks_of, text_of
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.models import ScriptedChatModel, tokens
from tests.web.test_response import ContextOverflowError, ProviderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.serve.conftest import Served

    Serve = Callable[..., Served]

WORDS = tokens(12)
WHOLE = "".join(WORDS)


@pytest.fixture
def make_relay(redis_url: str) -> Iterator[Callable[..., Any]]:
    """Make relays as several processes have them: each its own, for the same keys."""
    with relays(redis_url) as make:
        yield make


@pytest.fixture
def gated() -> ScriptedChatModel:
    return ScriptedChatModel(tokens=WORDS, gate=Gate())


def address(served: Served, name: str = "") -> str:
    return f"{served.url}/v1/answers/{name or uuid.uuid4()}"


def put(url: str, **headers: str) -> httpx.Response:
    return httpx.put(url, json=ask(), headers=headers, timeout=10)


def ids_of(body: str) -> list[str]:
    return [line[4:] for line in body.split("\n") if line.startswith("id: ")]


@contextmanager
def reading(url: str, method: str = "PUT", **headers: str) -> Iterator[Any]:
    """Read an answer line by line."""
    body = ask() if method == "PUT" else None
    with httpx.stream(method, url, json=body, headers=headers, timeout=10) as response:
        assert response.is_success, response.read()
        yield response.iter_lines()


def read_tokens(lines: Any, count: int) -> tuple[str, str]:
    """Read so many tokens; their text, and the id of the last."""
    text, last, found = "", "", 0
    for line in lines:
        if line.startswith("id: "):
            last = line[4:]
        if match := re.search(r'"content":"(t\d+ )"', line):
            text += match[1]
            found += 1
            if found == count:
                break
    return text, last


def code_of(response: httpx.Response) -> tuple[int, Any]:
    return response.status_code, response.json()["error"]["code"]


def test_asking_again_reads_what_was_asked_and_asks_no_model(make_relay: Any, serve: Serve) -> None:
    model = ScriptedChatModel(tokens=WORDS)
    served = serve(model, relay=make_relay(), name="kept")
    url = address(served)
    first, second = put(url), put(url)
    assert (first.status_code, second.status_code) == (201, 200)
    assert text_of(chunks_of(first.text)) == text_of(chunks_of(second.text)) == WHOLE
    assert text_of(chunks_of(httpx.get(url).text)) == WHOLE
    assert model.record.calls == 1
    assert httpx.get(f"{served.url}/v1/models").json()["data"][0]["keeps_answers"] is True
    served.wait_until_idle()


def test_every_event_is_a_place_to_go_on_from(make_relay: Any, serve: Serve) -> None:
    served = serve(ScriptedChatModel(tokens=WORDS), relay=make_relay())
    url = address(served)
    ids = list(dict.fromkeys(filter(None, ids_of(put(url).text))))
    assert len(ids) == len(WORDS)
    for place, last in enumerate(ids):
        rest = httpx.get(url, headers={"Last-Event-ID": last})
        assert text_of(chunks_of(rest.text)) == "".join(WORDS[place + 1 :])


def test_a_run_goes_on_without_its_client_and_is_read_in_another_process(
    make_relay: Any, serve: Serve, gated: ScriptedChatModel
) -> None:
    """Every token once, though three connections on two servers have carried them."""
    here, there = serve(gated, relay=make_relay()), serve(gated, relay=make_relay())
    name = str(uuid.uuid4())
    assert gated.gate is not None
    gated.gate.release(5)
    with reading(address(here, name)) as lines:
        text, last = read_tokens(lines, 3)
    gated.gate.release(3)
    with reading(address(there, name), "GET", **{"Last-Event-ID": last}) as lines:
        more, last = read_tokens(lines, 4)
    gated.gate.open()
    rest = put(address(there, name), **{"Last-Event-ID": last})
    assert rest.status_code == 200
    assert text + more + text_of(chunks_of(rest.text)) == WHOLE
    assert gated.record.calls == 1
    here.wait_until_idle()


def test_two_who_ask_at_once_share_one_run(
    make_relay: Any, serve: Serve, gated: ScriptedChatModel
) -> None:
    served = serve(gated, relay=make_relay())
    url = address(served)
    assert gated.gate is not None
    gated.gate.release(2)
    with reading(url) as one, reading(url) as other:
        gated.gate.open()
        assert read_tokens(one, len(WORDS)) == read_tokens(other, len(WORDS))
    assert gated.record.calls == 1


def test_a_stop_from_another_process_reaches_the_model_and_all_readers(
    make_relay: Any, serve: Serve, gated: ScriptedChatModel
) -> None:
    here, there = serve(gated, relay=make_relay()), serve(gated, relay=make_relay())
    name = str(uuid.uuid4())
    assert gated.gate is not None
    gated.gate.release(2)
    with reading(address(here, name)) as lines:
        read_tokens(lines, 2)
        told = httpx.delete(address(there, name)).json()
        assert told == {"id": name, "object": "answer", "stopped": True}
        gated.record.wait_until_finalized()
        assert '"code":"stopped"' in "".join(lines)
    assert gated.record.produced == 2
    assert httpx.delete(address(here, name)).json()["stopped"] is False
    again = put(address(here, name))
    assert again.status_code == 200
    assert "t1 " in again.text
    assert '"code":"stopped"' in again.text
    assert gated.record.calls == 1
    here.wait_until_idle()


def test_a_stop_may_come_before_the_question(make_relay: Any, serve: Serve) -> None:
    model = ScriptedChatModel(tokens=WORDS)
    served = serve(model, relay=make_relay())
    url = address(served)
    assert httpx.delete(url).json()["stopped"] is True
    assert code_of(put(url)) == (410, "stopped")
    assert model.record.calls == 0


@pytest.mark.parametrize(
    "name", ["short", "a" * 21, "a" * 65, "0123456789abcdef-0123.456789", "ä" * 30, "%00" * 30]
)
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_ids_that_can_be_guessed_or_are_none(
    make_relay: Any, serve: Serve, name: str, method: str
) -> None:
    served = serve(ScriptedChatModel(tokens=WORDS), relay=make_relay())
    body = ask() if method == "PUT" else None
    response = httpx.request(method, address(served, name), json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "id"


def test_wrong_and_unknown_places(make_relay: Any, serve: Serve) -> None:
    served = serve(ScriptedChatModel(tokens=WORDS), relay=make_relay(), token="sesame")
    key = {"Authorization": "Bearer sesame"}
    url = address(served)
    assert put(url).status_code == 401
    assert httpx.get(url).status_code == 401
    assert httpx.delete(url).status_code == 401
    assert code_of(httpx.get(url, headers=key)) == (404, "answer_not_found")
    assert httpx.get(url, headers={**key, "Last-Event-ID": "yesterday"}).status_code == 400
    assert put(url, **key, **{"Last-Event-ID": "yesterday"}).status_code == 400
    bad = httpx.put(url, json={"messages": []}, headers=key)
    assert bad.status_code == 400
    assert httpx.post(url, json=ask(), headers=key).status_code == 405
    foreign = put(url, **key, Origin="https://elsewhere.example")
    assert foreign.status_code == 403
    assert put(url, **key).status_code == 201
    after = "1-1"
    response = httpx.get(url, headers={**key, "Last-Event-ID": after})
    assert code_of(response) == (410, "answer_gone")
    head = httpx.head(url, headers=key)
    assert head.headers["content-type"].startswith("text/event-stream")


def test_without_a_relay_there_are_no_such_addresses(serve: Serve) -> None:
    served = serve(ScriptedChatModel(tokens=WORDS))
    assert put(address(served)).status_code == 404
    assert "keeps_answers" not in httpx.get(f"{served.url}/v1/models").json()["data"][0]


def test_an_answer_that_has_expired_can_be_asked_anew(
    make_relay: Any, serve: Serve, redis_url: str
) -> None:
    model = ScriptedChatModel(tokens=WORDS)
    served = serve(model, relay=make_relay())
    url = address(served)
    last = ids_of(put(url).text)[-1]
    with redis.Redis.from_url(redis_url) as client:  # what Redis does when the time is over
        client.delete(*client.keys(f"*{url.rpartition('/')[2]}*"))
    assert code_of(httpx.get(url)) == (404, "answer_not_found")
    again = put(url, **{"Last-Event-ID": last})
    assert again.status_code == 201
    assert last not in ids_of(again.text), "whoever is cut off comes back with it"
    assert text_of(chunks_of(again.text)) == WHOLE
    assert model.record.calls == 2


@pytest.mark.parametrize("fail_at", [0, 3], ids=["at once", "in the middle"])
def test_a_run_that_failed_is_begun_again_when_it_is_asked_again(
    make_relay: Any, serve: Serve, fail_at: int
) -> None:
    model = ScriptedChatModel(
        tokens=WORDS, failure=ConnectionError("no"), fail_at=fail_at, fail_calls=1
    )
    served = serve(model, relay=make_relay())
    url = address(served)
    failed = put(url)
    if fail_at:
        assert '"error":' in failed.text
        assert '"code":null' in failed.text
    else:
        assert failed.status_code >= 500
    served.wait_until_idle()
    good = put(url)
    assert good.status_code == 201
    shown = good.text.rpartition('"restart":2')[2]
    assert text_of(chunks_of(shown)) == WHOLE
    served.wait_until_idle()


@pytest.mark.parametrize(
    "failure, status",
    [
        (ProviderError(429, retry_after="7"), 429),
        (ProviderError(529), 503),
        (ProviderError(401), 502),
        (ContextOverflowError("secret"), 400),
        (ValueError("secret"), 500),
    ],
    ids=["429", "503", "502", "400", "500"],
)
def test_a_failure_before_the_first_token_is_the_status_of_a_plain_answer(
    make_relay: Any, serve: Serve, failure: Exception, status: int
) -> None:
    """In the process that writes, in any other, and where the run was begun again, in vain.

    Hazard: a client that would try again by itself takes a 500 for the last word.
    """
    model = ScriptedChatModel(tokens=WORDS, failure=failure, fail_at=0)
    here, there = serve(model, relay=make_relay()), serve(model, relay=make_relay())
    plain = httpx.post(f"{here.url}/v1/chat/completions", json=ask(stream=True))
    assert plain.status_code == status
    name = str(uuid.uuid4())
    for ask_one in (put, httpx.get):
        for served in (here, there):
            answer = ask_one(address(served, name))
            assert (answer.status_code, answer.json()) == (status, plain.json())
            assert answer.headers.get("retry-after") == plain.headers.get("retry-after")
            served.wait_until_idle()
    assert model.record.calls == 3


def test_a_model_that_takes_too_long(
    make_relay: Any, serve: Serve, gated: ScriptedChatModel
) -> None:
    """Its timeout is one in the process that writes, and told as one in any other."""
    here = serve(gated, relay=make_relay(), first_token_timeout=0.05)
    there = serve(gated, relay=make_relay())
    name = str(uuid.uuid4())
    for response in (put(address(here, name)), httpx.get(address(there, name))):
        assert response.status_code == 504
    gated.record.wait_until_finalized(calls=0)  # the time may be up before it is asked


def test_what_a_run_without_a_model_returns_is_kept_too(make_relay: Any, serve: Serve) -> None:
    def shout(question: str) -> str:
        return question.upper()

    served = serve(RunnableLambda(shout), relay=make_relay(), to_input="text")
    url = address(served)
    for response in (put(url), put(url), httpx.get(url)):
        chunks = chunks_of(response.text)
        assert text_of(chunks) == "HELLO"
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_restart_is_told_though_the_run_returns_all_that_it_says(
    make_relay: Any, serve: Serve
) -> None:
    """Hazard: what was shown before the run was begun again stays, and the answer is put to it."""
    tries = iter([False, True])

    def shout(question: str) -> str:
        if not next(tries):
            raise ValueError("not today")
        return question.upper()

    served = serve(RunnableLambda(shout), relay=make_relay(), to_input="text")
    url = address(served)
    assert put(url).status_code == 500
    served.wait_until_idle()
    told = put(url).text
    shown = told.rpartition('"restart":2')[2]
    assert told != shown
    assert text_of(chunks_of(shown)) == text_of(chunks_of(told)) == "HELLO"


def test_runs_and_readers_are_limited(
    make_relay: Any, serve: Serve, gated: ScriptedChatModel
) -> None:
    served = serve(gated, relay=make_relay(), max_streams=1)
    url = address(served)
    assert gated.gate is not None
    gated.gate.release(1)
    with reading(url) as lines:
        read_tokens(lines, 1)
        assert code_of(put(address(served))) == (429, "too_many_streams")
        assert code_of(httpx.get(url)) == (429, "too_many_streams")
    eventually(lambda: not gated.gate or gated.gate.waiting == 1)
    assert code_of(put(address(served))) == (429, "too_many_streams")  # it goes on, unread
    gated.gate.open()
    served.wait_until_idle()
    assert put(address(served)).status_code == 201


def test_a_reader_too_many_asks_no_model(
    make_relay: Any, serve: Serve, gated: ScriptedChatModel
) -> None:
    """Hazard: the run begins, and then there is no place for whoever wanted it."""
    served = serve(gated, relay=make_relay(), max_streams=2)
    url = address(served)
    assert gated.gate is not None
    gated.gate.release(1)
    with reading(url) as one, reading(url) as other:
        read_tokens(one, 1)
        read_tokens(other, 1)
        assert code_of(put(address(served))) == (429, "too_many_streams")
        assert gated.record.calls == len(served.app.state.runs) == 1
        gated.gate.open()
    served.wait_until_idle()


def test_a_server_that_ends_tells_its_readers_to_ask_another(
    make_relay: Any, serve: Serve, gated: ScriptedChatModel
) -> None:
    here, there = serve(gated, relay=make_relay()), serve(gated, relay=make_relay())
    name = str(uuid.uuid4())
    assert gated.gate is not None
    gated.gate.release(3)
    with (
        reading(address(here, name)) as lines,
        reading(address(there, name), "GET") as others,
    ):
        text, last = read_tokens(lines, 3)
        read_tokens(others, 3)
        here.stop()
        assert '"code":"shutting_down"' in "".join(lines)
        assert '"code":"interrupted"' in "".join(others)
    gated.record.wait_until_finalized()
    assert text == "t0 t1 t2 "
    gated.gate.open()
    again = put(address(there, name), **{"Last-Event-ID": last})
    assert again.status_code == 201
    chunks = chunks_of(again.text)
    assert [chunk["restart"] for chunk in chunks if "restart" in chunk] == [2]
    assert text_of(chunks) == WHOLE
    there.wait_until_idle()


class Slow:
    """A relay whose answers are held up until so many wait for them."""

    def __init__(self, relay: Any, parties: int) -> None:
        self._relay = relay
        self._parties = parties
        self._all_are_here = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._relay, name)

    async def status(self, id: str) -> str:
        found: str = await self._relay.status(id)
        self._parties -= 1
        if not self._parties:
            self._all_are_here.set()
        await self._all_are_here.wait()
        return found


def test_two_who_find_nothing_at_once_ask_the_model_once(make_relay: Any) -> None:
    """Hazard: both have heard that nobody has asked before either of them begins."""
    from queuestream.web.serve import create_app  # noqa: PLC0415 - an extra

    model = ScriptedChatModel(tokens=WORDS)
    path = f"/v1/answers/{uuid.uuid4()}"

    async def ask_twice() -> list[httpx.Response]:
        slow: Any = Slow(make_relay(), parties=2)
        app = create_app(model, relay=slow)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.put(path, json=ask()) for _ in range(2)))

    answers = asyncio.run(ask_twice())
    assert sorted(answer.status_code for answer in answers) == [200, 201]
    assert [text_of(chunks_of(answer.text)) for answer in answers] == [WHOLE, WHOLE]
    assert model.record.calls == 1


class Late:
    """A relay that begins to write only when it was asked to stop."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self.is_publishing = False
        self._was_asked_to_stop = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._relay, name)

    async def publish(self, *args: Any, **options: Any) -> Any:
        self.is_publishing = True
        await self._was_asked_to_stop.wait()
        return await self._relay.publish(*args, **options)

    async def stop(self, id: str) -> bool:
        is_stopped: bool = await self._relay.stop(id)
        self._was_asked_to_stop.set()
        return is_stopped


def test_stopped_while_a_run_that_failed_begins_anew(
    make_relay: Any, gated: ScriptedChatModel
) -> None:
    """Promise 4.  Hazard: it is over still when the stop comes, and then goes to its end."""
    from queuestream.web.serve import create_app  # noqa: PLC0415 - an extra

    path = f"/v1/answers/{uuid.uuid4()}"

    async def ask_and_stop() -> tuple[httpx.Response, httpx.Response]:
        failing = ScriptedChatModel(tokens=WORDS, failure=ConnectionError("no"), fail_at=0)
        transport = httpx.ASGITransport(create_app(failing, name="m", relay=make_relay()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.put(path, json=ask())).status_code == 502
        late: Any = Late(make_relay())
        transport = httpx.ASGITransport(create_app(gated, name="m", relay=late))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            putting = asyncio.ensure_future(client.put(path, json=ask()))
            await eventually_async(lambda: late.is_publishing)
            return await client.delete(path), await putting

    deleted, answer = asyncio.run(ask_and_stop())
    assert deleted.json()["stopped"] is True
    assert '"stopped"' in answer.text, answer.text
    assert gated.record.produced == 0


def test_a_server_that_ends_while_redis_is_away(
    make_relay: Any, serve: Serve, gated: ScriptedChatModel, tmp_path: Path
) -> None:
    """Hazards: its last words wait for Redis, or are left behind as a task that nobody awaits."""
    with RedisServer(tmp_path) as redis:
        served = serve(gated, relay=make_relay(redis.url, outage=0.1))
        assert gated.gate is not None
        gated.gate.release(1)
        with reading(address(served)) as lines:
            read_tokens(lines, 1)
            redis.kill()
            served.app.state.runs.close_all()
            assert '"code":"shutting_down"' in "".join(lines)
        served.wait_until_idle()
    gated.record.wait_until_finalized()


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_redis_is_away(make_relay: Any, serve: Serve, method: str) -> None:
    model = ScriptedChatModel(tokens=WORDS)
    served = serve(model, relay=make_relay("redis://127.0.0.1:9", outage=0.1))
    body = ask() if method == "PUT" else None
    response = httpx.request(method, address(served), json=body)
    assert code_of(response) == (503, "relay_unavailable")
    assert model.record.calls == 0
    assert not len(served.app.state.runs)


def test_plain_clients_are_served_as_ever(make_relay: Any, serve: Serve) -> None:
    """A connection is their answer, with and without a relay."""
    gated = ScriptedChatModel(tokens=WORDS, gate=Gate(1))
    served = serve(gated, relay=make_relay())
    url = f"{served.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=ask(stream=True), timeout=10) as response:
        assert read_tokens(response.iter_lines(), 1)[0] == "t0 "
    gated.record.wait_until_finalized()
    assert gated.record.produced == 1


async def _ask_on_this_loop(app: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.put(f"/v1/answers/{uuid.uuid4()}", json=ask())


def test_only_asyncio_keeps_answers(make_relay: Any) -> None:
    from queuestream.web.serve import create_app  # noqa: PLC0415 - an extra

    model = ScriptedChatModel(tokens=WORDS)
    app = create_app(model, relay=make_relay())
    refused = anyio.run(_ask_on_this_loop, app, backend="trio")
    assert refused.status_code == 501
    assert model.record.calls == 0
