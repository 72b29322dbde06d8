"""`datagen build --method latent:FILE`: pairs along a direction, with the same gate, shards and provenance."""

from __future__ import annotations

import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_build import generator_file, plan, tiny_generator

from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.latent import edits
from stylepairs.datagen.latent.attributes import Attribute
from stylepairs.datagen.latent.directions import DirectionInfo, direction_in_w, save_direction
from stylepairs.datagen.latent.faces import FaceReader, SeenFaces
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.reconstruction.prior import FARTHEST, WPrior
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator


def direction_file(folder: Path, seed: int = 0, **info) -> Path:
    network = tiny_generator()
    digest = generator_digest(load_generator(generator_file()))
    known = DirectionInfo(method="interfacegan", attribute="hair_lightness", generator_digest=digest, **info)
    normal = torch.randn(16, generator=torch.Generator().manual_seed(seed))
    path = folder / f"direction-{seed}.safetensors"
    save_direction(path, direction_in_w(0.5 * normal / normal.norm(), network, None, known))
    return path


def test_pairs_are_moved_along_the_direction_and_say_so(tmp_path):
    path = direction_file(tmp_path)
    made = plan(tmp_path, recipe={"method": f"latent:{path}"})
    result = build_pairs(made)
    assert result.complete
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
    network, moved = tiny_generator(), 0
    prior = WPrior.fit(network)
    for record in shards.read_index(tmp_path / "pairs", accepted_only=False):
        assert record.method.startswith("latent:interfacegan:hair_lightness:")
        if record.figures.get("reconstruction_strength") is None:  # refused
            continue
        pair = shards.load_pair(tmp_path / "pairs", record)
        before, after = (torch.from_numpy(ws.astype(np.float32)) for ws in (pair.w_before, pair.w_after))
        strength = record.figures["reconstruction_strength"]
        step = 0.5 * strength * direction / direction.norm()
        assert torch.allclose(after, prior.held(before, before + step), atol=2e-2)
        noise = [torch.from_numpy(level.astype(np.float32))[None, None] for level in pair.noise]
        again = network.synthesis(torch.from_numpy(pair.w_after.astype(np.float32))[None], noise)[0]
        assert np.abs((again.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5 - pair.generated_after).max() < 1.01
        outside = pair.mask == 0
        assert np.array_equal(pair.before[outside], pair.after[outside])
        moved += abs(strength) > 0
    assert moved > 2


def test_a_moved_latent_is_held_where_the_prior_knows_faces():
    prior = WPrior.fit(tiny_generator(), 2000)
    u = torch.zeros(1, 2, 16)
    u[0, 0, :3] = torch.tensor([0.0, 4.0, -1.0])
    moved = u.clone()
    moved[0, 0, :4] = torch.tensor([9.0, 3.5, -7.0, 1.0])
    held = prior.whiten(prior.held(prior.unwhiten(u), prior.unwhiten(moved)))
    assert torch.allclose(held[0, 0, :4], torch.tensor([FARTHEST, 3.5, -FARTHEST, 1.0]), atol=1e-3)
    far = prior.whiten(prior.held(prior.unwhiten(u), prior.unwhiten(u + torch.tensor([0.0, 2.0] + [0.0] * 14))))
    assert torch.allclose(far[0, 0, 1], torch.tensor(4.0), atol=1e-3)


def test_latent_edits_leave_the_noise_maps_to_the_generator_unless_asked():
    recipe = {"feature": "hair_color", "inversion": {"steps": 9}}
    assert BuildRecipe.model_validate(recipe).inversion.noise_learning_rate > 0
    by_latent = recipe | {"method": "latent:any.safetensors"}
    assert BuildRecipe.model_validate(by_latent).inversion.noise_learning_rate == 0
    assert BuildRecipe.model_validate(by_latent).inversion.near().noise_learning_rate == 0
    asked = by_latent | {"inversion": {"noise_learning_rate": 0.1}}
    assert BuildRecipe.model_validate(asked).inversion.noise_learning_rate == 0.1


def test_latent_edits_take_no_encoder_but_one_that_is_named():
    assert BuildRecipe(feature="hair_color").encoder == "auto"
    by_latent = {"feature": "hair_color", "method": "latent:any.safetensors"}
    assert BuildRecipe.model_validate(by_latent).encoder == "none"
    assert BuildRecipe.model_validate(by_latent | {"encoder": "start.safetensors"}).encoder == "start.safetensors"


def test_all_pairs_can_have_one_strength_and_provenance_tells_it(tmp_path):
    path = direction_file(tmp_path)
    build_pairs(plan(tmp_path, recipe={"method": f"latent:{path}@-1.5"}))
    records = shards.read_index(tmp_path / "pairs", accepted_only=False)
    assert all("hair_lightness@-1.5:" in record.method for record in records)
    made = [record.figures["reconstruction_strength"] for record in records if not record.reasons]
    assert made
    assert set(made) == {-1.5}
    with pytest.raises(InputError, match="is no strength"):
        build_pairs(plan(tmp_path, out="other", recipe={"method": f"latent:{path}@1.5.2"}))


def test_a_folder_of_another_direction_is_refused_and_the_same_one_elsewhere_is_not(tmp_path):
    first, second = direction_file(tmp_path), direction_file(tmp_path, seed=1)
    build_pairs(plan(tmp_path, recipe={"method": f"latent:{first}"}))
    (tmp_path / "moved").mkdir()
    build_pairs(plan(tmp_path, recipe={"method": f"latent:{first.rename(tmp_path / 'moved' / first.name)}"}))
    with pytest.raises(InputError, match=r"other settings .*method"):
        build_pairs(plan(tmp_path, recipe={"method": f"latent:{second}"}))


def test_a_direction_that_no_latent_can_hold_makes_no_pairs(tmp_path):
    path = direction_file(tmp_path, figures={"missed_in_w_plus": 0.4})
    with pytest.raises(InputError, match="40% would be missed"):
        build_pairs(plan(tmp_path, recipe={"method": f"latent:{path}"}))


def test_a_latent_is_never_moved_against_what_its_sketch_wants(monkeypatch):
    """Far out faces come apart, and their figures may be the wanted ones by chance."""

    class Bright(FaceReader):
        def read(self, image: torch.Tensor) -> SeenFaces:
            return SeenFaces(*[image] * 6)

        def to(self, device) -> FaceReader:
            return self

    def rendered(problem, by, inversion, strengths):
        return torch.where(strengths > 0, 0.1 * strengths, 0.1)[:, None, None, None].expand(-1, 3, 8, 8)

    monkeypatch.setattr(edits, "_rendered", rendered)
    attribute = Attribute("brightness", "", (), lambda seen: seen.image.mean((1, 2, 3)))
    measure = edits._Measure(attribute, 0.1, Bright(torch.nn.Identity(), torch.nn.Identity(), ""))
    photo = types.SimpleNamespace(image=torch.zeros(3, 8, 8))
    sketch = types.SimpleNamespace(image=torch.full((3, 8, 8), 0.1))
    errors = edits._attribute_errors(None, None, measure, photo, photo, sketch)
    assert errors(torch.tensor([-3.0, 0.0, 1.0, 2.0])).tolist() == pytest.approx([math.inf, 0.0, 0.0, 1.0], abs=1e-5)
