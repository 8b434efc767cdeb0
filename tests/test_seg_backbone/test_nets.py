"""Networks by name: the shapes they promise, and what is refused."""

import pytest
import torch

from seg_backbone.errors import ConfigError
from seg_backbone.nets import NETWORKS, build_network

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


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="residual_unet.*'unet'"):
        build_network("unet", 2, 3, {})
    assert "residual_unet" in NETWORKS


@pytest.mark.parametrize(
    ("options", "words"),
    [({"depth": 3}, "options of residual_unet.*depth"), ({"features": (4, 8)}, "differ in length")],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(ConfigError, match=words):
        build_network("residual_unet", 2, 3, options)
