"""Opening and writing weights files."""

import pickle
from argparse import Namespace

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from idgen.checkpoint import load_metadata, load_onnx, load_strict, load_weights, save_weights, sha256
from idgen.errors import IdgenError

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)}


def assert_one_line(error: pytest.ExceptionInfo[IdgenError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_safetensors_come_back_as_saved_with_their_metadata(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, WEIGHTS, {"method": "arc2face", "sizes": [1, 2]})
    loaded = load_weights(path)
    assert list(loaded) == sorted(WEIGHTS, key=list(loaded).index)
    assert all(
        torch.equal(loaded[name], WEIGHTS[name]) and loaded[name].dtype == WEIGHTS[name].dtype for name in WEIGHTS
    )
    assert load_metadata(path) == {"method": "arc2face", "sizes": "[1, 2]"}


def test_tied_tensors_are_saved_twice(tmp_path):
    path = tmp_path / "tied.safetensors"
    shared = torch.ones(4)
    save_weights(path, {"a": shared, "b": shared, "c": shared[:2]})
    assert [len(t) for _, t in sorted(load_weights(path).items())] == [4, 4, 2]


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".ckpt"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": {"state_dict": w}, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
    ],
)
def test_pickled_weights_are_unwrapped_from_their_containers(tmp_path, suffix, legacy, wrap):
    path = tmp_path / f"w{suffix}"
    torch.save(wrap(WEIGHTS), path, _use_new_zipfile_serialization=not legacy)
    loaded = load_weights(path)
    assert set(loaded) == set(WEIGHTS)
    assert torch.equal(loaded["conv.weight"], WEIGHTS["conv.weight"])


@pytest.mark.parametrize("legacy", [False, True])
def test_what_psp_and_e4e_save_loads_without_their_options(tmp_path, legacy):
    path = tmp_path / "e4e_ffhq_encode.pt"
    options = Namespace(exp_dir="runs/e4e", lr=1e-4, start_from_latent_avg=True, layers=[1, 2], device=None)
    content = {"state_dict": WEIGHTS, "latent_avg": torch.ones(18, 512), "opts": options}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_weights(path)
    assert list(loaded) == [*WEIGHTS, "latent_avg"]
    assert torch.equal(loaded["latent_avg"], content["latent_avg"])
    assert Namespace not in torch.serialization.get_safe_globals(), "allowed beyond the load"


def test_two_tensors_of_one_name_are_refused(tmp_path):
    path = tmp_path / "twice.pt"
    torch.save({"state_dict": {"latent_avg": torch.ones(2)}, "latent_avg": torch.zeros(2)}, path)
    with pytest.raises(IdgenError) as error:
        load_weights(path)
    assert_one_line(error, "two tensors", "latent_avg")


def test_nested_dicts_become_dotted_names(tmp_path):
    path = tmp_path / "ip.bin"
    torch.save({"image_proj": {"w": torch.ones(2)}, "ip_adapter": {"1.to_k": {"weight": torch.zeros(1)}}}, path)
    assert set(load_weights(path)) == {"image_proj.w", "ip_adapter.1.to_k.weight"}


@pytest.mark.parametrize("how", ["zip", "legacy", "plain", "nested"])
def test_a_pickle_that_would_run_code_is_refused_and_never_runs(tmp_path, how):
    marker, path = tmp_path / "it-ran", tmp_path / "evil.pth"
    content = {"w": torch.ones(1), "extra": RunsCode(marker)}
    if how == "plain":
        path.write_bytes(pickle.dumps(RunsCode(marker)))
    elif how == "nested":
        torch.save({"state_dict": content}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(IdgenError) as error:
        load_weights(path)
    assert_one_line(error, "evil.pth", "would run code", "safetensors")
    assert not marker.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    path = tmp_path / "module.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(IdgenError) as error:
        load_weights(path)
    assert_one_line(error, "module.pt", "would run code")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".onnx"])
@pytest.mark.parametrize("keep", [1, 40, 0.5, 0.99])
def test_a_truncated_file_is_one_line(tmp_path, suffix, keep):
    path = tmp_path / f"cut{suffix}"
    weights = {"w": torch.randn(5000)}
    if suffix == ".onnx":
        onnx.save(tiny_onnx(), path)
    elif suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(IdgenError) as error:
        load_weights(path)
    assert_one_line(error, f"cut{suffix}", "fetch it again")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".onnx"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello, I am a text file\n" * 20, "not a"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git-lfs"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (bytes(range(256)) * 8, "not a"),
    ],
)
def test_a_file_that_is_no_weights_file_is_one_line(tmp_path, suffix, content, words):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    with pytest.raises(IdgenError) as error:
        load_weights(path)
    assert_one_line(error, f"junk{suffix}", words)


