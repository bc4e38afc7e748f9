import asyncio

import pytest

from fc_operator.kit.backoff import Backoff
from fc_operator.kit.services import LoopService, Supervisor


async def test_a_failing_loop_is_started_again_and_counted():
    runs = asyncio.Queue()

    async def run():
        runs.put_nowait(1)
        raise RuntimeError("boom")

    service = LoopService("t", run, backoff=Backoff(base_s=0.001, cap_s=0.002))
    await service.start()
    for _ in range(3):
        await asyncio.wait_for(runs.get(), 5)
    await service.stop()
    assert service.failures >= 2


async def test_stop_before_start_and_stop_twice_are_fine():
    service = LoopService("t", asyncio.Event().wait)
    await service.stop()
    await service.start()
    await service.start()
    await service.stop()
    await service.stop()


async def test_services_stop_in_reverse_order_also_when_one_fails_to_start():
    seen = []

    class Duty:
        def __init__(self, name, broken=False):
            self.name, self.broken = name, broken

        async def start(self):
            if self.broken:
                raise RuntimeError("no")
            seen.append(f"+{self.name}")

        async def stop(self):
            seen.append(f"-{self.name}")

    with pytest.raises(RuntimeError):
        await Supervisor([Duty("a"), Duty("b"), Duty("c", broken=True)]).start()
    assert seen == ["+a", "+b", "-b", "-a"]


@pytest.mark.parametrize(
    ("tries", "low", "high"), [(1, 1, 1.2), (2, 2, 2.4), (10, 5, 6), (10_000, 5, 6)]
)
def test_backoff_grows_to_its_cap(tries, low, high):
    assert low <= Backoff(base_s=1, cap_s=5).delay_s(tries) <= high
