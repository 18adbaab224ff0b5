"""The generator of one kind of draw in one update."""

import torch
from torch import Tensor

from bench.sampler.draws import Rows


class RowGenerator(torch.Generator):
    """A generator that knows which rows it draws for; None: all of a batch."""

    rows: Rows | None = None
    _settled: Tensor | None = None
    """Its state when `draw` last used it; None where nobody asks whether it is used otherwise."""

    def settle(self) -> None:
        """Take the present state as one that `draw` left behind."""
        self._settled = self.get_state()

    @property
    def watched(self) -> bool:
        """Whether somebody asks how it was used."""
        return self._settled is not None

    @property
    def used_directly(self) -> bool:
        """Whether numbers were drawn past `draw`, which would be those of the first rows in every process."""
        return self._settled is not None and not torch.equal(self._settled, self.get_state())
