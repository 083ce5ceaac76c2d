"""The queue of chains to reconcile."""

import asyncio

from modelchain_operator.kubernetes.key import Key
from modelchain_operator.work_queue import GIVES_WAY_SECONDS, KeyQueue
from tests import processes
from tests.clock import Clock

A, B, C = (Key("default", name) for name in "abc")


async def comes_after_its_pass(queue: KeyQueue, key: Key) -> None:
    """The key, whose pass is under way, has another turn when that has ended and not before."""
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.done(key)
    assert (await waiting or (None,))[0] == key


def test_a_key_that_is_added_often_has_one_turn() -> None:
    async def scenario() -> None:
        queue = KeyQueue()
        for key in (A, B, A, A):
            queue.add(key)
        assert len(queue) == 2
        assert [(await taken(queue)), (await taken(queue))] == [A, B]
        assert len(queue) == 0

    asyncio.run(scenario())


def test_a_key_has_one_pass_at_a_time_and_another_one_if_it_was_added_meanwhile() -> None:
    async def scenario() -> None:
        queue = KeyQueue()
        queue.add(A)
        assert await taken(queue) == A
        queue.add(A)
        queue.add(B)
        assert await taken(queue) == B
        await comes_after_its_pass(queue, A)

    asyncio.run(scenario())


def test_a_later_turn_comes_when_it_is_due_and_the_earliest_wish_counts() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = KeyQueue(clock)
        queue.add_after(A, 30)
        queue.add_after(A, 10)
        queue.add_after(A, 20)
        clock.now += 9
        queue.add(B)
        assert await taken(queue) == B
        clock.now += 1
        assert await taken(queue) == A
        queue.done(A)
        clock.now += 100
        queue.add(B)
        queue.done(B)
        assert await taken(queue) == B
        assert len(queue) == 0

    asyncio.run(scenario())


def test_what_is_urgent_has_its_turn_first() -> None:
    async def scenario() -> None:
        queue = KeyQueue(Clock())
        queue.add(A)
        queue.add(B, urgent=True)
        queue.add(C, urgent=True)
        assert [(await taken(queue)), (await taken(queue)), (await taken(queue))] == [B, C, A]

    asyncio.run(scenario())


def test_a_key_that_waits_becomes_urgent_and_stays_so() -> None:
    async def scenario() -> None:
        queue = KeyQueue(Clock())
        queue.add(A)
        queue.add(B)
        queue.add(B, urgent=True)
        queue.add(B)
        assert len(queue) == 2
        assert [(await taken(queue)), (await taken(queue))] == [B, A]
        queue.add(A)
        queue.add(B)
        queue.add(B, urgent=True)
        queue.add(B)
        for key in (A, B):
            queue.done(key)
        assert [(await taken(queue)), (await taken(queue))] == [B, A], "also if its pass was under way"

    asyncio.run(scenario())


def test_what_can_wait_does_so_no_longer_than_its_patience() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = KeyQueue(clock)
        queue.add(A)
        clock.now += GIVES_WAY_SECONDS - 1
        queue.add(B, urgent=True)
        assert await taken(queue) == B
        queue.done(B)
        clock.now += 2
        queue.add(B, urgent=True)
        assert [(await taken(queue)), (await taken(queue))] == [A, B]

    asyncio.run(scenario())


def test_a_key_that_is_due_wakes_who_waits() -> None:
    async def scenario() -> None:
        queue = KeyQueue()
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.add_after(A, 3600)
        queue.add_after(B, 0.02)
        async with asyncio.timeout(processes.PATIENCE_SECONDS):
            taken_now = await waiting
        assert taken_now is not None
        assert taken_now[0] == B

    asyncio.run(scenario())


def test_one_who_was_told_to_stop_leaves_the_turn_to_another() -> None:
    async def scenario() -> None:
        queue = KeyQueue()
        first, second = (asyncio.create_task(queue.get()) for _ in range(2))
        await asyncio.sleep(0)
        queue.add(A)  # wakes the first
        first.cancel()
        async with asyncio.timeout(processes.PATIENCE_SECONDS):
            taken_now = await second
        assert taken_now is not None
        assert taken_now[0] == A

    asyncio.run(scenario())


def test_a_turn_now_takes_the_place_of_a_later_one() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = KeyQueue(clock)
        queue.add_after(A, 10)
        queue.add(A)
        assert await taken(queue) == A
        queue.done(A)
        clock.now += 20
        queue.add(B)
        assert await taken(queue) == B
        assert len(queue) == 0

    asyncio.run(scenario())


def test_it_says_how_long_a_key_has_waited() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = KeyQueue(clock)
        queue.add(A)
        clock.now += 3
        assert await queue.get() == (A, 3)

    asyncio.run(scenario())


def test_a_forgotten_key_has_no_turn() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = KeyQueue(clock)
        queue.add(A)
        queue.add_after(B, 1)
        queue.forget(A)
        queue.forget(B)
        clock.now += 2
        queue.add(C)
        assert await taken(queue) == C
        assert len(queue) == 0

    asyncio.run(scenario())


def test_turns_that_are_due_far_away_and_not_wanted_any_more_take_no_memory() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = KeyQueue(clock)
        for _ in range(
            10_000
        ):  # each pass leaves a wish for the far future, and something wakes the chain before
            queue.add_after(A, 86_400)
            queue.add(A)
            assert await taken(queue) == A
            queue.done(A)
            clock.now += 1
        queue.add_after(B, 10)
        assert len(queue._heap) < 200
        clock.now += 10
        assert await taken(queue) == B

    asyncio.run(scenario())


def test_closing_ends_all_who_wait() -> None:
    async def scenario() -> None:
        queue = KeyQueue()
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0)
        queue.close()
        assert await asyncio.gather(*waiting) == [None, None, None]

    asyncio.run(scenario())


async def taken(queue: KeyQueue) -> Key:
    """The next key."""
    found = await asyncio.wait_for(queue.get(), processes.PATIENCE_SECONDS)
    assert found is not None
    return found[0]
