"""After a fork the child uses its copy of a queue, whoever held what in the parent."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

BEGINNING = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork while there are threads
from queuestream.mixed_queue import MixedQueue

def in_child(do):
    child = os.fork()
    if not child:
        code = 1
        try:
            do()
            code = 0
        except BaseException as error:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def run(program: str) -> None:
    """Run a program in a process of its own, where a fork harms nobody."""
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_lock_was_held_at_the_fork() -> None:
    """Another thread of the parent holds the lock; in the child nobody releases it (promise 8)."""
    run("""
        queue = MixedQueue(2)
        queue.sync_q.put("item")
        held, may_release = threading.Event(), threading.Event()

        def hold():
            with queue._buffer._lock:
                held.set()
                may_release.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(20)

        def use():
            assert queue.sync_q.get(timeout=5) == "item"
            queue.sync_q.put("more")
            assert queue.sync_q.get_nowait() == "more"
            queue.sync_q.task_done()
            queue.sync_q.task_done()
            queue.sync_q.join()
            queue.close()

        code = in_child(use)
        may_release.set()
        holder.join()
        assert queue.sync_q.get_nowait() == "item"  # the parent's is untouched
        sys.exit(code)
    """)


def test_the_lock_was_held_by_the_thread_that_forks() -> None:
    """A finalizer forks in the middle of an operation: the child releases a lock it never took."""
    run("""
        queue = MixedQueue(2)
        parent = os.getpid()
        codes = []

        def fork(_):
            child = os.fork()
            if child:
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            return []

        try:
            queue._buffer._request(fork)  # carried out under the lock
            queue.sync_q.put("item")
            assert queue.sync_q.get_nowait() == "item"
        finally:
            if os.getpid() != parent:
                os._exit(sys.exc_info()[0] is not None)
        sys.exit(codes[0])
    """)


def test_nobody_waits_in_the_child() -> None:
    """The parent's waiters stand in the child's lines, and take the wake-ups (promise 8)."""
    run("""
        queue = MixedQueue(1)
        getter = threading.Thread(target=queue.sync_q.get)
        getter.start()
        while not len(queue._buffer._getters):
            pass

        def use():
            got = []
            mine = threading.Thread(target=lambda: got.append(queue.sync_q.get()))
            mine.start()
            while not len(queue._buffer._getters):
                pass
            queue.sync_q.put("for the child")
            mine.join(5)
            assert got == ["for the child"]

        code = in_child(use)
        assert getter.is_alive()
        queue.sync_q.put("for the parent")
        getter.join()
        sys.exit(code)
    """)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_in_the_child(backend: str) -> None:
    """The bell of the parent's loop was rung at the fork, and the child's relies on it."""
    run(f"""
        import anyio

        queue = MixedQueue(1)

        async def main():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.async_q.get)
                while not len(queue._buffer._getters):
                    await anyio.sleep(0)
                queue.sync_q.put("for the parent")  # trio: rung, and not answered
                return in_child(use)

        def use():
            def in_loop():
                async def get():
                    return await other.async_q.get()

                other = MixedQueue()
                def put():
                    while not len(other._buffer._getters):
                        pass
                    other.sync_q.put("item")
                threading.Thread(target=put).start()
                assert anyio.run(get, backend="{backend}") == "item"

            thread = threading.Thread(target=in_loop)
            thread.start()
            thread.join(5)
            assert not thread.is_alive()

        sys.exit(anyio.run(main, backend="{backend}"))
    """)
