"""The networks against outputs and gradients of the official code: relative error at most 1e-4 in float32."""

from __future__ import annotations

import sys

import pytest
import torch

from stylepairs.datagen.stylegan.generator import Generator

TOLERANCE = 1e-4


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_latents_match_the_official_ones(ada_generator, reference):
    expected = reference["ada"]
    assert relative_error(ada_generator.mapping(expected["z"]), expected["ws"]) <= TOLERANCE
    truncated = ada_generator.mapping(expected["z"], truncation_psi=0.7, truncation_cutoff=4)
    assert relative_error(truncated, expected["ws_psi07_cutoff4"]) <= TOLERANCE


@pytest.mark.parametrize(
    "latents, noise_mode, image",
    [
        ("ws", "const", "image_const_noise"),
        ("ws", "none", "image_no_noise"),
        ("ws_psi07_cutoff4", "const", "image_psi07_const_noise"),
    ],
)
def test_images_match_the_official_ones(ada_generator, reference, latents, noise_mode, image):
    actual = ada_generator.synthesis(reference["ada"][latents], noise_mode=noise_mode)
    assert relative_error(actual, reference["ada"][image]) <= TOLERANCE


def test_gradient_of_the_latents_matches_the_official_one(ada_generator, reference):
    ws = reference["ada"]["ws"].clone().requires_grad_()
    image = ada_generator.synthesis(ws, noise_mode="const")
    ramp = torch.linspace(-1, 1, image.numel()).reshape(image.shape)
    (image * ramp).sum().backward()
    assert relative_error(ws.grad, reference["ada"]["grad_ws"]) <= TOLERANCE


@pytest.mark.slow
def test_gradient_of_the_latents_on_triton_matches_the_official_one(ada_generator, reference, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'stylepairs[triton]' (Linux only)")
    monkeypatch.setenv("STYLEPAIRS_TRITON", "1")  # in its interpreter, where there is no GPU
    test_gradient_of_the_latents_matches_the_official_one(ada_generator, reference)
    assert "stylepairs.kernels.gpu.triton_layer" in sys.modules


def test_discriminator_matches_the_official_one(ada_discriminator, reference):
    expected = reference["discriminator"]
    image = expected["image"].clone().requires_grad_()
    logits = ada_discriminator(image)
    logits.sum().backward()
    assert relative_error(logits.detach(), expected["logits"]) <= TOLERANCE
    assert relative_error(image.grad, expected["grad_image"]) <= TOLERANCE


def test_noise_given_as_a_list_equals_the_constant_buffers(ada_generator: Generator, reference):
    image = ada_generator.synthesis(reference["ada"]["ws"], noise=ada_generator.noise_maps())
    assert relative_error(image, reference["ada"]["image_const_noise"]) <= TOLERANCE
