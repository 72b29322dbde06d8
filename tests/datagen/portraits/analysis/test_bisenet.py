"""BiSeNet: the state dict of the field's weights loads by its names; other files give one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from stylepairs.datagen.portraits.analysis.analyser import load_analyser
from stylepairs.datagen.portraits.analysis.bisenet import BiSeNet, load_bisenet_parser, subject_sides
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.shell.errors import InputError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "79999_iter.pth"
    torch.save(BiSeNet().state_dict(), path)
    return path


def test_parameter_names_and_shapes_are_those_of_the_published_weights() -> None:
    shapes = {name: tuple(value.shape) for name, value in BiSeNet().state_dict().items()}
    expected = {
        "cp.resnet.conv1.weight": (64, 3, 7, 7),
        "cp.resnet.bn1.running_mean": (64,),
        "cp.resnet.layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "cp.resnet.layer2.0.downsample.1.running_var": (128,),
        "cp.resnet.layer4.1.bn2.bias": (512,),
        "cp.arm16.conv.conv.weight": (128, 256, 3, 3),
        "cp.arm32.conv_atten.weight": (128, 128, 1, 1),
        "cp.arm32.bn_atten.num_batches_tracked": (),
        "cp.conv_head32.conv.weight": (128, 128, 3, 3),
        "cp.conv_head16.bn.weight": (128,),
        "cp.conv_avg.conv.weight": (128, 512, 1, 1),
        "ffm.convblk.conv.weight": (256, 256, 1, 1),
        "ffm.conv1.weight": (64, 256, 1, 1),
        "ffm.conv2.weight": (256, 64, 1, 1),
        "conv_out.conv.conv.weight": (256, 256, 3, 3),
        "conv_out.conv_out.weight": (19, 256, 1, 1),
        "conv_out16.conv.conv.weight": (64, 128, 3, 3),
        "conv_out32.conv_out.weight": (19, 64, 1, 1),
    }
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.slow
def test_the_parser_gives_labels_and_a_matte(weights: Path) -> None:
    analyser = load_analyser(parser=weights)
    label, hair = analyser.parse(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert label.shape == (2, 64, 64)
    assert label.dtype == torch.uint8
    assert int(label.max()) < 19
    assert hair.shape == (2, 1, 64, 64)
    assert 0 <= float(hair.min()) <= float(hair.max()) <= 1


def test_sides_follow_the_picture() -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.uint8)
    label[0, 2, 1], label[0, 2, 6] = CLASS["l_eye"], CLASS["r_eye"]
    label[0, 1, 1], label[0, 1, 6] = CLASS["r_brow"], CLASS["l_brow"]
    sided = subject_sides(label)
    assert sided[0, 2, 1] == CLASS["r_eye"]
    assert sided[0, 2, 6] == CLASS["l_eye"]
    assert sided[0, 1, 1] == CLASS["r_brow"]
    assert sided[0, 1, 6] == CLASS["l_brow"]


def test_files_that_are_no_bisenet_give_one_line(tmp_path: Path, weights: Path) -> None:
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:100_000])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"cp.conv_avg.conv.weight": torch.zeros(3)}, tmp_path / "part.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for path in [*tmp_path.iterdir(), tmp_path / "missing.pth", tmp_path]:
        with pytest.raises(InputError) as error:
            load_bisenet_parser(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
    assert not (tmp_path / "ran").exists()
