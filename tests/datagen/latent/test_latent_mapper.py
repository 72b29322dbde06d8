"""The latent mapper: nothing asked is nothing changed, it learns what is asked, stops and goes on; hostile files."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_build import tiny_generator
from safetensors.torch import save_file

from stylepairs.datagen.encoders.run_file import RunFile
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.latent.directions import DirectionInfo, direction_in_w, save_direction
from stylepairs.datagen.latent.edits import edit_and_attribute, load_edit, load_pair_edit
from stylepairs.datagen.latent.faces import SEEN_PX, FaceReader, SeenFaces
from stylepairs.datagen.latent.methods import latent_mapper
from stylepairs.datagen.latent.methods.latent_mapper import (
    Mapper,
    MapperSettings,
    linear_start,
    load_mapper,
    save_mapper,
    split,
    train_mapper,
    triplets,
)
from stylepairs.datagen.latent.samples import Samples
from stylepairs.datagen.latent.scorers import Score, Scorer
from stylepairs.datagen.shell.errors import InputError

SETTINGS = MapperSettings(steps=12, batch=4, width=16, learning_rate=3e-3, identity=0.1)


class Plain(FaceReader):
    def read(self, image: torch.Tensor) -> SeenFaces:
        classes = torch.zeros(len(image), 19, SEEN_PX, SEEN_PX)
        classes[:, 17, : SEEN_PX // 2] = 1
        return SeenFaces(image, image, classes, classes[:, 17:18], torch.zeros(len(image), 68, 2), image[:, 0, 0, 0])


def scorer() -> Scorer:
    reader = Plain(torch.nn.Identity(), torch.nn.Identity(), "")
    sides = slice(0, 16), slice(16, 32)
    scores = [
        Score(name, lambda x, _, at=at: x[..., at].mean((1, 2, 3)), True) for name, at in zip("ab", sides, strict=True)
    ]
    return Scorer(tuple(scores), reader, "")


@pytest.fixture(scope="module")
def samples() -> Samples:
    generator, judge = tiny_generator(), scorer()
    w = generator.mapping.to_w(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)))
    scores = judge(generator.synthesis(w[:, None].expand(-1, generator.num_ws, -1)).clamp(-1, 1))
    return Samples(w, {"a": scores[:, 0], "b": scores[:, 1]}, "d")


def trained(samples: Samples, state: RunFile | None = None, on_step=lambda step, loss: None, **changes) -> Mapper:
    settings = SETTINGS.model_copy(update=changes)
    return train_mapper(tiny_generator(), "d", samples, scorer(), load_perceptual("pyramid"), settings, state, on_step)


def error(mapper: Mapper, samples: Samples) -> float:
    """Mean squared distance of the changes from those asked, in deviations, on samples kept to check."""
    generator, rows = tiny_generator(), split(samples)[1]
    deviations = torch.tensor(mapper.info.deviations)
    w, change = triplets(samples, rows, ("a", "b"), deviations, SETTINGS.model_copy(update={"batch": 30}), 999)
    ws = w[:, None].expand(-1, generator.num_ws, -1)
    before, after = (scorer()(generator.synthesis(x).clamp(-1, 1)) for x in (ws, mapper.move(ws, change)))
    return float(((after - before) / deviations - change).square().mean())


def test_nothing_asked_is_nothing_changed_exactly(samples):
    mapper = trained(samples, steps=2)
    ws = samples.w[:3, None].expand(-1, 8, -1)
    assert torch.equal(mapper.move(ws, mapper.change()), ws)
    assert not torch.equal(mapper.move(ws, mapper.change(a=1.0)), ws)
    with pytest.raises(InputError, match="the mapper changes a, b"):
        mapper.change(c=1.0)


def test_the_linear_start_makes_the_wanted_change_and_no_other_by_its_own_slopes(samples):
    start, deviations = linear_start(samples, ("a", "b"))
    moved = start(samples.w[:1], torch.tensor([[1.0, 0.0]])) - samples.w[:1]
    scores = torch.stack([samples.scores["a"], samples.scores["b"]], 1)
    centred = (samples.w - samples.w.mean(0)).double()
    slopes = torch.linalg.lstsq(centred, ((scores - scores.mean(0)) / deviations).double()).solution
    assert torch.allclose((moved.double() @ slopes)[0], torch.tensor([1.0, 0.0]).double(), atol=0.15)


def test_training_comes_nearer_to_what_is_asked(samples):
    first, last = trained(samples, steps=1, learning_rate=1e-9), trained(samples, steps=25)
    assert error(last, samples) < 0.9 * error(first, samples)


def test_other_samples_are_told_by_their_digest(samples):
    other = Samples(samples.w, samples.scores | {"b": samples.scores["b"] + 1}, samples.generator_digest)
    assert samples.digest == Samples(samples.w.clone(), dict(samples.scores), "").digest != other.digest


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_weights(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_mapper, "_SAVE_EVERY", 3)
    whole, state = trained(samples), RunFile(tmp_path / "state", "run")

    def stop(step: int, _loss: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(samples, state, stop)
    assert state.path.exists()
    with pytest.raises(InputError, match="is of another run"):
        trained(samples, state, batch=3)
    again = trained(samples, state)
    assert state.path.exists()  # until the mapper is saved
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name


def test_a_training_that_goes_astray_ends_and_keeps_its_last_good_state(samples, tmp_path, monkeypatch):
    monkeypatch.setattr("stylepairs.datagen.latent.methods.latent_mapper._SAVE_EVERY", 1)
    state = RunFile(tmp_path / "state", "run")
    with pytest.raises(InputError, match=r"after \d steps the weights are not finite"):
        trained(samples, state, learning_rate=1e30, steps=4)
    good = state.path.read_bytes()
    network = torch.nn.Linear(2, 2)
    network.weight.data.fill_(float("inf"))
    with pytest.raises(InputError, match="last good state is kept"):
        state.write({"mapper": network}, {}, "", 2)
    assert state.path.read_bytes() == good


def test_a_mapper_comes_back_from_its_file_as_an_edit(samples, tmp_path):
    mapper, generator, path = trained(samples, steps=2), tiny_generator(), tmp_path / "m.safetensors"
    save_mapper(path, mapper)
    ws = samples.w[:2, None].expand(-1, 8, -1)
    edit = load_edit(path, generator, "d", "b")
    assert torch.equal(edit.move(ws, torch.tensor([0.5, -1])), mapper.move(ws, torch.tensor([[0, 0.5], [0, -1]])))
    path.with_suffix(".SAFETENSORS").write_bytes(path.read_bytes())
    assert load_edit(path.with_suffix(".SAFETENSORS"), generator, "d", "b").attribute == "b"
    with pytest.raises(InputError, match="name the attribute to change: a, b"):
        load_edit(path, generator, "d")
    with pytest.raises(InputError, match="another generator"):
        load_mapper(path, generator, "other")
    broken = {name: value.clone() for name, value in mapper.network.state_dict().items()}
    broken["linear.weight"][0, 0] = float("nan")
    save_file(broken, path, {"mapper": mapper.info.model_dump_json()})
    with pytest.raises(InputError, match="do not fit"):
        load_mapper(path, generator, "d")
    save_file({"linear.weight": torch.zeros(2, 2)}, path, {"mapper": mapper.info.model_dump_json()})
    with pytest.raises(InputError, match="do not fit"):
        load_mapper(path, generator, "d")
    save_file({}, path, {"mapper": "{}"})
    with pytest.raises(InputError, match="cannot be read as a mapper"):
        load_mapper(path, generator, "d")


def test_an_attribute_of_a_classifier_file_is_named_in_one_place_with_its_mapper(samples, tmp_path):
    name, path = "faces/ages.pt#3@112", tmp_path / "m#1.safetensors"
    mapper = trained(samples, steps=1)
    save_mapper(path, Mapper(mapper.network, mapper.info.model_copy(update={"attributes": ("a", name)})))
    assert edit_and_attribute(f"{path}#{name}") == (str(path), name)
    assert edit_and_attribute(str(path)) == (str(path), "")
    for strength, text in ((None, ""), (1.5, "@1.5")):
        edit = load_pair_edit(f"{path}#{name}{text}", tiny_generator(), "d")
        assert (edit.edit.attribute, edit.strength) == (name, strength)


def test_a_direction_takes_no_attribute_but_its_own(tmp_path):
    generator, path = tiny_generator(), tmp_path / "smile.safetensors"
    info = DirectionInfo(method="interfacegan", attribute="smile", generator_digest="d")
    save_direction(path, direction_in_w(torch.ones(16), generator, None, info))
    assert load_edit(path, generator, "d", "smile").info.attribute == "smile"
    with pytest.raises(InputError, match=r"smile.safetensors: is a direction, .*leave out yaw"):
        load_edit(path, generator, "d", "yaw")


def test_scores_that_do_not_vary_or_are_not_there_are_refused(samples):
    flat = Samples(samples.w, samples.scores | {"b": torch.zeros(300)}, "d")
    with pytest.raises(InputError, match="b: is the same in all samples"):
        linear_start(flat, ("a", "b"))
    with pytest.raises(InputError, match="at least 64 are needed"):
        linear_start(Samples(samples.w[:9], {"a": samples.scores["a"][:9]}, "d"), ("a",))


def test_no_attributes_and_unknown_classes_are_refused(samples):
    with pytest.raises(InputError, match="no attributes"):
        train_mapper(tiny_generator(), "d", samples, Scorer((), scorer().reader, ""), None, SETTINGS)
    with pytest.raises(InputError, match=r"frozen 'hairs': no class of the label map; did you mean 'hair'\?"):
        trained(samples, frozen=("hairs",))
