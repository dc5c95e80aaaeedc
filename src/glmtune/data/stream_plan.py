"""Which examples of a stream each step takes: a window is shuffled, then the next one.

    window 0   examples 0 .. buffer - 1         shuffled by the seed and 0
    window 1   examples buffer .. 2 buffer - 1  shuffled by the seed and 1

The order is a function of seed and step alone, so a resumed run continues with the same rows.
"""

from dataclasses import dataclass, fields

from glmtune.data.batches import BatchPlan, epoch_order


@dataclass(frozen=True, slots=True)
class StreamPlan(BatchPlan):
    """A plan for `StreamedData`; `rows` are the examples at its head.

    Attributes:
        buffer: examples that are shuffled together.
        num_steps: of the run, which is one epoch.
    """

    buffer: int = 1
    num_steps: int = 1

    @classmethod
    def of(cls, plan: BatchPlan, buffer: int, num_steps: int) -> "StreamPlan":
        """Make a plan of the sizes of another one."""
        values = {each.name: getattr(plan, each.name) for each in fields(BatchPlan)}
        return cls(**values, buffer=buffer, num_steps=max(1, num_steps))

    @property
    def rows_per_epoch(self) -> int:
        """Rows that the run learns."""
        return self.num_steps * self.rows_per_step

    @property
    def steps_per_epoch(self) -> int:
        """The steps of the run: an epoch of a stream has no other end."""
        return self.num_steps

    @property
    def span(self) -> int:
        """Examples from the oldest that a step may take to the newest."""
        return 2 * self.buffer + self.rows_per_step

    def step_rows(self, step: int) -> list[int]:
        """Return the examples of optimizer step `step`."""
        rows: list[int] = []
        place, stop = step * self.rows_per_step, (step + 1) * self.rows_per_step
        while place < stop:
            window, start = divmod(place, self.buffer)
            order = epoch_order(self.buffer, self.seed, window)[start : start + stop - place]
            rows += (order + window * self.buffer).tolist()
            place += len(order)
        return rows

    def oldest(self, step: int) -> int:
        """Return an example that no step from `step` on looks behind."""
        return step * self.rows_per_step // self.buffer * self.buffer

    def known_steps(self, start: int, stop: int) -> range:
        """Return the steps of the next window, whose examples are at hand."""
        return range(start, min(stop, start + max(1, self.buffer // self.rows_per_step)))

    def shown_rows(self) -> list[int]:
        """Return examples that can be read at any time."""
        return list(self.rows)
