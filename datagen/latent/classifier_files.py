"""Classifiers of users as TorchScript or ONNX files: data from outside, checked before anything in them runs.

A TorchScript file is a program. Its source is read first and refused if it calls anything but plain tensor operations
from a list (so no file access, no custom operators), loops without a count, or runs code while it is loaded.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from stylepairs.datagen.shell.decode import Damaged, decoding, read_bytes
from stylepairs.datagen.shell.durable import file_digest
from stylepairs.datagen.shell.errors import InputError, one_line

SUFFIXES = (".pt", ".ts", ".onnx")
MAX_BYTES = 1 << 30
MAX_SOURCE_BYTES = 4 << 20
MAX_OUTPUTS = 1000
MAX_SIDE_PX = 4096
_DEFAULT_PX = 224
EMBEDDING_PX = 112  # side that face recognition networks take
# Operations of image classifiers, as TorchScript writes them. All compute on what they are given and do nothing else.
_NAMES = (
    "_convolution conv2d linear addmm matmul batch_norm layer_norm group_norm instance_norm relu relu_ relu6 "
    "relu6_ hardtanh hardtanh_ leaky_relu leaky_relu_ gelu silu silu_ sigmoid sigmoid_ tanh softmax log_softmax "
    "hardswish hardswish_ hardsigmoid hardsigmoid_ softplus elu prelu mish max_pool2d avg_pool2d "
    "adaptive_avg_pool2d adaptive_max_pool2d dropout dropout_ feature_dropout cat stack flatten view reshape "
    "permute transpose contiguous size dim len mean sum add add_ sub sub_ mul mul_ div div_ neg pow sqrt rsqrt "
    "exp log abs square clamp minimum maximum mm bmm t unsqueeze squeeze slice select expand expand_as chunk "
    "split narrow pixel_shuffle pixel_unshuffle pad constant_pad_nd upsample_bilinear2d upsample_nearest2d "
    "interpolate to type_as float detach clone norm linalg_vector_norm scaled_dot_product_attention unbind argmax "
    "amax amin eq ne lt le gt ge __isnot__ __is__ __not__ rsub floor_divide remainder Int Float Bool NumToTensor "
    "ImplicitTensorToNum ScalarImplicit TupleUnpack format RaiseException "
)
_OPERATIONS = frozenset(_NAMES.split())
_BUILT_IN = frozenset({"annotate", "getattr", "unchecked_cast", "int", "float", "bool", "range", "forward"})


@dataclass(frozen=True)
class Classifier:
    """run(images [N,3,size_px,size_px] in [-1,1]) -> outputs [N,K] float32; differentiable: by autograd."""

    path: Path
    run: Any
    size_px: int
    outputs: int
    differentiable: bool
    digest: str

    def score(self, image: torch.Tensor) -> torch.Tensor:
        """image [N,3,H,W] in [-1,1] -> [N,K]. Raises InputError where the file's own code fails."""
        size = (self.size_px, self.size_px)
        if image.shape[-1] != self.size_px:
            image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
        try:
            found = self.run(image.clamp(-1, 1))
        except Exception as error:  # noqa: BLE001 - whatever a file of another's raises
            raise InputError(
                f"{self.path}: fails on [{len(image)},3,{size[0]},{size[1]}] ({one_line(error)})"
            ) from None
        if not isinstance(found, torch.Tensor) or found.ndim == 0 or len(found) != len(image):
            raise InputError(f"{self.path}: gives no tensor [N,K] for N images; export it with one output")
        return found.float().flatten(1) if found.ndim > 1 else found.float()[:, None]


def load_classifier(path: Path, size_px: int | None = None) -> Classifier:
    """The classifier in a TorchScript (.pt, .ts) file, which runs where its images are, or an ONNX file, on the CPU.

    It takes RGB [N,3,H,W] in [-1,1], aligned faces, and gives [N,K]; wrap what wants another range. size_px: the side
    that it takes; None: what an ONNX file says, else 224. Raises InputError.
    """
    try:
        data = read_bytes(path, MAX_BYTES)
    except Damaged as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    digest = file_digest(path)
    if path.suffix == ".onnx":
        run, fixed_px = _onnx_session(path, data)
        made = Classifier(path, run, size_px or fixed_px or _DEFAULT_PX, 1, False, digest)
    else:
        made = Classifier(path, _torchscript(path, data), size_px or _DEFAULT_PX, 1, True, digest)
    if not 0 < made.size_px <= MAX_SIDE_PX:
        raise InputError(f"{path}: takes images of {made.size_px} px; 1 to {MAX_SIDE_PX} are taken")
    with torch.no_grad():
        outputs = made.score(torch.zeros(2, 3, made.size_px, made.size_px)).shape[1]
    if not 0 < outputs <= MAX_OUTPUTS:
        raise InputError(f"{path}: gives {outputs} figures an image; 1 to {MAX_OUTPUTS} are taken")
    return replace(made, outputs=outputs)


