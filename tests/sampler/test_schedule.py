import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from bench.errors import UsageError
from bench.sampler.schedule import make_schedule


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 40])
@pytest.mark.parametrize("shift", [1.0, 2.5, 3.0])
def test_both_tables_equal_the_diffusers_scheduler(steps: int, shift: float) -> None:
    twice = FlowMatchEulerDiscreteScheduler(shift=shift)
    twice.set_timesteps(steps)
    np.testing.assert_allclose(make_schedule(steps, shift).sigmas, twice.sigmas.numpy(), atol=2e-6)
    once = FlowMatchEulerDiscreteScheduler(shift=shift)
    once.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    np.testing.assert_allclose(make_schedule(steps, shift, "once").sigmas, once.sigmas.numpy(), atol=2e-6)


def test_ten_step_table_shows_the_double_shift() -> None:
    expected = [1, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893, 0]
    np.testing.assert_allclose(make_schedule(10).sigmas, expected, atol=5e-6)


@pytest.mark.parametrize(("steps", "shift", "table"), [(0, 3.0, "once"), (10, 0.0, "once"), (10, 3.0, "twice")])
def test_wrong_settings_are_refused(steps: int, shift: float, table: str) -> None:
    with pytest.raises(UsageError):
        make_schedule(steps, shift, table)
