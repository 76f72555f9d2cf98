"""The one grid of as-of partitions: calendar windows that tile time without gaps."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from quant_pipeline.errors import NoData

Cadence = Literal["monthly", "weekly", "daily"]


@dataclass(frozen=True)
class Grid:
    """Windows ``[start, end)`` of dates in the exchange's time zone, the first one holding `first`.

    >>> grid = Grid("monthly", date(2010, 1, 4))
    >>> grid.key(date(2017, 7, 31)), grid.asof("2017-07"), grid.shift("2017-07", -1)
    ('2017-07', datetime.date(2017, 7, 31), '2017-06')
    """

    cadence: Cadence
    first: date

    @property
    def start(self) -> date:
        """First day of the first window."""
        return self._floor(self.first)

    def key(self, day: date) -> str:
        """The partition that holds a day."""
        if day < self.start:
            raise NoData(
                f"{day} is before the grid, which starts on {self.start}. "
                "Set grid.start in quant.toml to an earlier date before anything is ingested."
            )
        return self._format(self._floor(day))

    def window(self, key: str) -> tuple[date, date]:
        """First day of a partition and the first day after it."""
        start = self._parse(key)
        return start, self._next(start)

    def asof(self, key: str) -> date:
        """The last day of a partition: the date at whose end its view is taken."""
        return self.window(key)[1] - timedelta(days=1)

    def shift(self, key: str, n: int) -> str:
        """The partition `n` windows later (earlier when negative)."""
        start = self._parse(key)
        for _ in range(abs(n)):
            start = self._next(start) if n > 0 else self._floor(start - timedelta(days=1))
        return self._format(start)

    def keys(self, first: str, last: str) -> list[str]:
        """All partitions from `first` to `last`, both included; none if `last` is earlier."""
        return list(self._walk(self._parse(first), self._parse(last)))

    def newest_asof_on(self, day: date) -> str:
        """The newest partition whose as-of date is on or before a day."""
        key = self.key(day)
        return key if self.asof(key) == day else self.shift(key, -1)

    def _walk(self, start: date, last: date) -> Iterator[str]:
        while start <= last:
            yield self._format(start)
            start = self._next(start)

    def _floor(self, day: date) -> date:
        if self.cadence == "monthly":
            return day.replace(day=1)
        if self.cadence == "weekly":
            return day - timedelta(days=day.weekday())
        return day

    def _next(self, start: date) -> date:
        if self.cadence == "monthly":
            return (start + timedelta(days=31)).replace(day=1)
        return start + timedelta(days=7 if self.cadence == "weekly" else 1)

    def _format(self, start: date) -> str:
        return start.isoformat()[:7] if self.cadence == "monthly" else start.isoformat()

    def _parse(self, key: str) -> date:
        try:
            start = date.fromisoformat(f"{key}-01" if self.cadence == "monthly" else key)
        except ValueError:
            example = "2017-07" if self.cadence == "monthly" else "2017-07-03"
            raise NoData(
                f"{key!r} is no {self.cadence} partition; one looks like {example}."
            ) from None
        if key != self._format(self._floor(start)):
            raise NoData(
                f"{key!r} is no {self.cadence} partition; that day lies in "
                f"{self._format(self._floor(start))}."
            )
        return start
