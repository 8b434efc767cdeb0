"""Networks by name: the shapes they promise, and what is refused."""

import pytest
import torch

from seg_backbone.errors import ConfigError
from seg_backbone.nets import NETWORKS, build_classifier, build_network, parts

TINY = {"features": (3, 4, 5, 6, 7), "blocks": (1, 1, 2, 1, 1), "strides": (1, 2, 2, 2, 2)}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", [(32, 16, 16), (16, 48, 32)])
def test_shapes(shape):
    torch.manual_seed(0)
    network = build_network("residual_unet", 2, 9, TINY).eval()
    with torch.inference_mode():
        x = torch.randn(2, 2, *shape)
        maps = network.encoder(x)
        assert [m.shape[1] for m in maps] == [3, 4, 5, 6, 7]
        assert [tuple(m.shape[2:]) for m in maps] == [tuple(n // 2**s for n in shape) for s in range(5)]
        logits = network.decoder(maps)
        assert logits.shape == (2, 9, *shape)
        torch.testing.assert_close(network(x), logits)
        # each sample is normalised by itself: a batch changes nothing
        torch.testing.assert_close(network(x[:1]), logits[:1], atol=1e-4, rtol=1e-3)


def test_the_default_is_the_documented_one():
    network = build_network("residual_unet", 2, 9, {})
    assert [stage.blocks[0].conv2.conv.out_channels for stage in network.encoder.stages] == [12, 24, 48, 96, 192]
    assert [len(stage.blocks) for stage in network.encoder.stages] == [1, 1, 2, 2, 2]


def test_every_map_feeds_the_logits():
    torch.manual_seed(0)
    network = build_network("residual_unet", 2, 3, TINY)
    maps = [m.detach().requires_grad_() for m in network.encoder(torch.randn(1, 2, 32, 16, 16))]
    network.decoder(maps).square().sum().backward()
    assert all(m.grad is not None and m.grad.abs().max() > 0 for m in maps)


def test_every_weight_learns():
    """All but the heads of the coarser outputs, which are unused."""
    torch.manual_seed(0)
    network = build_network("residual_unet", 2, 3, TINY)
    network(torch.randn(1, 2, 32, 16, 16)).square().sum().backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert idle == {f"decoder.seg_layers.{n}.{kind}" for n in range(3) for kind in ("weight", "bias")}


SMALL = {
    "residual_unet": TINY,
    "plain_unet": {"features": (4, 8), "deep_supervision": True},
    "segresnet": {"features": 8},
    "swin_unetr": {"features": 12, "depths": (1, 1, 1, 1)},
}


@pytest.mark.parametrize("name", SMALL)
def test_the_encoder_is_what_the_feature_maps_depend_on(name):
    network = build_network(name, 2, 3, SMALL[name]).to("meta")
    named = {
        part: [p for m in modules for p in m.parameters(recurse=False)] for part, modules in parts(network).items()
    }
    sum(one.sum() for one in network.encoder(torch.zeros(1, 2, 64, 64, 64, device="meta"))).backward()
    assert all(p.grad is not None for p in named["encoder"]) and named["encoder"]
    assert all(p.grad is None for p in named["decoder"]) and named["decoder"]
    assert len({*named["encoder"], *named["decoder"]}) == len([*network.parameters()])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="residual_unet.*'unet'"):
        build_network("unet", 2, 3, {})
    assert "residual_unet" in NETWORKS


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("residual_unet", {"depth": 3}, "options of residual_unet.*depth"),
        ("residual_unet", {"features": (4, 8)}, "expected options of residual_unet"),
        ("resenc_unet", {"strides": [1, 2]}, "features, strides and kernels differ in length"),
        ("plain_unet", {"kernels": [[3, 3]] * 6}, "one number or three"),
        ("plain_unet", {"features": [4]}, "two stages or more"),
        ("segresnet", {"width": 10}, "options of segresnet.*width"),
        ("segresnet", {"down": [1, 2]}, "one entry less"),
    ],
)
def test_options_that_do_not_fit(name, options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build_network(name, 2, 3, options)
    assert "\n" not in str(caught.value)


THICK = {
    "features": (4, 6, 8),
    "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
}


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet"])
def test_strides_and_kernels_of_each_axis(name):
    torch.manual_seed(0)
    network = build_network(name, 3, 2, THICK).eval()
    x = torch.randn(1, 3, 16, 12, 6)
    with torch.inference_mode():
        maps = network.encoder(x)
        assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 12, 6), (6, 8, 6, 6), (8, 4, 3, 3)]
        assert network(x).shape == (1, 2, 16, 12, 6)
        assert network.divisor == (4, 4, 2)
        torch.testing.assert_close(network(x), network.decoder(maps))
    kernels = {tuple(p.shape[2:]) for key, p in network.encoder.stages[0].named_parameters() if p.ndim == 5}
    assert kernels <= {(3, 3, 1), (1, 1, 1)} and (3, 3, 1) in kernels


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet", "residual_unet"])
def test_deep_supervision_is_a_list_in_training_only(name):
    torch.manual_seed(0)
    options = {"features": (4, 6, 8), "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)), "deep_supervision": True}
    options |= {} if name == "plain_unet" else {"blocks": (1, 1, 1)}
    network = build_network(name, 2, 3, options)
    x = torch.randn(1, 2, 16, 16, 4)
    logits = network(x)
    assert [tuple(part.shape[1:]) for part in logits] == [(3, 16, 16, 4), (3, 8, 8, 4)]
    sum(part.square().sum() for part in logits).backward()
    assert all(p.grad is not None for p in network.parameters())
    network.eval()
    torch.testing.assert_close(network(x), logits[0])
    assert isinstance(network.train()(x), list)
    plain = build_network(name, 2, 3, {key: value for key, value in options.items() if key != "deep_supervision"})
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert plain.train()(x).shape == (1, 3, 16, 16, 4)


def test_the_presets_are_nnunets():
    with torch.device("meta"):
        plans = {size: build_network(f"resenc_unet_{size}", 1, 2, {}) for size in "sml"}
        plain = build_network("plain_unet", 1, 2, {})
    blocks = {size: [len(stage.blocks) for stage in network.encoder.stages] for size, network in plans.items()}
    assert blocks == {"s": [1, 1, 2, 2, 2], "m": [1, 3, 4, 6, 6, 6], "l": [1, 3, 4, 6, 6, 6, 6]}
    assert plans["m"].encoder.output_channels == plain.encoder.output_channels == [32, 64, 128, 256, 320, 320]


@pytest.mark.parametrize(
    ("name", "options", "maps"),
    [
        ("segresnet", {"features": 8}, [(8, 64), (16, 32), (32, 16), (64, 8)]),
        (
            "swin_unetr",
            {"features": 12, "depths": (1, 1, 1, 1)},
            [(12, 64), (12, 32), (24, 16), (48, 8), (96, 4), (192, 2)],
        ),
    ],
)
def test_monais_networks_in_two_halves(name, options, maps):
    torch.manual_seed(0)
    network = build_network(name, 1, 3, options).eval()
    x = torch.randn(1, 1, 64, 64, 64)
    with torch.inference_mode():
        found = network.encoder(x)
        assert [(m.shape[1], m.shape[2]) for m in found] == maps
        assert network.divisor == (64 // maps[-1][1],) * 3
        # MONAI's own forward pass, which ours replaces
        torch.testing.assert_close(network.decoder(found), type(network).__mro__[1].forward(network, x))
        assert network(x).shape == (1, 3, 64, 64, 64)


def test_the_classifier_of_windows():
    network = build_classifier("resnet18", 2, 1, {"features": (4, 8, 8, 16)}).eval()
    with torch.inference_mode():
        assert network(torch.randn(3, 2, 48, 40, 32)).shape == (3, 1)
    with pytest.raises(ConfigError, match=r"\['resnet18'\].*'resnet'"):
        build_classifier("resnet", 1, 1, {})
    with pytest.raises(ConfigError, match="four entries"):
        build_classifier("resnet18", 1, 1, {"features": (4, 8)})
