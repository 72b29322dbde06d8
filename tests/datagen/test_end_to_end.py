"""Photos to pairs with nothing faked; the generator is a tiny random one, except where a test is marked slow."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stylepairs.datagen.build.plan import BuildPlan, plan_build
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.encoders.settings import METHODS, EncoderTraining
from stylepairs.datagen.encoders.training import train_to_file
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.portraits.analysis.prepare import prepare_photos
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.stylegan.checkpoints import load_generator, save_generator
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

PHOTOS = sorted((Path(__file__).parents[2] / "recipes" / "photos" / "heldout").glob("*.jpg"))[:2]
QUICK = [
    "color=[blond, black]",
    "inversion.steps=4",
    "inversion.decay_steps=1",
    "inversion.warmup_steps=1",
    "reconstruction.steps=4",
    "reconstruction.decay_steps=1",
    "reconstruction.coarse_to_fine_steps=2",
    "perceptual=pyramid",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def portraits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("portraits")
    prepare_photos(PHOTOS, folder, size_px=128)
    return folder


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = GeneratorConfig(z_dim=32, w_dim=32, img_resolution=64, channel_base=512, channel_max=16, mapping_layers=2)
    path = tmp_path_factory.mktemp("generator") / "tiny.safetensors"
    save_generator(path, Generator(config).eval(), {})
    return path


def build(portraits: Path, generator: Path | str, out: Path, cache: Path, **settings) -> BuildPlan:
    recipe = load_recipe("hair_color", "datagen", BuildRecipe, [*QUICK, *settings.pop("overrides", [])])
    plan = plan_build(
        recipe,
        portraits,
        out,
        generator=str(generator),
        cache=cache,
        shard_size=3,
        limit=settings.pop("limit", len(PHOTOS)),
    )
    build_pairs(plan, **settings)
    return plan


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


@pytest.fixture(scope="module")
def built(portraits, generator, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("built")
    build(portraits, generator, folder / "pairs", folder / "cache")
    return folder / "pairs", folder / "cache"


def test_every_photo_gives_pairs_of_every_colour(built):
    records = shards.read_index(built[0], accepted_only=False)
    assert [record.params["color"] for record in records] == ["blond", "black"] * len(PHOTOS)
    assert {"color_delta_e", "outside_psnr_db", "identity_pyramid", "prior_after", "seam_energy", "face_score"} <= set(
        records[0].figures
    )
    assert all(record.source_digest for record in records)


def test_outside_the_mask_pairs_are_identical_to_the_bit(built):
    for pair in shards.read_pairs(built[0], accepted_only=False):
        outside = pair.mask == 0
        assert 0 < outside.mean() < 1
        np.testing.assert_array_equal(pair.after[outside], pair.before[outside])
        assert (pair.after != pair.before).any()


def test_stored_latents_and_noise_render_the_stored_images_again(built, generator):
    network = load_generator(generator)
    for pair in shards.read_pairs(built[0], accepted_only=False):
        noise = [torch.from_numpy(level).float()[None, None] for level in pair.noise]
        for ws, stored in ((pair.w_before, pair.generated_before), (pair.w_after, pair.generated_after)):
            with torch.no_grad():
                image = network.synthesis(torch.from_numpy(ws).float()[None], noise)[0]
            difference = np.abs(to_uint8(image.clamp(-1, 1)).astype(int) - stored.astype(int))
            assert difference.max() <= 1  # rounding, where another batch size sums in another order
            assert (difference > 0).mean() < 1e-3


@pytest.mark.slow
def test_a_partly_filled_cache_does_not_show(built, portraits, generator, tmp_path):
    pairs, cache = built
    shutil.copytree(cache, tmp_path / "cache")
    kept = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(kept) == len(PHOTOS)
    kept[0].unlink()
    build(portraits, generator, tmp_path / "pairs", tmp_path / "cache")
    assert digests(tmp_path / "pairs") == digests(pairs)


@pytest.mark.slow
def test_a_pair_does_not_depend_on_the_portraits_beside_it(built, portraits, generator, tmp_path):
    build(portraits, generator, tmp_path / "pairs", tmp_path / "cache", limit=1)
    alone = list(shards.read_pairs(tmp_path / "pairs", accepted_only=False))
    beside = list(shards.read_pairs(built[0], accepted_only=False))
    assert len(alone) == 2
    for one, other in zip(alone, beside, strict=False):
        np.testing.assert_array_equal(one.w_after, other.w_after)
        np.testing.assert_array_equal(one.generated_after, other.generated_after)
        np.testing.assert_array_equal(one.after, other.after)
        assert one.record.figures == other.record.figures


@pytest.mark.slow
def test_the_number_of_workers_does_not_show_with_the_embedded_generator(portraits, tmp_path):
    build(portraits, "embedded", tmp_path / "one", tmp_path / "cache-one")
    build(portraits, "embedded", tmp_path / "two", tmp_path / "cache-two", workers=2)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


@pytest.mark.slow
def test_a_trained_encoder_starts_a_build_and_auto_does_without_one_that_fits(built, portraits, generator, tmp_path):
    path = tmp_path / "encoder.safetensors"
    training = EncoderTraining(**METHODS["start"], steps=2, probes=160, perceptual="pyramid")
    train_to_file(str(generator), [portraits], path, training)
    pairs, cache = built
    for name, same in (("auto", True), (str(path), False)):
        out = tmp_path / Path(name).stem
        build(portraits, generator, out, cache, limit=1, overrides=[f"encoder={name}"])
        started, plain = (next(shards.read_pairs(folder, accepted_only=False)) for folder in (out, pairs))
        assert started.record.params == plain.record.params
        assert np.array_equal(started.w_before, plain.w_before) == same
