"""Trained weights: strict loading with errors of one line, and the best network of every output."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from monai.networks import convert_to_torchscript
from torch import Tensor, nn

from scripts.core.errors import SettingsError
from scripts.networks.bag_network import BagNetwork
from scripts.networks.baselines import MSMIL
from scripts.networks.methods import get_network
from scripts.networks.mustmil import MuSTMIL
from scripts.networks.state_record import sign, weights_sha256
from scripts.weights.checkpoints import HeadwiseNetwork, load_weights
from tests.weights.test_record import DATA, SETTINGS

F, M, K = 6, 4, 3


class Encoder(nn.Module):
    """A backbone that counts the patches that pass it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, F, 3)
        self.patches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.patches += len(x)
        result: Tensor = self.conv(x).mean(dim=(2, 3))
        return result


def network(seed: int = 0, backbone: nn.Module | None = None, freeze_backbone: bool = True) -> MuSTMIL:
    torch.manual_seed(seed)
    return MuSTMIL(K, 2, F, M, backbone=backbone, freeze_backbone=freeze_backbone)


def save(folder: Path, *networks: nn.Module) -> list[Path]:
    paths = [folder / f"head{index}.pt" for index in range(len(networks))]
    for path, member in zip(paths, networks, strict=True):
        torch.save(member.state_dict(), path)
    return paths


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_loads_a_bare_state_dict_and_one_named_model(tmp_path: Path, wrap: object) -> None:
    trained, fresh = network(1), network(2)
    torch.save(wrap(trained.state_dict()), tmp_path / "model.pt")  # type: ignore[operator]
    load_weights(fresh, str(tmp_path / "model.pt"))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in trained.state_dict().items())


def test_a_missing_file_is_named_and_says_to_train_first(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError,
        match=r"model_5x.pt: there is no such file. Name the folder of the weights that training wrote: --ckpt_dir",
    ):
        load_weights(network(), tmp_path / "model_5x.pt")


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64, torch.bool])
def test_weights_of_another_kind_are_refused_and_not_rounded(tmp_path: Path, kind: torch.dtype) -> None:
    state = dict(network(1).state_dict())
    torch.save({**state, "embed.0.weight": state["embed.0.weight"].to(kind)}, tmp_path / "model.pt")
    name = str(kind).removeprefix("torch.")
    with pytest.raises(SettingsError, match=rf"embed.0.weight is 4x6 {name} in the file and 4x6 in the network"):
        load_weights(network(), tmp_path / "model.pt")


def test_a_checkpoint_of_another_network_names_both_sides_and_changes_nothing(tmp_path: Path) -> None:
    (path,) = save(tmp_path, MuSTMIL(K, 2, F + 1, M))
    fresh = network()
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(SettingsError, match=r"embed.0.weight is 4x7 in the file and 4x6 in the network") as error:
        load_weights(fresh, path)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_missing_and_unexpected_weights_are_named(tmp_path: Path) -> None:
    (path,) = save(tmp_path, MuSTMIL(K, 1, F, M))
    with pytest.raises(SettingsError, match=r"attention.2.0.bias is absent in the file and 2 in the network.* more"):
        load_weights(network(), path)
    (path,) = save(tmp_path, network(backbone=Encoder(), freeze_backbone=False))
    with pytest.raises(SettingsError, match=r"net.conv.bias is 6 in the file and absent in the network"):
        load_weights(network(backbone=Encoder()), path)


