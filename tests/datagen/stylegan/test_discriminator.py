"""The discriminator's minibatch standard deviation, condition channels and derivatives."""

from __future__ import annotations

import pytest
import torch

from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig, minibatch_stddev


def small(**options) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig(img_resolution=8, channel_base=64, channel_max=8, **options))


def test_logits_are_one_number_per_image_with_or_without_conditions():
    assert small()(torch.randn(4, 3, 8, 8)).shape == (4, 1)
    assert small(cond_channels=2)(torch.randn(4, 5, 8, 8)).shape == (4, 1)


def test_minibatch_deviation_is_that_of_each_interleaved_group():
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = minibatch_stddev(x, group_size=4)
    assert y.shape == (8, 1, 4, 4)
    for group in (0, 1):
        expected = x[group::2].std(0, unbiased=False).mean()
        torch.testing.assert_close(y[group::2], expected.expand(4, 1, 4, 4), rtol=1e-4, atol=1e-5)


def test_identical_images_have_no_deviation():
    assert minibatch_stddev(torch.ones(4, 3, 4, 4), 4).abs().max() <= 1e-3


def test_a_batch_that_does_not_split_into_groups_is_refused():
    with pytest.raises(ValueError, match="multiple of the group size"):
        minibatch_stddev(torch.ones(6, 3, 4, 4), 4)


def test_a_batch_smaller_than_the_group_is_one_group():
    assert small()(torch.randn(2, 3, 8, 8)).shape == (2, 1)


def test_gradient_penalty_reaches_the_weights():
    discriminator = small()
    image = torch.randn(4, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(image).sum(), image, create_graph=True)
    gradient.square().sum().backward()
    assert discriminator.b8.conv0.weight.grad.abs().sum() > 0


def test_logits_keep_full_precision_under_autocast():
    image = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    discriminator = small()
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(image)
        features = discriminator.b8(image)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, discriminator.b4(features.float()))
