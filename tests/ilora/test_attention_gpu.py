"""Padding on the left, whose queries see no key, and the attention that the GPU chooses."""

from __future__ import annotations

import pytest
import torch

from tests.ilora.tiny_world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.gpu
def test_gradients_are_numbers_where_padding_sees_nothing(world: World) -> None:
    """At an odd multiple of 64 columns, where cuDNN's attention gives NaN."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    model = world.recommender(dropout=0.0).cuda().train()
    model.llm.to(torch.bfloat16)
    rows = world.rows(model, "train", answer=True)
    batch = world.batch(model, [rows[i] for i in range(6)], multiple=64)
    assert batch["input_ids"].shape[1] % 128 == 64
    loss = model(**{name: tensor.cuda() for name, tensor in batch.items()}).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
