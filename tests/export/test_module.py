"""Files and modules: tied weights, other devices' names, buffers, what differs; and nothing that is half loaded."""

import io

import pytest
import torch
from export.drawn import Holder, same_bits
from export.plain import rebuilt
from helpers import loader, net, trainer
from torch import nn

from lightning_sparse import MaskUpdater, export
from lightning_sparse.export import load_packed, save_packed
from lightning_sparse.quant.grid import Codes, quantize


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def thinned(model, density=0.1):
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.masked_fill_(torch.rand(weight.shape) >= density, 0.0)
    return model


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)


def test_a_module_is_loaded_in_place_and_keeps_its_parameters(tmp_path):
    saved, model = thinned(small(1)), small(2)
    saved(torch.randn(5, 2, 4, 4))  # moves the averages of BatchNorm
    save_packed(saved, tmp_path / "net")
    before = list(model.parameters())
    assert load_packed(tmp_path / "net", model) is model
    assert same(state(model), state(saved))
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_model_that_was_trained_sparse_comes_back_with_its_zeros(tmp_path):
    model, updater = net(), MaskUpdater("rigl", 0.2)
    trainer([updater], max_steps=4).fit(model, loader())
    report = export.save_packed(model, tmp_path / "net")
    found = export.load_packed(tmp_path / "net")
    assert same(found, state(model))
    for name, mask in updater.masks.items():
        assert not found[name][~mask].any()
    live = {row.name: row.live for row in report.tensors}
    assert all(live[name] <= int(mask.sum()) for name, mask in updater.masks.items())  # no dead weight is a minus zero


def test_the_dict_loads_into_plain_pytorch(tmp_path):
    model = thinned(small())
    save_packed(model, tmp_path / "net")
    other = small(5)
    other.load_state_dict(load_packed(tmp_path / "net"))
    assert same(state(other), state(model))
    stream = io.BytesIO()
    torch.save(load_packed(tmp_path / "net"), stream)
    stream.seek(0)
    assert same(torch.load(stream, weights_only=True), state(model))


def tied(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(300, 300, bias=False), nn.Linear(300, 300, bias=False), nn.Linear(300, 300))
    model[2].weight = model[0].weight
    return model


def test_tied_weights_are_stored_once_and_are_one_again(tmp_path):
    report = save_packed(tied(), tmp_path / "net")
    assert [row.name for row in report.tensors] == ["0.weight", "1.weight", "2.bias"]
    assert report.dense_bytes == 4 * (2 * 90_000 + 300)
    found = load_packed(tmp_path / "net")
    assert list(found) == ["0.weight", "1.weight", "2.bias", "2.weight"]
    assert found["0.weight"] is found["2.weight"]
    assert same(state(load_packed(tmp_path / "net", tied(1))), state(tied()))


def test_tied_weights_load_into_a_module_that_does_not_tie_them_and_back(tmp_path):
    loose = nn.Sequential(*(nn.Linear(300, 300, bias=i == 2) for i in range(3)))
    save_packed(tied(), tmp_path / "tied")
    assert same(state(load_packed(tmp_path / "tied", loose)), state(tied()))
    save_packed(loose, tmp_path / "loose")
    assert same(state(load_packed(tmp_path / "loose", tied(1))), state(tied()))


def test_two_tensors_do_not_load_into_one(tmp_path):
    loose, model = nn.Sequential(*(nn.Linear(300, 300, bias=i == 2) for i in range(3))), tied()
    save_packed(loose, tmp_path / "net")
    before = state(model)
    with pytest.raises(ValueError, match=r"2.weight and 0.weight are one tensor in the module, and differ"):
        load_packed(tmp_path / "net", model)
    assert same(state(model), before)


def test_codes_are_given_by_either_name_of_a_tied_weight(tmp_path):
    model = thinned(tied())
    codes = quantize(model[0].weight, 8)
    for name in ("0.weight", "2.weight"):
        save_packed(model, tmp_path / name, {name: codes})
    assert (tmp_path / "0.weight").read_bytes() == (tmp_path / "2.weight").read_bytes()
    assert same_bits(load_packed(tmp_path / "0.weight")["2.weight"], codes.weight())
    other = Codes(codes.codes, codes.scale * 2, 0, 8)
    with pytest.raises(ValueError, match=r"codes\['2.weight'\] differ from those of a weight that it is tied to"):
        save_packed(model, tmp_path / "net", {"0.weight": codes, "2.weight": other})


def test_codes_of_a_half_precision_weight_are_rounded_to_it(tmp_path):
    weight = torch.zeros(30, 40, dtype=torch.bfloat16)
    weight[3, 5] = weight[7, 1] = 1.0
    codes = Codes((weight != 0).to(torch.int8) * 3, torch.full((30,), 0.1), 0, 8)
    save_packed(Holder({"w": weight}), tmp_path / "net", {"w": codes})
    found = load_packed(tmp_path / "net")["w"]
    assert found.dtype == torch.bfloat16
    assert found[3, 5].item() == 0.30078125  # 0.3 has 8 bits there: 77 / 256
    assert found.count_nonzero() == 2


def test_a_compiled_model_and_a_plain_one_share_files(tmp_path):
    model = thinned(small())
    compiled = nn.Sequential(nn.Module(), torch.compile(model, backend="eager"))
    plain = nn.Sequential(nn.Module(), small(3))
    assert "1._orig_mod.0.weight" in compiled.state_dict()
    save_packed(compiled, tmp_path / "net")
    assert same(state(load_packed(tmp_path / "net", plain)[1]), state(model))
    model[0].weight.data.zero_()
    load_packed(tmp_path / "net", compiled)
    assert same(state(model), state(plain[1]))


def test_all_that_does_not_fit_is_said_at_once_and_nothing_is_loaded(tmp_path):
    save_packed(small(1), tmp_path / "net")
    other = nn.Sequential(nn.Conv2d(2, 4, 5), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3).half())
    other.add_module("head", nn.Linear(2, 1, bias=False))
    del other[1].running_var
    before = state(other)
    with pytest.raises(ValueError, match="it does not fit the module: 5 problems") as error:
        load_packed(tmp_path / "net", other)
    text = str(error.value)
    assert f"cannot load {tmp_path / 'net'}" in text
    assert "0.weight has shape [4, 2, 3, 3] in the file and [4, 2, 5, 5] in the module" in text
    assert "1.running_var is in the file, but not in the module" in text
    assert "3.weight is float32 in the file and float16 in the module" in text
    assert "3.bias is float32 in the file and float16 in the module" in text
    assert "head.weight is in the module, but not in the file" in text
    assert same(state(other), before)


def test_a_few_bytes_that_claim_a_large_tensor_need_a_word(tmp_path):
    file = tmp_path / "net"
    save_packed(Holder({"w": torch.zeros(1000)}), file)
    with pytest.raises(ValueError, match=r"claim to hold 4,000, more than 3,999; .* max_bytes=4000 if you trust it"):
        load_packed(file, max_bytes=3999)
    assert load_packed(file, max_bytes=4000)["w"].equal(torch.zeros(1000))
    row = f"dtype=F32 shape={2**28 + 1} live=0 crc32="  # 1 GiB, and one weight more
    file.write_bytes(rebuilt(file.read_bytes(), lambda _, rows: rows.update({"tensor:w": row})))
    with pytest.raises(ValueError, match=r"claim to hold 1,073,741,828, more than 1,073,741,824; .* max_bytes=10737"):
        load_packed(file)
    with pytest.raises(ValueError, match=r"w has shape \[268435457\] in the file and \[1000\] in the module"):
        load_packed(file, Holder({"w": torch.zeros(1000)}))
