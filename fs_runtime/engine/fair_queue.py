"""Whose samples go into the next batch: fair shares of the device, as pure code without threads, clock or torch.

**Fair sharing.** Tenants share the device equally, and the requests of a tenant share its part. Both by start-time fair
queueing (Goyal, Vin and Cheng, SIGCOMM 1996): who has had least since its start is next, and gets a turn of up to one
full batch; among equals the first come is first. A newcomer starts at the *virtual time*, which advances by what is
served divided by the number of those who share. So no one gathers credit while away, and no one, however large, is
passed over for ever: the virtual time of newcomers overtakes its own.

**Batches.** Only images of one bucket (shape, feature map) can share a batch. The batch belongs to the bucket of
whoever is next, so a rare shape has its turn like any other; what is left of the batch goes to others of that bucket in
the same order, on account of their later turns. (So where shapes mix, requests whose shape others have too get more
of their tenant's part than those that are alone with theirs; tenants share equally all the same.)
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

Order = tuple[float, int]


class QueueItem(Hashable, Protocol):
    """A request in the queue. Hashable by identity.

    Attributes:
        tenant: Whose request it is.
        bucket: Items of one bucket may share a batch.
        cost: What one sample costs, in tokens.
    """

    @property
    def tenant(self) -> str: ...  # noqa: D102
    @property
    def bucket(self) -> Hashable: ...  # noqa: D102
    @property
    def cost(self) -> int: ...  # noqa: D102

    @property
    def remaining(self) -> int:
        """Samples that may still be drawn."""
        ...

    @property
    def wanted(self) -> int:
        """Samples that it can use in the next batch: as many, or fewer if it may well end before."""
        ...


T = TypeVar("T", bound=QueueItem)
K = TypeVar("K", bound=Hashable)


class _Share:
    """What one of those who share was served since its start."""

    __slots__ = ("arrival", "served", "start")

    def __init__(self, start: float, arrival: int) -> None:
        self.start = start
        self.arrival = arrival
        self.served = 0


class _Sharing(Generic[K]):
    """Start-time fair queueing among those who share, in turns of a number of tokens."""

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._now = 0.0
        self._arrivals = 0
        self._shares: dict[K, _Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[K]:
        return iter(self._shares)

    def join(self, key: K) -> None:
        self._arrivals += 1
        self._shares[key] = _Share(self._now, self._arrivals)

    def __contains__(self, key: object) -> bool:
        return key in self._shares

    def leave(self, key: K) -> None:
        del self._shares[key]

    def serve(self, key: K, tokens: int) -> None:
        self._shares[key].served += tokens
        self._now += tokens / len(self._shares)

    def order(self, key: K) -> Order:
        """Smaller is sooner: virtual time at which the current turn began, then arrival."""
        share = self._shares[key]
        return share.start + share.served // self._turn * self._turn, share.arrival

    def left(self, key: K) -> int:
        """Tokens left in the current turn."""
        return self._turn - self._shares[key].served % self._turn


class FairQueue(Generic[T]):
    """The requests in flight, and who is next.

    Args:
        turn: Tokens that one gets in a row while others wait: those of a full batch.
    """

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._tenants: _Sharing[str] = _Sharing(turn)
        self._items: dict[str, _Sharing[T]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def __iter__(self) -> Iterator[T]:
        for items in self._items.values():
            yield from items

    def __contains__(self, item: T) -> bool:
        return item in self._items.get(item.tenant, ())

    def add(self, item: T) -> None:
        """Puts an item into the queue, behind items of its tenant that have had as many samples."""
        if item.tenant not in self._items:
            self._tenants.join(item.tenant)
            self._items[item.tenant] = _Sharing(self._turn)
        self._items[item.tenant].join(item)

    def remove(self, item: T) -> None:
        """Takes an item out."""
        items = self._items[item.tenant]
        items.leave(item)
        if not items:
            self._tenants.leave(item.tenant)
            del self._items[item.tenant]

    @property
    def cost(self) -> int:
        """Tokens that may still be needed for everything in the queue."""
        return sum(item.remaining * item.cost for item in self)

    def cost_until_done(self, tenant: str, cost: int) -> int:
        """About how many tokens pass until a new request of ``cost`` tokens is done, its own included.

        While it is served, others get at most as much as it does: requests of its tenant as much as the request,
        other tenants as much as its tenant.
        """
        others = self._items.get(tenant, ())
        own = cost + sum(min(item.remaining * item.cost, cost) for item in others)
        return own + sum(
            min(sum(item.remaining * item.cost for item in items), own)
            for name, items in self._items.items()
            if name != tenant
        )

    def next_batch(self, budget: int) -> list[tuple[T, int]]:
        """Who gets how many samples of the next batch, and counts it as served.

        Args:
            budget: Tokens of the batch; where one sample costs more, the batch is that sample.

        Returns:
            Items of one bucket, each with a number of samples of at least 1 and at most ``wanted``; empty if no item
            wants any.
        """
        wanted = {item: item.wanted for item in self}
        waiting = [item for item, samples in wanted.items() if samples > 0]
        if not waiting:
            return []
        bucket = min(waiting, key=lambda item: (self._tenants.order(item.tenant), self._order(item))).bucket
        lines = self._lines([item for item in waiting if item.bucket == bucket])
        tenants = [(self._tenants.order(tenant), tenant) for tenant in lines]
        heapq.heapify(tenants)
        given: dict[T, int] = {}
        while tenants:
            _, tenant = heapq.heappop(tenants)
            _, _, item = heapq.heappop(lines[tenant])
            turn = min(self._tenants.left(tenant), self._items[tenant].left(item))
            taken = given.get(item, 0)
            samples = min(wanted[item] - taken, max(1, budget // item.cost), -(-turn // item.cost))
            given[item] = taken + samples
            budget -= samples * item.cost
            self._serve(item, samples)
            if given[item] < wanted[item]:
                heapq.heappush(lines[tenant], (self._order(item), id(item), item))
            if lines[tenant]:
                heapq.heappush(tenants, (self._tenants.order(tenant), tenant))
            if budget < item.cost:  # all of one bucket cost the same
                break
        return list(given.items())

    def charge(self, batch: Sequence[tuple[T, int]]) -> None:
        """Counts a batch as served that did not come from :meth:`next_batch`."""
        for item, samples in batch:
            self._serve(item, samples)

    def refund(self, batch: Sequence[tuple[T, int]]) -> None:
        """Takes back what a batch counted as served, since it failed."""
        for item, samples in batch:
            self._serve(item, -samples)

    def _lines(self, items: Sequence[T]) -> dict[str, list[tuple[Order, int, T]]]:
        """The items by tenant, each line a heap by order."""
        lines: dict[str, list[tuple[Order, int, T]]] = {}
        for item in items:
            lines.setdefault(item.tenant, []).append((self._order(item), id(item), item))
        for line in lines.values():
            heapq.heapify(line)
        return lines

    def _order(self, item: T) -> Order:
        return self._items[item.tenant].order(item)

    def _serve(self, item: T, samples: int) -> None:
        self._tenants.serve(item.tenant, samples * item.cost)
        self._items[item.tenant].serve(item, samples * item.cost)
