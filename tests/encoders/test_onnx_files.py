"""ONNX files: the weights that their checksum covers are all that they take, and they give one output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from scripts.core.errors import SettingsError
from scripts.encoders.backbones import get_backbone

GIVEN = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}


def write(path: Path, outputs: tuple[str, ...] = ("features",), weights: str | None = None) -> Path:
    """A file whose features are a product with three means, with its weights in itself or in another file."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "w"], ["features"]),
        helper.make_node("Softmax", ["features"], ["logits"], axis=1),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    gives = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in outputs]
    weight = numpy_helper.from_array(np.arange(12, dtype="f4").reshape(3, 4), "w")
    graph = helper.make_graph(nodes, "graph", given, gives, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    apart: dict[str, Any] = {"save_as_external_data": True, "location": weights, "size_threshold": 0}
    onnx.save_model(model, str(path), **(apart if weights else {}))
    return path


def test_weights_in_a_file_that_no_checksum_covers_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "net.onnx", weights="weights.bin")
    told = r"net\.onnx: has weights that are neither in it nor whole in net\.onnx\.data beside it\. Export it again"
    for beside in (None, b"unrelated"):
        if beside:
            (tmp_path / "net.onnx.data").write_bytes(beside)
        for folder in (Path(__file__).parent, tmp_path):
            monkeypatch.chdir(folder)
            with pytest.raises(SettingsError, match=told):
                get_backbone("onnx", path, given=GIVEN)


def test_weights_beside_the_file_are_used_through_links_and_must_be_whole(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    write(tmp_path / "store" / "net.onnx", weights="net.onnx.data")
    for name in ("net.onnx", "net.onnx.data"):
        (tmp_path / name).symlink_to(tmp_path / "store" / name)
    assert get_backbone("onnx", tmp_path / "net.onnx", given=GIVEN).num_features == 4
    (tmp_path / "store" / "net.onnx.data").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"nor whole in net\.onnx\.data beside it"):
        get_backbone("onnx", tmp_path / "net.onnx", given=GIVEN)


def test_a_file_of_several_outputs_is_refused_because_none_is_known_to_be_the_features(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", outputs=("logits", "features"))
    with pytest.raises(SettingsError, match=r"net\.onnx: gives 2 outputs \('logits', 'features'\)\. Export it"):
        get_backbone("onnx", path, given=GIVEN)