def test_missing_files_folders_and_unknown_suffixes_are_named(tmp_path):
    for path, words in ((tmp_path / "no.bin", "no such"), (tmp_path, "folder"), (tmp_path / "a.npz", "unknown kind")):
        if path.suffix == ".npz":
            path.write_bytes(b"x")
        with pytest.raises(IdgenError) as error:
            load_weights(path)
        assert_one_line(error, str(path), words)


def test_a_pickle_without_tensors_is_refused(tmp_path):
    path = tmp_path / "empty.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(IdgenError, match="no tensors"):
        load_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_non_finite_weights_are_refused_by_name(tmp_path, value, suffix):
    path = tmp_path / f"nan{suffix}"
    weights = {"good": torch.ones(2), "layer.3.bad": torch.tensor([1.0, value])}
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    with pytest.raises(IdgenError) as error:
        load_weights(path)
    assert_one_line(error, "layer.3.bad", "NaN")
    assert "layer.3.bad" in load_weights(path, allow_non_finite=True)
    with pytest.raises(IdgenError, match=r"layer\.3\.bad"):
        save_weights(tmp_path / "out.safetensors", weights)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_weights(path, {"old": torch.ones(3)})

    def fail(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, {"new": torch.ones(3)})
    assert list(load_weights(path)) == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(IdgenError, match="safetensors"):
        save_weights(tmp_path / "a.bin", WEIGHTS)


def test_strict_loading_lists_ten_keys_of_each_kind_and_the_count():
    module = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(8)])
    state = {f"other.{index}": torch.ones(1) for index in range(12)} | {"0.weight": torch.ones(3, 2)}
    with pytest.raises(IdgenError) as error:
        load_strict(module, state, "test weights")
    assert_one_line(
        error,
        "test weights",
        "15 missing: 0.bias, 1.weight",
        "12 unexpected: other.0",
        "0.weight [3, 2] instead of [2, 2]",
    )
    assert "other.9" in str(error.value) and "other.10" not in str(error.value)


@pytest.mark.parametrize("key", ["attn2.to_k.weight", "1.to_k_ip.weight", "1.id_to_k.weight", "1.to_k_wplus.weight"])
def test_weights_of_another_base_are_refused_in_words(key):
    module = torch.nn.Module()
    *parents, attribute = key.removesuffix(".weight").split(".")
    inner = module
    for name in parents:
        inner.add_module(name, torch.nn.Module())
        inner = getattr(inner, name)
    inner.add_module(attribute, torch.nn.Linear(768, 4, bias=False))
    with pytest.raises(IdgenError) as error:
        load_strict(module, {key: torch.ones(4, 2048)}, "adapter.bin")
    assert_one_line(error, "adapter.bin: made for SDXL", "the model is Stable Diffusion 1.5")
    load_strict(module, {key: torch.ones(4, 768)}, "adapter.bin")


def test_strict_loading_accepts_exact_weights_and_forgives_the_batch_counter():
    module, source = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    torch.nn.init.normal_(source.weight)
    state = {key: value for key, value in source.state_dict().items() if key != "num_batches_tracked"}
    load_strict(module, state, "bn")
    assert torch.equal(module.weight, source.weight)


def test_sha256_is_the_files_own(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def tiny_onnx() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(torch.ones(2).numpy())),
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        helper.make_node("Add", ["y", "c"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 300])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2])],
        [
            numpy_helper.from_array(torch.randn(2, 300).numpy(), "w"),
            numpy_helper.from_array(torch.zeros(2).numpy(), "b"),
        ],
    )
    return helper.make_model(graph)


def test_onnx_files_give_their_graph_and_constants(tmp_path):
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_onnx(), path)
    graph = load_onnx(path)
    assert [node.op for node in graph.nodes] == ["Gemm", "Add"]
    assert graph.nodes[0].attributes["transB"] == 1
    assert graph.inputs == ("x",) and graph.outputs == ("z",)
    assert set(load_weights(path)) == {"w", "b", "c"}
