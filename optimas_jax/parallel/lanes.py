"""Independent pieces of work side by side on one device.

XLA's CPU code computes large products on all cores, but small operations and loops (attention's tiles, sums, the thin
products of adapters) on one core. A second program uses the other cores: two batches side by side take about five
sixths of the time that they take one after the other. Accelerators gain nothing from it, and have one lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
from jax.sharding import Mesh

from optimas_jax.parallel.platform import Compute

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """Runs calls in ``count`` threads, the lanes. The result of a call must not depend on the other calls."""

    def __init__(self, count: int = 1):
        self.count = count
        self._compiled: set[Hashable] = set()

    @classmethod
    def of(cls, compute: Compute, mesh: Mesh | None) -> Lanes:
        """The lanes of a model. One lane on a mesh: two programs that run on several devices at once can deadlock if
        the devices start them in different orders."""
        return cls(compute.lanes if mesh is None or mesh.size == 1 else 1)

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], shape: Callable[[Item], Hashable]
    ) -> Iterator[Result]:
        """``function`` of every item, in their order; a few items are computed ahead.

        Args:
          shape: identifies the program that ``function`` compiles for an item. The first item of each shape runs
            alone, so that nothing is compiled twice.
        """
        if self.count == 1:
            yield from map(function, items)
            return

        def run(item: Item) -> Result:
            return jax.block_until_ready(function(item))

        running: deque[Future[Result]] = deque()
        with ThreadPoolExecutor(self.count, thread_name_prefix="lane") as pool:
            try:
                for item in items:
                    name = shape(item)
                    if name not in self._compiled:
                        while running:
                            yield running.popleft().result()
                        yield pool.submit(run, item).result()
                        self._compiled.add(name)
                        continue
                    running.append(pool.submit(run, item))
                    if len(running) > self.count:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()
