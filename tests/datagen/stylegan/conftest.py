"""Networks with the fixtures' weights, and a writer of pickles laid out as NVIDIA's training code lays them out."""

from __future__ import annotations

import json
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.checkpoints import load_generator
from stylepairs.datagen.stylegan.discriminator import Discriminator, DiscriminatorConfig
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig
from stylepairs.datagen.stylegan.key_maps import ROSINALITY, generator_names

DATA = Path(__file__).parents[2] / "data" / "stylegan"
CLASS_NAMES = {"ToRGB": "ToRGBLayer", "FullyConnected": "FullyConnectedLayer", "Conv2d": "Conv2dLayer"}
# Any import of this source would raise, so a test that passes has not run it.
MODULE_SOURCE = "raise RuntimeError('the source inside a pickle was executed')\n" + "# padding\n" * 2000


def formula_tensors(entries: list[dict]) -> dict[str, torch.Tensor]:
    """The weights that a fixture's JSON defines; entries without a scale (FIR filters) are left out."""
    tensors = {}
    for entry in entries:
        if entry["scale"] is not None:
            count = int(np.prod(entry["shape"]))
            values = np.random.RandomState(1000 + entry["index"]).standard_normal(count)
            values = entry["offset"] + entry["scale"] * values
            tensors[entry["key"]] = torch.from_numpy(values.reshape(entry["shape"]).astype(np.float32))
    return tensors


def read_json(name: str) -> dict:
    return json.loads((DATA / name).read_text())


@pytest.fixture(scope="session")
def reference() -> dict[str, dict[str, torch.Tensor]]:
    """Official outputs by fixture: "ada", "discriminator", "rosinality"."""
    files = {
        "ada": "stylegan2_ada_32.npz",
        "discriminator": "stylegan2_ada_discriminator_32.npz",
        "rosinality": "stylegan2_rosinality_32.npz",
    }
    return {name: {k: torch.from_numpy(v) for k, v in np.load(DATA / file).items()} for name, file in files.items()}


@pytest.fixture(scope="session")
def ada_generator() -> Generator:
    fixture = read_json("stylegan2_ada_32.json")
    settings = {key: value for key, value in fixture["generator"].items() if key != "num_ws"}
    generator = Generator(GeneratorConfig(**settings))
    missing = generator.load_state_dict(formula_tensors(fixture["tensors"]), strict=False).missing_keys
    assert all(key.endswith("resample_filter") for key in missing)
    return generator.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def ada_discriminator() -> Discriminator:
    tensors = formula_tensors(read_json("stylegan2_ada_32.json")["discriminator_tensors"])
    discriminator = Discriminator(DiscriminatorConfig(img_resolution=32, channel_base=1024, channel_max=64))
    missing = discriminator.load_state_dict(tensors, strict=False).missing_keys
    assert all(key.endswith("resample_filter") for key in missing)
    return discriminator.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def rosinality_state() -> dict[str, torch.Tensor]:
    """g_ema of the rosinality fixture, FIR kernels included."""
    fixture = read_json("stylegan2_rosinality_32.json")
    kernel = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0])] * 2) / 16
    filters = {entry["key"]: kernel.clone() for entry in fixture["tensors"] if entry["scale"] is None}
    return formula_tensors(fixture["tensors"]) | filters


@pytest.fixture
def small_generator() -> Generator:
    """8 px, a few thousand parameters, for tests that write many files."""
    torch.manual_seed(0)
    config = GeneratorConfig(z_dim=6, w_dim=5, img_resolution=8, channel_base=64, channel_max=8, mapping_layers=2)
    generator = Generator(config)
    generator.mapping.w_avg.normal_()
    return generator.eval().requires_grad_(False)


@pytest.fixture
def renamed_state():
    """state(generator, layout, prefix=""): its weights with rosinality's or OpenMMLab's names and shapes; no w_avg."""
    return _renamed_state


def _renamed_state(generator: Generator, layout: int = ROSINALITY, prefix: str = "") -> dict[str, torch.Tensor]:
    names = generator_names(generator.config.img_resolution, generator.config.mapping_layers, layout)
    state = {}
    for ours, theirs in names.items():
        value = generator.state_dict()[ours]
        if ours.endswith("noise_const"):
            value = value[None, None]
        elif ours.endswith("noise_strength"):
            value = value.reshape(1)
        elif ours.endswith("torgb.bias"):
            value = value.reshape(1, -1, 1, 1)
        elif ours.endswith(".const") or (value.ndim == 4 and ours.endswith(".weight")):
            value = value[None]
        state[prefix + theirs] = value.clone()
    kernel = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0])] * 2) / 16
    for index in range(len(generator.config.resolutions) - 1):
        state[f"{prefix}convs.{2 * index}.conv.blur.kernel"] = kernel.clone()
        state[f"{prefix}to_rgbs.{index}.upsample.kernel"] = kernel.clone()
    return state


@pytest.fixture
def refusal():
    """message(path, load=load_generator): of the InputError that loading must raise, one line, the file first."""

    def message_of(path, load=load_generator) -> str:
        with pytest.raises(InputError) as caught:
            load(path)
        message = str(caught.value)
        shown = "".join(c if c.isprintable() else "?" for c in str(path))
        assert message.startswith(f"{shown}: ")
        assert message.isprintable()
        assert len(message) < len(str(path)) + 400
        return message

    return message_of


