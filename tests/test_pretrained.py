"""Weights trained on other classes: what is taken from them, what stays fresh, what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from pipeline.checkpoints import write_weights
from pipeline.errors import CheckpointError
from pipeline.pretrained import check, facts, start_from
from pipeline.settings import Pretrained

ROOT = Path(__file__).parents[1]
CLOSED = "http://127.0.0.1:9"
"""Nothing listens there: refuses at once, on a machine that reaches the hubs too."""


def built(arch, classes, channels, width=1.0, seed=0, stem_stride: models.StemStride = 1):
    if arch.startswith("timm/") or "_v4" in arch:
        pytest.importorskip("timm", reason="needs timm")
    torch.manual_seed(seed)
    network = models.build(
        arch,
        classes=classes,
        channels=channels,
        image_size=32,
        width=width,
        stem_stride=stem_stride,
    )
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                value.normal_(std=0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return network.eval()


def saved(content, path):
    """Settings that name `path`, where a network is kept as the store keeps it."""
    if isinstance(content, nn.Module):
        write_weights(content, path)
    else:
        torch.save(content, path)
    return Pretrained(weights=path)


def copy(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


NETWORKS = [
    ("resnet8_cifar", 1.0, "0.weight", "8."),
    ("mobilenet_v2", 0.25, "features.0.0.weight", "classifier.1."),
    ("mobilenet_v3_small", 1.0, "features.0.0.weight", "classifier.3."),
    ("squeezenet1_1", 1.0, "features.0.weight", "classifier.1."),
    ("timm/test_efficientnet", 1.0, "conv_stem.weight", "classifier."),
    ("mobilenet_v4_conv_small", 1.0, "conv_stem.weight", "classifier."),
]


@pytest.mark.parametrize(("arch", "width", "first", "head"), NETWORKS)
def test_five_colour_classes_to_three_grey_ones(tmp_path, arch, width, first, head):
    source, network = built(arch, 5, 3, width), built(arch, 3, 1, width, seed=1)
    fresh = copy(network)
    names = start_from(network, arch, saved(source, tmp_path / "w.pt"))
    old, new = source.state_dict(), network.state_dict()
    own = [name for name, _ in network.named_parameters() if name.startswith(head)]
    assert names == set(own) and len(own) == 2
    for name, value in new.items():
        if name in names:
            assert torch.equal(value, fresh[name])
        elif name == first:
            assert torch.equal(value, old[name].sum(1, keepdim=True))
        else:
            assert torch.equal(value, old[name]), name


@pytest.mark.parametrize(("arch", "width", "first", "head"), NETWORKS)
def test_grey_images_give_the_features_that_they_gave_in_colour(tmp_path, arch, width, first, head):
    grey = torch.rand(2, 1, 32, 32)
    for had, has in ((3, 1), (1, 3)):
        source, network = built(arch, 5, had, width), built(arch, 3, has, width, seed=1)
        start_from(network, arch, saved(source, tmp_path / "w.pt"))
        before = features(source, head, grey.expand(-1, had, -1, -1))
        after = features(network, head, grey.expand(-1, has, -1, -1))
        assert before.std() > 1e-4
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def features(network, head, images):
    """What the last layer is given."""
    seen = []
    layer = network.get_submodule(head.rstrip("."))
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    network(images)
    hook.remove()
    return seen[0]


def test_the_last_layer_stays_fresh_for_as_many_classes_too(tmp_path):
    source, network = built("resnet8_cifar", 4, 3), built("resnet8_cifar", 4, 3, seed=1)
    fresh = copy(network)
    assert start_from(network, "resnet8_cifar", saved(source, tmp_path / "w.pt")) == {
        "8.weight",
        "8.bias",
    }
    new = network.state_dict()
    assert torch.equal(new["8.weight"], fresh["8.weight"])
    assert not torch.equal(new["8.weight"], source.state_dict()["8.weight"])
    assert torch.equal(new["0.weight"], source.state_dict()["0.weight"])


def test_both_heads_of_a_distilled_transformer_stay_fresh(tmp_path):
    arch = "timm/deit_tiny_distilled_patch16_224"
    source, network = built(arch, 5, 3), built(arch, 3, 1, seed=1)
    names = start_from(network, arch, saved(source, tmp_path / "w.pt"))
    assert names == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_an_auxiliary_head_stays_fresh_too(tmp_path):
    timm = pytest.importorskip("timm", reason="needs timm")
    with torch.device("meta"):  # 27 million weights, of which only names and shapes are of interest
        source, network = (timm.create_model("volo_d1_224", num_classes=n) for n in (5, 3))
    weights = {name: torch.zeros(value.shape) for name, value in source.state_dict().items()}
    settings = saved(weights, tmp_path / "w.pt")
    names = start_from(network.to_empty(device="cpu"), "timm/volo_d1_224", settings)
    assert names == {"head.weight", "head.bias", "aux_head.weight", "aux_head.bias"}


def test_another_stride_of_the_stem_fits(tmp_path):
    source = built("mobilenet_v2", 5, 3, 0.25, stem_stride=2)
    network = built("mobilenet_v2", 3, 3, 0.25, seed=1, stem_stride=1)
    start_from(network, "mobilenet_v2", saved(source, tmp_path / "w.pt"))
    name = "features.0.0.weight"
    assert torch.equal(network.state_dict()[name], source.state_dict()[name])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{name}": value for name, value in s.items()}},
        lambda s: {f"_orig_mod.{name}": value for name, value in s.items()},
        lambda s: {n: value for n, value in s.items() if not n.endswith("num_batches_tracked")},
        lambda s: {n: value for n, value in s.items() if not n.startswith("8.")},
        lambda s: {n: v.half() if v.is_floating_point() else v for n, v in s.items()},
    ],
    ids=["wrapped", "wrapped, DataParallel", "compiled", "no counters", "no head", "half"],
)
def test_other_ways_to_keep_the_same_weights(tmp_path, wrap):
    source, network = built("resnet8_cifar", 5, 3), built("resnet8_cifar", 3, 1, seed=1)
    start_from(network, "resnet8_cifar", saved(wrap(copy(source)), tmp_path / "w.pt"))
    wanted = source.state_dict()["0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(network.state_dict()["0.weight"], wanted, rtol=0, atol=2e-3)


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch", reason="needs safetensors").save_file
    source, network = built("resnet8_cifar", 5, 3), built("resnet8_cifar", 3, 3, seed=1)
    path = tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    start_from(network, "resnet8_cifar", Pretrained(weights=path))
    assert torch.equal(network.state_dict()["0.weight"], source.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda: built("resnet8_cifar", 5, 1, 2.0), r"0.weight is \(32, 1, 3, 3\), wanted \(16, "),
        (lambda: built("resnet14_cifar", 5, 1), "differences"),
        (lambda: built("mobilenet_v2", 5, 3, 0.25), "is missing.*is not part of resnet8_cifar"),
        (lambda: {"0.weight": torch.zeros(16, 4, 3, 3)}, r"wanted \(16, 1, 3, 3\).*is missing"),
        (lambda: {}, "0.weight is missing"),
        (lambda: [1, 2], "holds no state dict"),
    ],
    ids=["width", "depth", "network", "channels", "empty", "a list"],
)
def test_files_that_do_not_fit(tmp_path, source, words):
    network = built("resnet8_cifar", 3, 1)
    fresh = copy(network)
    settings = saved(source(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words) as caught:
        start_from(network, "resnet8_cifar", settings, "teach.pretrained")
    if "wanted" in words:
        assert "Set teach.arch, teach.width" in caught.value.remedy
    assert all(torch.equal(value, fresh[name]) for name, value in network.state_dict().items())


def test_paths_that_hold_no_checkpoint(tmp_path):
    network = built("resnet8_cifar", 3, 1)
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    key = "teach.pretrained"
    for name, words in [
        ("noise.pt", "cannot read the weights"),
        ("absent.pt", r"^teach.pretrained.weights: there is no file .*absent.pt"),
        (".", "^teach.pretrained.weights: .* is a folder, not a file"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            start_from(network, "resnet8_cifar", Pretrained(weights=tmp_path / name), key)


def test_early_check(tmp_path):
    check(None, "teach.pretrained", "resnet8_cifar", 2.0)
    check(saved({}, tmp_path / "w.pt"), "teach.pretrained", "resnet8_cifar", 2.0)
    hub = Pretrained(weights="hub")
    check(hub, "student.pretrained", "mobilenet_v2")
    with pytest.raises(CheckpointError, match=r"student\.pretrained\.weights: there is no"):
        check(Pretrained(weights=tmp_path / "x.pt"), "student.pretrained")
    with pytest.raises(CheckpointError, match="no hub has weights of resnet20_cifar") as caught:
        check(hub, "teach.pretrained", "resnet20_cifar")
    assert "--set teach.pretrained.weights=PATH" in caught.value.remedy
    with pytest.raises(CheckpointError, match=r"no hub has weights of mobilenet_v2 at width 0.5"):
        check(hub, "student.pretrained", "mobilenet_v2", 0.5)


def test_facts_are_of_the_content(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"same")
    (tmp_path / "b.pt").write_bytes(b"same")
    (tmp_path / "c.pt").write_bytes(b"other")
    a, b, c = (facts(Pretrained(weights=tmp_path / name)) for name in ("a.pt", "b.pt", "c.pt"))
    assert a == b != c and len(a["pretrained"]) == 64
    assert facts(Pretrained(weights="hub")) == {"pretrained": "hub"}
    assert facts(None) == {}
    with pytest.raises(CheckpointError, match="there is no file"):
        facts(Pretrained(weights=tmp_path / "absent.pt"))


def test_the_hub_has_none_of_this_projects_networks():
    with pytest.raises(CheckpointError, match="no hub has weights of resnet8_cifar"):
        start_from(built("resnet8_cifar", 3, 1), "resnet8_cifar", Pretrained(weights="hub"))


TRY = """
import json, sys, time, torch, models
from pipeline.errors import CheckpointError
from pipeline.pretrained import start_from
from pipeline.settings import Pretrained
answers = {}
for arch in sys.argv[1:]:
    network = models.build(arch, classes=3, channels=1, image_size=32)
    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    since = time.perf_counter()
    try:
        names = start_from(network, arch, Pretrained(weights="hub"), "teach.pretrained")
        weights = network.get_submodule("conv1" if "resnet" in arch else "features.0.0").weight
        answers[arch] = [sorted(names), weights.abs().sum().item()]
    except CheckpointError as error:
        answers[arch] = [str(error), time.perf_counter() - since]
    assert torch.equal(torch.get_rng_state(), drawn)
