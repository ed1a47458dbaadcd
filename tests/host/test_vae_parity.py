"""Our Stage A, image encoder and Previewer against the host's own nets and torchvision's, on equal weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from recipe import weights_for
from tiny import relative

from cascade_studio.stages.nets.encoder import ImageEncoder, normalise
from cascade_studio.stages.nets.previewer import Previewer
from cascade_studio.stages.nets.stage_a import StageA, StageAConfig

TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def with_weights(net: torch.nn.Module) -> torch.nn.Module:
    net.load_state_dict(weights_for({key: value.shape for key, value in net.state_dict().items()}))
    return net.requires_grad_(False)


def shared(theirs: torch.nn.Module, ours: torch.nn.Module) -> torch.nn.Module:
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval().requires_grad_(False)


def test_stage_a(host):
    from comfy.ldm.cascade.stage_a import StageA as HostStageA

    ours = with_weights(StageA())
    theirs = shared(HostStageA(), ours)
    latent, image = torch.randn(2, 4, 15, 22), torch.rand(2, 3, 60, 88)
    scale = ours.config.scale_factor  # the host applies it in the latent format instead
    with torch.inference_mode():
        assert relative(ours.decode(latent), theirs.decode(latent * scale)) <= TOLERANCE
        assert relative(ours.encode(image) * scale, theirs.encode(image)) <= TOLERANCE
        vectors, _, indices, loss = theirs.encode(image, quantize=True)
        found = ours.quantize(ours.encode(image))
        assert (found.indices == indices).float().mean() > 0.995  # a tie may fall either way
        same = (found.indices == indices)[:, None].expand_as(vectors)
        torch.testing.assert_close(found.vectors[same] * scale, vectors[same], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.loss, loss, rtol=1e-3, atol=0)


def test_image_encoder_and_previewer(host):
    from comfy.ldm.cascade.stage_c_coder import StageC_coder

    encoder, previewer = with_weights(ImageEncoder()), with_weights(Previewer())
    theirs = StageC_coder()
    theirs.previewer = shared(theirs.previewer, previewer)
    theirs.encoder.load_state_dict(encoder.state_dict(), strict=False)
    theirs = theirs.eval().requires_grad_(False)
    image, latent = torch.rand(2, 3, 96, 160), torch.randn(2, 16, 5, 7)
    with torch.inference_mode():
        assert relative(encoder(normalise(image)), theirs.encode(image * 2 - 1)) <= TOLERANCE
        assert relative(previewer(latent) * 2 - 1, theirs.decode(latent)) <= TOLERANCE


def test_trunk_is_torchvisions(host):
    from torchvision.models import efficientnet_v2_s

    ours = with_weights(ImageEncoder())
    theirs = shared(efficientnet_v2_s().features, ours.backbone)
    image = torch.randn(1, 3, 70, 97)
    with torch.inference_mode():
        assert relative(ours.backbone(image), theirs(image)) <= TOLERANCE


@pytest.mark.parametrize("ops", ["manual_cast", "disable_weight_init"])
def test_with_the_hosts_layers(host, ops):
    """The host's castable layers hold the weights in bfloat16 and compute in float32."""
    import comfy.ops

    from cascade_studio.nodes.host.models.backend import backend_for

    backend = backend_for(getattr(comfy.ops, ops))
    dtype = torch.bfloat16 if ops == "manual_cast" else torch.float32
    stage_a = partial(StageA, StageAConfig(bottleneck_blocks=2, codebook_size=64))
    for kind, shape, call in (
        (stage_a, (1, 4, 9, 9), "decode"),
        (stage_a, (1, 3, 32, 32), "encode"),
        (ImageEncoder, (1, 3, 64, 64), "forward"),
        (Previewer, (1, 16, 3, 3), "forward"),
    ):
        plain = with_weights(kind())
        plain.load_state_dict({key: value.to(dtype).to(value.dtype) for key, value in plain.state_dict().items()})
        lent = kind(dtype=dtype, backend=backend)
        lent.load_state_dict(plain.state_dict())
        given = torch.randn(shape)
        with torch.inference_mode():
            assert relative(getattr(lent, call)(given), getattr(plain, call)(given)) <= TOLERANCE
