"""Seeds of dropout masks: drawn many at once for a GPU, and yet a function of torch's generator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ilora_kernels import dropout
from ilora_kernels.dropout import draw_seed

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


class Counter:
    """What a GPU's generator is to the seeds: a seed and an offset."""

    def __init__(self, seed: int, offset: int = 0) -> None:
        self.seed, self.offset = seed, offset

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


def seeds_from(seed: int, offset: int, count: int, stream: int = 0) -> list[int]:
    generator: Any = Counter(seed, offset)
    cpu = torch.device("cpu")
    return [int(dropout._next_seed(generator, cpu, stream)) for _ in range(count)]


def test_every_draw_of_a_generator_is_another_seed() -> None:
    assert len(set(seeds_from(5, 0, 3000) + seeds_from(6, 0, 3000))) == 6000


@pytest.mark.parametrize("offset", [0, 4, 4 * 1023, 4 * 1024, 4 * 5000])
def test_a_seed_follows_from_the_generators_seed_and_offset(offset: int) -> None:
    seeds = seeds_from(5, 0, 6000)
    assert seeds_from(5, offset, 40) == seeds[offset // 4 :][:40]
    dropout._seeds.cache_clear()
    assert seeds_from(5, offset, 40, stream=1) == seeds[offset // 4 :][:40]


def test_seeds_are_of_the_shape_and_at_the_addresses_that_kernels_take() -> None:
    generator: Any = Counter(5)
    for _ in range(5):
        seed = dropout._next_seed(generator, torch.device("cpu"), 0)
        assert (seed.shape, seed.dtype) == ((1,), torch.int64)
        assert int(seed) >= 0
        assert (seed.data_ptr() - seed.untyped_storage().data_ptr()) % 16 == 0


def test_seeds_drawn_in_inference_can_be_saved_for_a_backward_pass_later() -> None:
    dropout._seeds.cache_clear()
    with torch.inference_mode():
        seeds_from(9, 0, 1)
    generator: Any = Counter(9)
    seed = dropout._next_seed(generator, torch.device("cpu"), 0)
    assert dropout._seeds.cache_info().hits == 1
    weight = torch.ones(1, requires_grad=True)
    (weight * seed).sum().backward()  # saves the seed
    assert weight.grad is not None


def test_what_a_mode_makes_of_seeds_is_the_same_and_not_kept() -> None:
    class Another(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen += 1
            return function(*args, **(kwargs or {}))

    expected = seeds_from(8, 0, 2)
    dropout._seeds.cache_clear()
    with Another() as mode:
        assert seeds_from(8, 0, 2) == expected
    assert mode.seen > 0
    assert dropout._seeds.cache_info().currsize == 0


@pytest.mark.gpu
@on_gpu
def test_a_gpus_seeds_are_drawn_anew_from_a_state_that_is_set_again() -> None:
    device = torch.device("cuda")
    torch.manual_seed(3)
    drawn = []
    for _ in range(3):
        state = torch.cuda.get_rng_state()
        drawn.append(int(draw_seed(device)))
        torch.rand(1000, device=device)  # moves the offset too
    assert len(set(drawn)) == 3
    torch.cuda.set_rng_state(state)
    assert int(draw_seed(device)) == drawn[2]
    torch.manual_seed(3)
    assert int(draw_seed(device)) == drawn[0]


@pytest.mark.gpu
@on_gpu
def test_drawing_a_seed_launches_nothing_once_there_are_some() -> None:
    device = torch.device("cuda")
    torch.manual_seed(4)
    draw_seed(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(20):
            draw_seed(device)
        torch.cuda.synchronize()
    assert not [e.key for e in profile.key_averages() if e.self_device_time_total > 0]


@pytest.mark.gpu
@on_gpu
def test_two_streams_draw_seeds_of_their_own_stretch_and_use_them_rightly() -> None:
    device = torch.device("cuda")
    torch.manual_seed(6)
    one_after_another = [int(draw_seed(device)) for _ in range(8)]
    torch.manual_seed(6)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    found = []
    for i in range(8):
        with torch.cuda.stream(streams[i % 2]):
            torch.cuda._sleep(1_000_000)
            found.append(draw_seed(device) + 0)  # read on the stream, which is late
    torch.cuda.synchronize()
    assert [int(seed) for seed in found] == one_after_another
