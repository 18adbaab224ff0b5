"""A random generator that draws one process's rows of a batch, for one purpose in one update."""

import torch
from torch import Tensor

from bench.sampler.draws import Rows


class RowGenerator(torch.Generator):
    """A generator that knows the rows that it draws for."""

    rows: Rows | None = None
    """The rows of this process; None means all rows of the batch."""
    _settled: Tensor | None = None
    """State after the last use through `draw`; None if its use is not checked."""

    def settle(self) -> None:
        """Record the current state as that after the last use through `draw`."""
        self._settled = self.get_state()

    @property
    def watched(self) -> bool:
        """Whether the generator checks that it is used through `draw` only."""
        return self._settled is not None

    @property
    def used_directly(self) -> bool:
        """Whether numbers were drawn without `draw`. Every process would get those of the first rows of the batch."""
        return self._settled is not None and not torch.equal(self._settled, self.get_state())
