"""Counter-based noise: Philox's published answers, the normal distribution, and rows that depend on nothing else."""

import pytest
import torch
from torch import Tensor

from bench.sampler.draws import Rows, normal
from bench.sampler.generator import RowGenerator
from bench.sampler.noise import noise, philox

FULL = 0xFFFFFFFF
# Random123's known answers for philox4x32-10: counter, key, result.
ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL, FULL, FULL, FULL), (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip
KEY = 123_456_789_123_456_789


def generator(rows: Rows | None = None) -> RowGenerator:
    made = RowGenerator()
    made.manual_seed(7)
    made.rows = rows
    return made


@pytest.mark.parametrize("counter, key, answer", ANSWERS)
def test_philox_gives_the_published_answers(counter, key, answer) -> None:
    words = philox(tuple(torch.tensor(word) for word in counter), key[0] | key[1] << 32)
    assert tuple(int(word) for word in words) == answer


def test_it_is_standard_normal() -> None:
    """Moments, tails and neighbours of a million numbers, each within five standard errors of a normal's."""
    z = noise(KEY, range(250), (16, 16, 16)).double()
    count = z.numel()
    moments = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}  # order -> mean and variance of z^order
    for order, (mean, variance) in moments.items():
        assert abs(float((z**order).mean()) - mean) < 5 * (variance / count) ** 0.5
    for bound in (1.0, 2.0, 3.0, 4.0):
        expected = 2 * float(torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64)))
        assert abs(float((z.abs() > bound).double().mean()) - expected) < 5 * (expected / count) ** 0.5
    flat = z.flatten(1)
    for neighbours in (flat[:, :-1] * flat[:, 1:], flat[:-1] * flat[1:]):
        assert abs(float(neighbours.mean())) < 5 / neighbours.numel() ** 0.5
    squares = flat.square() - 1
    pairs = squares[:, 0::2] * squares[:, 1::2]  # Box-Muller's two numbers share a radius
    assert abs(float(pairs.mean())) < 5 * 2 / pairs.numel() ** 0.5


def test_keys_and_rows_differ() -> None:
    drawn = [noise(key, range(3), (64,)) for key in (1, 2, 2**32, 2**33)]
    rows = torch.cat(drawn)
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("shape", [(1,), (6,), (3, 5), (64, 4, 4)])
def test_a_row_depends_on_nothing_else(shape, monkeypatch) -> None:
    whole = noise(KEY, range(11), shape)
    assert whole.shape == (11, *shape) and whole.dtype == torch.float32
    assert torch.equal(noise(KEY, range(4, 9), shape), whole[4:9])
    monkeypatch.setattr("bench.sampler.noise.AT_ONCE", 2)  # in several passes
    assert torch.equal(noise(KEY, range(11), shape), whole)


def test_no_random_number_of_another_row_is_computed(monkeypatch) -> None:
    """The cost of a process's rows must not grow with the batch that it shares."""
    asked: list[range] = []

    def watched(key: int, rows: range, shape: tuple, device) -> Tensor:
        asked.append(rows)
        return torch.zeros(len(rows), *shape)

    monkeypatch.setattr("bench.sampler.draws.noise", watched)
    normal((2, 5), generator(Rows(6, 8, 1000)), "cpu")
    normal((6, 5), generator(Rows(6, 8, 1000)), "cpu")  # three rollouts per prompt
    assert asked == [range(6, 8), range(18, 24)]


def test_draws_follow_each_other_alike_for_every_split() -> None:
    whole, part = generator(), generator(Rows(2, 5, 8))
    for _ in range(3):
        assert torch.equal(normal((3, 5), part, "cpu"), normal((8, 5), whole, "cpu")[2:5])


def test_a_second_draw_is_new_and_a_restarted_generator_repeats() -> None:
    first, again = generator(), generator()
    one, two = normal((4, 5), first, "cpu"), normal((4, 5), first, "cpu")
    assert not torch.equal(one, two)
    assert torch.equal(normal((4, 5), again, "cpu"), one)


def test_seeds_that_torch_takes_for_the_same_draw_other_noise() -> None:
    """torch's generator on the CPU uses the low 32 bits of a seed."""
    same = [torch.Generator().manual_seed(1 + high * 2**32) for high in (0, 1)]
    assert torch.equal(*(torch.randn(3, generator=g) for g in same))
    assert not torch.equal(*(normal((3,), torch.Generator().manual_seed(1 + high * 2**32), "cpu") for high in (0, 1)))


@pytest.mark.parametrize("count", [2, 5])
def test_entries_that_are_not_equally_many_for_each_prompt_are_refused(count: int) -> None:
    """Two processes would draw the same noise for some of them."""
    with pytest.raises(ValueError, match="not equally many for each of 3 prompts"):
        normal((count, 4), generator(Rows(0, 3, 6)), "cpu")


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_is_as_many_numbers(shape: tuple[int, int]) -> None:
    assert normal(shape, torch.Generator(), "cpu").shape == shape


def test_triton_draws_the_same_words() -> None:
    """Two independent implementations of the generator agree, for a counter of several words and a full key."""
    tl = pytest.importorskip("triton.language")
    import triton

    @triton.jit
    def words(out, key, N: tl.constexpr):
        at = tl.arange(0, N).to(tl.uint32)
        zero = at * 0
        w0, w1, w2, w3 = tl.philox(key, at, zero + 5, zero, zero)
        tl.store(out + tl.arange(0, N), w0.to(tl.int64))
        tl.store(out + N + tl.arange(0, N), w1.to(tl.int64))
        tl.store(out + 2 * N + tl.arange(0, N), w2.to(tl.int64))
        tl.store(out + 3 * N + tl.arange(0, N), w3.to(tl.int64))

    out = torch.zeros(4, 16, dtype=torch.int64)
    words[(1,)](out, KEY, N=16)
    block, zero = torch.arange(16), torch.zeros(16, dtype=torch.int64)
    assert torch.equal(out, torch.stack(philox((block, zero + 5, zero, zero), KEY)))