def load_embedding(path: Path) -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """A face recognition network as a TorchScript file: cropped faces [N,3,H,W] in [-1,1] -> embeddings [N,K], with
    gradients; and the digest of its file. Raises InputError."""
    found = load_classifier(path, EMBEDDING_PX)
    if not found.differentiable or found.outputs < 2:
        raise InputError(f"{path}: must be TorchScript, for its gradients, and give an embedding [N,K] for N faces")
    return found.score, found.digest


def _torchscript(path: Path, data: bytes) -> Any:
    try:
        _check_source(data)
        with decoding():
            module = torch.jit.load(io.BytesIO(data), map_location="cpu")
    except Damaged as error:
        raise InputError(
            f"{path}: is not taken as TorchScript ({error}); export it anew, a classifier to ONNX"
        ) from None
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    # It follows its images: samples are scored on a GPU, an encoder is trained there.
    return lambda image: module.to(image.device)(image)


def _check_source(data: bytes) -> None:
    """Raises Damaged unless the archive's program is made of known operations alone."""
    with decoding():
        archive = zipfile.ZipFile(io.BytesIO(data))
    members = archive.infolist()
    if sum(member.file_size for member in members) > MAX_BYTES:
        raise Damaged("larger than its bytes")
    sources = [member for member in members if member.filename.endswith(".py")]
    if not sources or sum(member.file_size for member in sources) > MAX_SOURCE_BYTES:
        raise Damaged("no program, or one of megabytes")
    if any(member.filename.endswith("bytecode.pkl") for member in members):
        raise Damaged("bytecode, whose operations cannot be read")
    trees = []
    for member in sources:
        with decoding():
            trees.append(ast.parse(archive.read(member)))
    own = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for tree in trees:
        for problem in _problems(tree, own):
            raise Damaged(problem)


def _problems(tree: ast.AST, own: set[str]) -> Iterator[str]:
    known = _OPERATIONS | _BUILT_IN | own - _all_operations()
    aliases = set()  # "_0 = __torch__.torch.nn.functional.batch_norm": functions of the file itself
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _root(node.value) == "__torch__":
            aliases |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.While):
            yield "it loops without a count"
        elif isinstance(node, ast.FunctionDef) and node.name in ("__setstate__", "__getstate__"):
            yield "it runs code while it is loaded"
        elif isinstance(node, ast.Attribute) and _root(node) in ("torch", "ops"):
            if node.attr not in known | {"prim", "aten"}:
                yield f"it uses {node.attr[:40]}"
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "?")
            if name not in known and not (isinstance(node.func, ast.Name) and name in aliases):
                yield f"it calls {name[:40]}"


def _root(node: ast.AST) -> str:
    """The name that a chain of attributes begins with: "torch" of torch.nn.relu."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _all_operations() -> frozenset[str]:
    """Names of all operations that this torch has: a file's own functions may not pass for one of them."""
    schemas = torch._C._jit_get_all_schemas()
    return frozenset(schema.name.rpartition("::")[2] for schema in schemas) - _BUILT_IN


def _onnx_session(path: Path, data: bytes) -> tuple[Any, int | None]:
    """A function [N,3,H,W] -> [N,K] and the side that the file's input is fixed to, None where it is free."""
    try:
        import onnx
        import onnxruntime as ort
    except ImportError:
        raise InputError(f"{path}: needs onnx and onnxruntime; pip install 'stylepairs[export]'") from None
    try:
        with decoding():
            model = onnx.load_model_from_string(data)
        _check_graph(model.graph)
        if model.functions:
            raise Damaged("it has functions of its own")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        with decoding():
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Damaged as error:
        raise InputError(f"{path}: is not taken as ONNX ({error}); export it with its weights inside") from None
    inputs = [(each.name, each.shape) for each in session.get_inputs()]
    if len(inputs) != 1 or len(inputs[0][1]) != 4:
        raise InputError(
            f"{path}: takes inputs of shape {str([shape for _, shape in inputs])[:200]}; it must take one, [N,3,H,W]"
        )
    ((name, shape),) = inputs

    def run(image: torch.Tensor) -> torch.Tensor:
        count = shape[0] if isinstance(shape[0], int) else len(image)  # exported for a fixed batch, or any
        padded = torch.cat([image, image[-1:].expand(-len(image) % count, -1, -1, -1)]).cpu().float()
        parts = [session.run(None, {name: part.numpy()})[0] for part in padded.split(count)]
        return torch.cat([torch.from_numpy(part) for part in parts])[: len(image)]

    return run, shape[3] if isinstance(shape[3], int) else None


def _check_graph(graph: Any) -> None:
    """Raises Damaged for weights in other files, which could be any file, and for loops, which need not end."""
    import onnx

    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml") or node.op_type in ("Loop", "Scan"):
            raise Damaged(f"it uses {node.domain[:20]} {node.op_type[:40]}")
        for value in node.attribute:
            tensors += [value.t, *value.tensors]
            for inner in [value.g, *value.graphs]:
                _check_graph(inner)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise Damaged("its weights lie in another file")