print(json.dumps(answers))
"""


def tried(archs, folder, **environment):
    """What `start_from` answers, in a process that reaches no hub; caches lie in `folder`."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), CLOSED)
    homes = {"HF_HOME": f"{folder}/hf", "TORCH_HOME": f"{folder}/torch", "HF_ENDPOINT": CLOSED}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    done = subprocess.run(
        [sys.executable, "-c", TRY, *archs],
        cwd=ROOT,
        env={**kept, **proxies, **homes, "no_proxy": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_hub_out_of_reach_is_said_soon_with_what_to_do(tmp_path):
    pytest.importorskip("timm", reason="needs timm")
    answers = tried(["resnet18", "timm/resnet18"], tmp_path)
    for arch, library in (("resnet18", "torchvision"), ("timm/resnet18", "timm")):
        message, seconds = answers[arch]
        assert message.startswith(f"cannot fetch the pretrained weights of {arch} from http")
        assert "refused" in message.splitlines()[0]
        assert f"import torch, {library}; torch.save({library}." in message
        assert "--set teach.pretrained.weights=resnet18.pt" in message
        assert seconds < 15


def test_what_was_fetched_before_is_used_without_the_hub(tmp_path):
    timm = pytest.importorskip("timm", reason="needs timm")
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    small = torchvision.models.mobilenet_v3_small()
    address = torchvision.models.get_model_weights("mobilenet_v3_small")["DEFAULT"].url
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(small.state_dict(), cache / address.rpartition("/")[2])
    resnet = timm.create_model("resnet18")
    repository = timm.get_pretrained_cfg("resnet18").hf_hub_id.replace("/", "--")
    home = tmp_path / "hf" / "hub" / f"models--{repository}"
    (home / "snapshots" / "0123").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123")
    save_file(resnet.state_dict(), home / "snapshots" / "0123" / "model.safetensors")
    answers = tried(["mobilenet_v3_small", "timm/resnet18"], tmp_path)
    for arch, first, head in (
        ("mobilenet_v3_small", small.state_dict()["features.0.0.weight"], "classifier.3"),
        ("timm/resnet18", resnet.state_dict()["conv1.weight"], "fc"),
    ):
        assert answers[arch][0] == [f"{head}.bias", f"{head}.weight"]
        assert answers[arch][1] == pytest.approx(first.sum(1).abs().sum().item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "timm/test_efficientnet"])
def test_the_real_hub(arch):
    network = built(arch, 3, 1)
    fresh = copy(network)
    try:
        names = start_from(network, arch, Pretrained(weights="hub"))
    except CheckpointError as error:
        if not error.message.startswith("cannot fetch"):
            raise
        pytest.skip(f"no hub in reach: {error.message}")
    changed = {n for n, v in network.named_parameters() if not torch.equal(v, fresh[n])}
    assert len(names) == 2 and not changed & names
    assert len(changed) > len(list(network.parameters())) / 2


def test_importable_without_torch():
    code = "import sys; sys.modules['torch'] = None; import pipeline.pretrained as p; " + (
        "from pipeline.settings import Pretrained; p.facts(Pretrained(weights='hub'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
