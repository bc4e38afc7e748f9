"""How single rows become batches: soon where they trickle, large where they pour."""

from __future__ import annotations

import asyncio

import pytest

from fc_operator.evaluator import batches
from fc_operator.model.jobs import JobError


async def errors(count):
    for number in range(count):
        yield JobError(attr_path=(str(number),), message="")


def sizes(found):
    return [len(batch.errors) for batch in found]


async def test_a_reader_who_keeps_up_gets_a_batch_as_soon_as_it_is_worth_it():
    found = []

    async def source():
        for number in range(3 * batches.SIZE):
            yield JobError(attr_path=(str(number),), message="")
            if number % batches.SIZE == batches.SIZE - 1:
                await asyncio.sleep(0.01)

    async for batch in batches.batched(source()):
        found.append(batch)
    assert sizes(found) == [batches.SIZE] * 3


async def test_a_reader_who_is_slow_gets_larger_batches_and_never_more_than_the_largest():
    found = []
    async for batch in batches.batched(errors(3 * batches.SIZE_MAX + 7)):
        found.append(batch)
        await asyncio.sleep(0.01)
    assert max(sizes(found)) == batches.SIZE_MAX
    assert sum(sizes(found)) == 3 * batches.SIZE_MAX + 7
    order = [int(error.attr_path[0]) for batch in found for error in batch.errors]
    assert order == sorted(order)


async def test_what_is_few_comes_after_a_moment():
    go = asyncio.Event()

    async def source():
        yield JobError(attr_path=("a",), message="")
        await go.wait()

    stream = batches.batched(source())
    async with asyncio.timeout(5):
        batch = await anext(stream)
    assert sizes([batch]) == [1]
    await stream.aclose()


async def test_what_the_source_raises_comes_after_what_it_gave():
    async def source():
        yield JobError(attr_path=("a",), message="")
        raise OSError("gone")

    stream = batches.batched(source())
    assert sizes([await anext(stream)]) == [1]
    with pytest.raises(OSError, match="gone"):
        await anext(stream)
