"""The queue of chains that want a pass."""

import asyncio

from modelchain_operator.queue import Key, KeyQueue

A, B = Key("default", "a"), Key("default", "b")


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


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


def test_what_is_wanted_when_idle_comes_after_all_else() -> None:
    async def scenario() -> None:
        queue = KeyQueue(Clock())
        queue.add_when_idle(A, 10)
        queue.add(B)
        assert len(queue) == 1
        assert [(await taken(queue)), (await taken(queue))] == [B, A]
        queue.done(A)
        queue.add_when_idle(A, 10)
        queue.add(A)
        assert await taken(queue) == A
        queue.done(A)
        queue.done(B)
        queue.add_when_idle(B, 10)
        queue.forget(B)
        queue.add(A)
        assert await taken(queue) == A
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        assert not waiting.done(), "each of these wishes was for one turn"
        queue.close()
        assert await waiting is None

    asyncio.run(scenario())


def test_what_is_wanted_when_idle_comes_in_time_though_it_is_never_idle() -> None:
    async def scenario() -> None:
        clock = Clock()
        queue = KeyQueue(clock)
        queue.add_when_idle(A, 10)
        for _ in range(9):
            clock.now += 1
            queue.add(B)
            assert await taken(queue) == B
            queue.done(B)
        clock.now += 1
        queue.add(B)
        assert {(await taken(queue)), (await taken(queue))} == {A, B}

    asyncio.run(scenario())


def test_what_is_wanted_when_idle_waits_for_the_pass_under_way() -> None:
    async def scenario() -> None:
        queue = KeyQueue(Clock())
        queue.add(A)
        assert await taken(queue) == A
        queue.add_when_idle(A, 10)
        await comes_after_its_pass(queue, A)

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
        queue.add(Key("default", "c"))
        assert await taken(queue) == Key("default", "c")
        assert len(queue) == 0

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
    found = await asyncio.wait_for(queue.get(), 10)
    assert found is not None
    return found[0]
