"""Users' classifier files: what is taken, and what hostile ones may not do."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from stylepairs.datagen.latent.classifier_files import load_classifier
from stylepairs.datagen.latent.scorers import load_scorer
from stylepairs.datagen.shell.errors import InputError

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


class Brightness(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([image.mean((1, 2, 3)), image.amax((1, 2, 3))], 1)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).eval()


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module), str(path))
    return path


def test_torchscript_gives_its_own_figures_with_gradients(tmp_path):
    network = small_network()
    classifier = load_classifier(scripted(network, tmp_path / "net.pt"), 32)
    image = IMAGES.clone().requires_grad_()
    assert (classifier.outputs, classifier.differentiable) == (3, True)
    assert torch.allclose(classifier.score(image), network(image), atol=1e-6)
    assert torch.autograd.grad(classifier.score(image).sum(), image)[0].abs().max() > 0


@pytest.mark.gpu
def test_torchscript_runs_where_its_images_are(tmp_path):
    classifier = load_classifier(scripted(small_network(), tmp_path / "net.pt"), 32)
    here, there = classifier.score(IMAGES), classifier.score(IMAGES.cuda())
    assert there.is_cuda
    assert torch.allclose(here, there.cpu(), atol=1e-4)


def test_a_traced_network_is_taken_too(tmp_path):
    torch.jit.save(torch.jit.trace(small_network(), IMAGES), str(tmp_path / "net.ts"))
    assert load_classifier(tmp_path / "net.ts", 32).outputs == 3


@pytest.mark.slow
def test_onnx_gives_the_same_figures_and_says_its_own_side(tmp_path):
    pytest.importorskip("onnxruntime")
    network, path = small_network(), tmp_path / "net.onnx"
    torch.onnx.export(network, (IMAGES,), path, dynamo=True, external_data=False, verbose=False)
    classifier = load_classifier(path)
    assert (classifier.size_px, classifier.differentiable) == (32, False)
    assert torch.allclose(classifier.score(IMAGES), network(IMAGES), atol=1e-5)
    assert torch.allclose(classifier.score(IMAGES[:1]), network(IMAGES[:1]), atol=1e-5)


def test_a_scorer_takes_an_output_by_number_at_a_side(tmp_path):
    path = scripted(Brightness(), tmp_path / "light.pt")
    scorer = load_scorer([f"{path}@32", f"{path}#1@32"])
    assert torch.allclose(scorer(IMAGES), Brightness()(IMAGES), atol=1e-5)
    with pytest.raises(InputError, match="gives 2 outputs"):
        load_scorer([f"{path}#2@32"])


class ReadsFiles(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.from_file("/etc/hostname", False, 4, dtype=torch.uint8).float().mean() + image.mean((1, 2, 3))


class WritesFiles(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        torch.save(image, "written-by-a-classifier")
        return image.mean((1, 2, 3))


class Loops(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.mean((1, 2, 3))
        while bool(x.isfinite().all()):
            x = x + 1
        return x


class RunsWhileLoaded(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((1, 2, 3))

    @torch.jit.export
    def __getstate__(self) -> bool:
        return self.training

    @torch.jit.export
    def __setstate__(self, state: bool) -> None:
        self.training = state


@pytest.mark.parametrize(
    "module, reason",
    [
        (ReadsFiles(), "it (calls|uses) from_file"),
        (WritesFiles(), "it (calls|uses) save"),
        (Loops(), "it loops without a count"),
        (RunsWhileLoaded(), "it runs code while it is loaded"),
    ],
)
def test_programs_that_do_more_than_compute_are_refused_before_they_run(module, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = scripted(module, tmp_path / "hostile.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match=f"hostile.pt: is not taken as TorchScript .{reason}"):
        load_classifier(path)
    assert not (tmp_path / "written-by-a-classifier").exists()


@pytest.mark.parametrize(
    "code",
    [
        "torch.from_file(x)",
        'x.save("there")',
        "ops.mylib.steal(x)",
        "(torch).save(x)",
        "torch.classes.mine.Thing(x)",
        "torch.save",
        "[torch.relu, torch.save][1](x)",
    ],
)
def test_no_spelling_hides_a_call(code, tmp_path):
    source = scripted(small_network(), tmp_path / "net.pt").read_bytes()
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith("linear.py"):
                data = data.replace(b"return torch.linear(", f"y = {code}\n    return torch.linear(".encode())
            new.writestr(member.filename, data)
    (tmp_path / "edited.pt").write_bytes(out.getvalue())
    with pytest.raises(InputError, match=r"edited.pt: is not taken"):
        load_classifier(tmp_path / "edited.pt")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02garbage", b"x" * 5000])
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_bytes_that_are_no_network_are_one_line(data, suffix, tmp_path):
    (tmp_path / f"net{suffix}").write_bytes(data)
    with pytest.raises(InputError, match=f"net{suffix}: is not taken"):
        load_classifier(tmp_path / f"net{suffix}")


def test_a_missing_file_and_a_failing_network_are_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_classifier(tmp_path / "none.pt")
    path = scripted(nn.Linear(7, 1), tmp_path / "wrong.pt")
    with pytest.raises(InputError, match=r"wrong.pt: fails on"):
        load_classifier(path)


def test_onnx_weights_in_other_files_and_loops_are_refused(tmp_path):
    onnx, path = pytest.importorskip("onnx"), tmp_path / "net.onnx"
    image, light = (onnx.helper.make_tensor_value_info(name, 1, [2, 3, 32, 32]) for name in ("image", "light"))
    gain = onnx.helper.make_tensor("gain", 1, [1], [2.0])
    node = onnx.helper.make_node("Mul", ["image", "gain"], ["light"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "net", [image], [light], [gain]))
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/hostname")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="another file"):
        load_classifier(path)
    model.graph.node[0].op_type = "Loop"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"it uses .*Loop"):
        load_classifier(path)


@pytest.mark.parametrize(
    "sides, message", [([], r"takes inputs of shape \[\]"), ([99_999], "takes images of 99999 px")]
)
def test_onnx_inputs_that_no_image_is_are_one_line(sides, message, tmp_path):
    onnx, path = pytest.importorskip("onnx"), tmp_path / "net.onnx"
    shaped = onnx.helper.make_tensor_value_info
    light = onnx.helper.make_tensor("own", 1, [1, 1], [2.0])
    nodes = [onnx.helper.make_node("Identity", ["own"], ["light"])]
    images = [shaped("image", 1, [1, 3, side, side]) for side in sides]
    graph = onnx.helper.make_graph(nodes, "net", images, [shaped("light", 1, [1, 1])], [light])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    with pytest.raises(InputError, match=f"net.onnx: {message}"):
        load_classifier(path)
