"""Many tasks at once, in simulated time: the upstream is kept busy and refuses nothing."""

from itertools import pairwise

import pytest

from imagegen.domain.generations import Status
from imagegen.providers.kling.provider import KlingProvider
from imagegen.providers.midjourney.provider import MidjourneyProvider
from tests.support.in_memory import NOW
from tests.support.simulated_tasks import simulated_tasks

MOST_OF_THE_PACE = 1.2


@pytest.mark.parametrize("seconds", [20, 120])
def test_fifty_midjourney_tasks_run_at_the_pace_of_the_upstream(seconds: float) -> None:
    with simulated_tasks(MidjourneyProvider, task_seconds=seconds) as tasks:
        tasks.service.concurrency["reseller/midjourney"] = 13
        generations = tasks.begin(50, model="mj_imagine")
        tasks.run(generations)
        assert {tasks.service.record(each).status for each in generations} == {Status.COMPLETED}
        assert tasks.upstream.midjourney.refused == 0
        assert (len(tasks.upstream.charged), tasks.counted["upstream POST"]) == (50, 50)
        at_its_pace = seconds * 17  # three at once
        assert tasks.service.now - NOW <= MOST_OF_THE_PACE * at_its_pace
        # None overtakes another one by more than the pause between two polls.
        ends = [tasks.ends[each.id] for each in generations]
        assert all(earlier <= later + 15 for earlier, later in pairwise(ends))


def test_kling_counts_images_and_so_do_its_slots() -> None:
    with simulated_tasks(KlingProvider, task_seconds=20) as tasks:
        tasks.service.concurrency["reseller/kling"] = tasks.upstream.kling.concurrency = 9
        generations = [each for n in (1, 4, 9, 2) for each in tasks.begin(6, model="kling-v2-1", n=n)]
        tasks.run(generations)
        assert {tasks.service.record(each).status for each in generations} == {Status.COMPLETED}
        assert tasks.upstream.kling.refused == 0
        assert sum(charge.units for charge in tasks.upstream.charged) == 6 * (1 + 4 + 9 + 2)
        # Nine of 1, two of 4, one of 9, four of 2 fit at once; the first in line is not overtaken.
        at_its_pace = 20 * (1 + 3 + 6 + 2)
        assert tasks.service.now - NOW <= 1.5 * at_its_pace


def test_without_slots_the_refusals_of_a_full_queue_cost_nothing_and_all_end() -> None:
    with simulated_tasks(MidjourneyProvider, task_seconds=20) as tasks:
        generations = tasks.begin(50, model="mj_imagine")
        tasks.run(generations)
        assert {tasks.service.record(each).status for each in generations} == {Status.COMPLETED}
        assert tasks.upstream.midjourney.refused > 0
        assert len(tasks.upstream.charged) == 50