@pytest.fixture
def refusal_of(refusal, tmp_path):
    """message(content): the same, for a file of these bytes."""

    def message_of(content: bytes) -> str:
        (tmp_path / "file").write_bytes(content)
        return refusal(tmp_path / "file")

    return message_of


@pytest.fixture
def official_bytes():
    """write(networks, protocol=4, layout="ada", **options): the bytes of an official pickle; see `_OfficialWriter`."""
    return lambda networks, protocol=4, **options: _OfficialWriter(**options).dumps(networks, protocol)


class _OfficialWriter:
    """Pickles networks as torch_utils.persistence does, with stand-ins for the two modules that the pickle names.

    layout "ada" nests synthesis_kwargs, "stylegan3" spreads them; attributes overrides attributes by dotted prefix.
    """

    def __init__(
        self, layout: str = "ada", conv_clamp: float | None = None, attributes: dict | None = None, extra=None
    ):
        self.layout, self.conv_clamp, self.attributes, self.extra = layout, conv_clamp, attributes or {}, extra or {}
        self.persistence = types.ModuleType("torch_utils.persistence")
        self.util = types.ModuleType("dnnlib.util")
        self.persistence._reconstruct_persistent_obj = _named("torch_utils.persistence", "_reconstruct_persistent_obj")
        self.util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util", "__qualname__": "EasyDict"})

    def dumps(self, networks: dict[str, nn.Module], protocol: int) -> bytes:
        easy = self.util.EasyDict
        data: dict = {
            "training_set_kwargs": easy(class_name="training.dataset.ImageFolderDataset", path="a.zip", xflip=True)
        }
        data |= {name: self.convert(network) for name, network in networks.items()}
        data |= {"augment_pipe": None} | self.extra
        parents = {name: types.ModuleType(name) for name in ("torch_utils", "dnnlib")}
        stand_ins = parents | {"torch_utils.persistence": self.persistence, "dnnlib.util": self.util}
        saved = {name: sys.modules.get(name) for name in stand_ins}
        sys.modules.update(stand_ins)
        try:
            return pickle.dumps(data, protocol=protocol)
        finally:
            for name, module in saved.items():
                sys.modules.pop(name) if module is None else sys.modules.__setitem__(name, module)

    def convert(self, module: nn.Module, prefix: str = "") -> _Persistent:
        state = self.torch_state(module)
        children = {name: self.convert(child, f"{prefix}{name}.") for name, child in module.named_children()}
        class_name = CLASS_NAMES.get(type(module).__name__, type(module).__name__)
        state["_modules"] = OrderedDict(children)
        state |= self.plain_attributes(module, class_name)
        if class_name == "DiscriminatorEpilogue":
            mbstd = self.torch_state(nn.Module()) | {"_modules": OrderedDict(), "group_size": 4, "num_channels": 1}
            state["_modules"]["mbstd"] = _Persistent(self.persistence, "MinibatchStdLayer", mbstd)
        state |= self.attributes.get(prefix, {})
        return _Persistent(self.persistence, class_name, state)

    def torch_state(self, module: nn.Module) -> dict:
        """What torch.nn.Module keeps in __dict__, as recent versions do."""
        state = {key: value for key, value in vars(module).items() if key.startswith("_") or key == "training"}
        state["_parameters"] = OrderedDict((k, v) for k, v in module._parameters.items())
        state["_buffers"] = OrderedDict((k, v) for k, v in module._buffers.items())
        return state

    def plain_attributes(self, module: nn.Module, class_name: str) -> dict:
        easy = self.util.EasyDict
        state: dict = {"_init_args": (), "_init_kwargs": easy()}
        if class_name in ("SynthesisLayer", "ToRGBLayer", "Conv2dLayer"):
            state |= {"conv_clamp": self.conv_clamp, "weight_gain": np.float64(0.1)}
        if class_name in ("SynthesisLayer", "Conv2dLayer"):
            state |= {"activation": "lrelu", "act_gain": np.sqrt(2)}
        if class_name == "FullyConnectedLayer":
            state |= {"activation": module.act, "bias_gain": module.bias_gain, "weight_gain": np.float64(0.1)}
        if class_name in ("SynthesisBlock", "DiscriminatorBlock", "DiscriminatorEpilogue"):
            state["architecture"] = "skip" if class_name == "SynthesisBlock" else "resnet"
        if class_name == "Generator":
            inner = easy(channel_base=module.config.channel_base, channel_max=module.config.channel_max)
            inner.update(num_fp16_res=4, conv_clamp=self.conv_clamp)
            nested = {"synthesis_kwargs": inner} if self.layout == "ada" else inner
            sizes = {"z_dim": module.config.z_dim, "c_dim": 0, "w_dim": module.config.w_dim}
            state["_init_kwargs"] = easy(**sizes, mapping_kwargs=easy(num_layers=4), **nested)
        return state


class _Persistent:
    """Reduces as a class decorated by persistence.persistent_class does."""

    def __init__(self, persistence: types.ModuleType, class_name: str, state: dict):
        self.persistence, self.class_name, self.state = persistence, class_name, state

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": MODULE_SOURCE}
        meta |= {"class_name": self.class_name, "state": self.state}
        return self.persistence._reconstruct_persistent_obj, (meta,), None


def _named(module: str, name: str):
    def function(*_):
        raise AssertionError("a name in a pickle was called")

    function.__module__, function.__name__, function.__qualname__ = module, name, name
    return function