def test_weights_for_another_task_name_both_sides_and_not_shapes(tmp_path: Path) -> None:
    trained = network(1)
    sign(trained, {"settings": SETTINGS, "data": DATA, "version": "1"})
    (path,) = save(tmp_path, trained)
    told = r"they were trained with other settings \(task 'multilabel', now 'binary'\)\. Use the settings of"
    with pytest.raises(SettingsError, match=told):
        load_weights(MuSTMIL(1, 2, F, M), path, {**SETTINGS, "task": "binary"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PyTorch checkpoint"),
        (b"id,cancer\n1,0\n", "is not a PyTorch checkpoint"),
        (b"text", "is not a PyTorch checkpoint"),
        (b"PK\x03\x04 cut off", "is not a PyTorch checkpoint"),
        ([1, 2], "contains neither a state dict nor one named 'model'"),
        ({"state": {}}, "contains neither a state dict nor one named 'model'"),
        (nn.Linear(1, 1), "is not a PyTorch checkpoint of plain tensors"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_an_error_of_one_line(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SettingsError, match=message) as error:
        load_weights(network(), path)
    assert "\n" not in str(error.value)


def test_each_head_comes_from_its_own_checkpoint(tmp_path: Path) -> None:
    members = [network(seed) for seed in (1, 2, 3)]
    original = network(4)
    before = copy.deepcopy(original.state_dict())
    headwise = HeadwiseNetwork(original, save(tmp_path, *members))
    x, log_weight = torch.randn(2, 5, 2, F), torch.zeros(2, 5, 2)
    log_weight[1, 3:] = -torch.inf

    logits, attention, _ = headwise.explain(x, log_weight)
    assert torch.equal(headwise(x, log_weight), logits)
    for head, member in enumerate(members):
        wanted_logits, wanted_attention = member.attend(x, log_weight)
        assert torch.equal(logits[:, head], wanted_logits[:, head])
        assert torch.equal(attention[:, :, head], wanted_attention[:, :, head])
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


def test_it_tells_which_weights_each_head_comes_from(tmp_path: Path) -> None:
    members = [network(seed) for seed in (1, 2, 3)]
    headwise = HeadwiseNetwork(network(4), save(tmp_path, *members))
    hashes = headwise.weights_sha256(["global", "5x", "10x"])
    assert list(hashes) == ["global", "5x", "10x"]
    assert list(hashes.values()) == [weights_sha256(member.state_dict()) for member in members]
    assert len(set(hashes.values())) == 3


@pytest.mark.parametrize("kind", [MuSTMIL, MSMIL])
def test_each_head_is_explained_by_its_own_checkpoint(tmp_path: Path, kind: type[BagNetwork]) -> None:
    heads, maps_of_head = (3, [[0], [1], [2]]) if kind is MuSTMIL else (1, [[0, 1]])
    members = []
    for seed in range(heads):
        torch.manual_seed(seed)
        members.append(kind(num_classes=K, num_scales=2, num_features=F, num_nodes=M))
    headwise = HeadwiseNetwork(copy.deepcopy(members[0]), save(tmp_path, *members))
    x, log_weight = torch.randn(2, 5, 2, F), torch.zeros(2, 5, 2)
    log_weight[1, 3:] = -torch.inf

    logits, attention, contribution = headwise.explain(x, log_weight)
    assert torch.equal(headwise(x, log_weight), logits)
    assert contribution.shape == attention.shape
    for head, (member, maps) in enumerate(zip(members, maps_of_head, strict=True)):
        assert torch.equal(contribution[:, :, maps], member.explain(x, log_weight)[2][:, :, maps])
        bias = member.get_parameter(f"myfc.{head}.bias")
        assert torch.allclose(contribution[:, :, maps].sum(dim=(1, 2)) + bias, logits[:, head], atol=1e-6)


def test_a_network_without_maps_has_one_head(tmp_path: Path) -> None:
    member = get_network("transmil", num_classes=K, num_features=F, num_nodes=8)
    headwise = HeadwiseNetwork(copy.deepcopy(member), save(tmp_path, member)).eval()
    x = torch.randn(2, 5, 2, F)
    logits, attention, contribution = headwise.explain(x)
    assert torch.equal(logits, member.eval()(x))
    assert attention.shape == contribution.shape == (2, 5, 0, K)


def test_a_frozen_backbone_is_shared_and_sees_each_patch_once(tmp_path: Path) -> None:
    encoder = Encoder()
    members = [network(seed, encoder) for seed in (1, 2, 3)]
    headwise = copy.deepcopy(HeadwiseNetwork(network(4, encoder), save(tmp_path, *members)))
    x = torch.randn(1, 5, 2, 3, 8, 8)
    wanted = torch.stack([member(x)[:, head] for head, member in enumerate(members)], dim=1)
    assert torch.equal(headwise(x), wanted)
    assert len({id(member.net) for member in headwise.copies}) == 1
    net = headwise.get_submodule("copies.0.net")
    assert isinstance(net, Encoder)
    assert net.patches == 10
    headwise.explain(x)
    assert net.patches == 20


def test_a_trained_backbone_belongs_to_its_copy(tmp_path: Path) -> None:
    members = [network(seed, Encoder(), freeze_backbone=False) for seed in (1, 2, 3)]
    headwise = HeadwiseNetwork(network(4, Encoder(), freeze_backbone=False), save(tmp_path, *members))
    x = torch.randn(1, 5, 2, 3, 8, 8)
    wanted = torch.stack([member(x)[:, head] for head, member in enumerate(members)], dim=1)
    assert torch.equal(headwise(x), wanted)


def test_the_number_of_checkpoints_must_be_that_of_the_outputs(tmp_path: Path) -> None:
    paths = save(tmp_path, network(), network())
    with pytest.raises(SettingsError, match=r"weights: got .*Give 3 checkpoints"):
        HeadwiseNetwork(network(), paths)
    with pytest.raises(SettingsError, match=r"weights: got 'abc'. Give 3 checkpoints"):
        HeadwiseNetwork(network(), "abc")


def test_torchscript_gives_the_same_outputs(tmp_path: Path) -> None:
    headwise = HeadwiseNetwork(network(4), save(tmp_path, *[network(seed) for seed in (1, 2, 3)]))
    x = torch.randn(2, 5, 2, F)
    scripted = convert_to_torchscript(headwise)
    assert torch.allclose(scripted(x), headwise(x), atol=1e-6)
    for one, other in zip(scripted.explain(x), headwise.explain(x), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
