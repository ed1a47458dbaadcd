"""Networks that start as v-prediction: epsilon = b x + a v, with only v to be learned (Salimans & Ho 2022).

The official networks say the noise, and close to pure noise that has to be right to a hundredth: x0 = (x - b epsilon)
/ a with a down to 0.01. Learning to copy ``x`` through the norms of a U that exactly takes longer than all else, so
here it is written into the first weights, as the preconditioning of Karras et al. 2022 is written into a formula.
Nothing of this is needed when the network is used: it is the published architecture with ordinary weights.

Channels of the first level are shared out. ``x`` lies in pairs +x and -x, whose difference a constant added by a norm
cannot change. Two pairs hold a large constant, which dominates every norm, so that the scale of the signal survives
it. The rest is free for what is learned. The time block of the last group multiplies the signal by b(r) and the rest
by a(r). Every number that is written is one of float8 (e4m3, three bits of mantissa), so that low-memory settings
keep the start. All that this rests on is pinned: it gets no gradient (:meth:`Preconditioning.still`), and after every
update :meth:`Preconditioning.hold` puts it back, because weight decay and Muon move more than gradients do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cascade_studio.stages.diffusion.sampling import alpha_sigma, logsnr, noise_condition
from cascade_studio.stages.nets.blocks import AttnBlock, ResBlock, TimestepBlock, timestep_embedding
from cascade_studio.stages.nets.stage_b import StageB
from cascade_studio.stages.nets.stage_c import StageC

from .eight_bits import eight_bits, power_of_two, time_factor

LARGE = 128.0
"""The constant, in units of the signal."""
CONSTANTS = 4
SLOWEST = 8
"""How many of the timestep embedding's frequencies, slowest first, the factors of time are made of."""


def carrying(n: int, constants: int = CONSTANTS) -> int:
    """How many channels carry a latent of ``n`` channels (after patching) and the constants; they come first."""
    return 2 * n + constants


def count_constants(net: StageB | StageC) -> int:
    """How many channels of a net that was trained from such a start carry a constant."""
    return int((net.embedding[1].bias.abs() > LARGE / 2).sum())


class Exact(nn.Linear):
    """A linear layer that computes the few numbers of a time embedding, (B, c), in float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class ExactConv(nn.Conv2d):
    """A convolution; with a kernel of one pixel it computes in float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size != (1, 1):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Preconditioning:
    """Writes the start into ``net`` (already initialised as the official constructors do) and holds it there."""

    def __init__(self, net: StageB | StageC, constants: int = CONSTANTS, large: float = LARGE) -> None:
        self.net, self.constants, self.large, self._places = net, constants, large, []
        width, n = net.embedding[1].weight.shape[:2]
        if width < carrying(n, constants) + 2:
            raise ValueError(
                f"The first level is {width} wide, but it takes {2 * n} channels for the signal, "
                f"{constants} for the constant and some that are free."
            )
        self.n, self.plus, self.minus = n, slice(0, n), slice(n, 2 * n)
        self.signal, self.constant, self.fixed, self.free = (
            slice(0, 2 * n),
            slice(2 * n, carrying(n, constants)),
            slice(0, carrying(n, constants)),
            slice(carrying(n, constants), width),
        )
        self.size = (width / constants) ** 0.5 / large  # of the signal behind a norm
        with torch.no_grad():
            self._embedding()
            crosses = self.crosses(net)
            for level, (down, up) in enumerate(zip(net.down_blocks, reversed(net.up_blocks))):
                if level == 0 or not crosses:
                    for block in (*down, *up):
                        self._block(block)
            self._scalers()
            self._last_time(net.up_blocks[-1], 1.0)
            if isinstance(net, StageB):
                self._silent(net.effnet_mapper[2])
                self._silent(net.pixels_mapper[2])
            if crosses:
                self._transport(net.up_blocks[-1][0])
            self._read_out()
            self.adopt()

    @staticmethod
    def crosses(net: StageB | StageC) -> bool:
        """Whether the signal goes across, beside the deeper levels, since those have fewer cells."""
        return isinstance(net, StageB) or any(net.config.switch_level)

    @classmethod
    def find_in(cls, net: StageB | StageC, trained: StageB | StageC) -> Preconditioning:
        """``net`` with the weights of ``trained``, held to the start that is found in them, whatever its numbers."""
        start = cls(net, count_constants(trained))
        net.load_state_dict(trained.state_dict())
        start.adopt()
        return start

    @classmethod
    def renew_in(cls, net: StageB | StageC, trained: StageB | StageC) -> Preconditioning:
        """``net`` with the weights of ``trained``, but with a start that float8 keeps instead of the one in them.

        ``net`` may have more blocks at the end of a level than ``trained``; they begin by saying nothing.
        """
        large = float(eight_bits(trained.embedding[1].bias.detach().abs().max()))
        start = cls(net, count_constants(trained), large)
        missing, unknown = net.load_state_dict(trained.state_dict(), strict=False)
        if unknown:
            raise ValueError(f"The network has no room for {unknown[0]} of the trained one.")
        silence_blocks(net, {name.rsplit(".", 1)[0] for name in missing})
        start.hold()
        return start

    @torch.no_grad()
    def adopt(self) -> None:
        """Hold from now on what the pinned numbers are now."""
        self.pins = [(parameter, where, parameter[where].clone()) for parameter, where in self._places]

    def fits_eight_bits(self) -> bool:
        """Whether float8 keeps all that is pinned. Where it does not, rounding the weights would undo the start."""
        return all(torch.equal(value, eight_bits(value)) for _, _, value in self.pins)

    def hold(self) -> None:
        """Put back what is pinned."""
        with torch.no_grad():
            for parameter, where, value in self.pins:
                parameter[where] = value

    def still(self) -> None:
        """Take what is pinned out of the gradients, before they are measured and used."""
        for parameter, where, _ in self.pins:
            if parameter.grad is not None:
                parameter.grad[where] = 0

    def _pin(self, parameter: nn.Parameter, where: object) -> None:
        """Hold this part of ``parameter`` at what it is when all is written."""
        self._places.append((parameter, where))

    def _silent(self, layer: nn.Module) -> None:
        """``layer`` never writes into the fixed channels."""
        for parameter in (layer.weight, layer.bias):
            parameter[self.fixed] = 0
            self._pin(parameter, self.fixed)

    def _listening(self, weight: Tensor, first: int = 0) -> None:
        """Columns of ``weight`` from ``first`` on see the signal as large as all else, and not the constant."""
        weight[:, first:][:, self.signal] /= self.size
        weight[:, first:][:, self.constant] = 0

    def _embedding(self) -> None:
        weight, bias = self.net.embedding[1].weight, self.net.embedding[1].bias
        weight.zero_()
        bias.zero_()
        eye = torch.eye(self.n, device=weight.device)[:, :, None, None]
        weight[self.plus], weight[self.minus] = eye, -eye
        bias[self.constant] = torch.tensor([self.large, -self.large] * (self.constants // 2), device=bias.device)
        self._pin(weight, self.fixed)
        self._pin(bias, self.fixed)

    def _block(self, block: nn.Module) -> None:
        if isinstance(block, ResBlock):
            block.depthwise.weight[self.signal] /= self.size
            block.depthwise.weight[self.constant] = 0
            middle = block.radius
            block.depthwise.weight[self.constant, :, middle, middle] = 0.3  # so that the norm keeps the amplitude
            mixer = block.channelwise
            if mixer[0].in_features > block.depthwise.weight.shape[0]:
                self._listening(mixer[0].weight, block.depthwise.weight.shape[0])
            self._silent(mixer[4])
        elif isinstance(block, AttnBlock):
            attn = block.attention["attn"]
            for layer in (attn.to_q, attn.to_k, attn.to_v):
                self._listening(layer.weight)
            block.kv_mapper[1].weight[self.fixed] *= self.size
            self._silent(attn.out_proj)
        elif isinstance(block, TimestepBlock):
            width = block.mapper.out_features // 2
            both = torch.cat([torch.arange(width)[self.fixed] + start for start in (0, width)])
            for name in block.names:
                for parameter in (getattr(block, name).weight, getattr(block, name).bias):
                    parameter[both] = 0
                    self._pin(parameter, both)

    def _scalers(self) -> None:
        """Stage C carries the signal through a deeper level of the same size; else it is handed across, beside it."""
        net = self.net
        if not self.crosses(net):
            for scaler in (net.down_downscalers[1][1].blocks[0], net.up_upscalers[0][1].blocks[1]):
                nn.init.eye_(scaler.weight[:, :, 0, 0])
                nn.init.zeros_(scaler.bias)
                self._pin(scaler.weight, self.fixed)
                self._pin(scaler.bias, self.fixed)
        else:
            down, up = net.down_downscalers[1][1], net.up_upscalers[-2][1]
            here = (slice(None), self.fixed)  # a transposed convolution's weights are (in, out, 2, 2)
            if isinstance(net, StageC):
                down, up, here = down.blocks[0], up.blocks[1], self.fixed
            self._listening(down.weight)
            for parameter, where in ((up.weight, here), (up.bias, self.fixed)):
                parameter[where] = 0
                self._pin(parameter, where)

    def _last_time(self, blocks: nn.ModuleList, gain: float) -> None:
        """The last time block: b on the signal, times ``gain``, and a on the free channels. Attention behind it stays
        silent.
        """
        last = max(i for i, block in enumerate(blocks) if isinstance(block, TimestepBlock))
        for block in blocks[last + 1 :]:
            if isinstance(block, AttnBlock):
                for parameter in block.attention["attn"].out_proj.parameters():
                    parameter.zero_()
                    self._pin(parameter, slice(None))
        config, block = self.net.config, blocks[last]
        width, half = config.c_hidden[0], config.c_r // 2
        columns = [*range(half - SLOWEST, half), *range(2 * half - SLOWEST, 2 * half)]
        level = logsnr(torch.linspace(0, 1, 2000))
        a, b = (value.double() for value in alpha_sigma(level))
        features = timestep_embedding(noise_condition(level), config.c_r).double()[:, columns]
        layers = [getattr(block, name) for name in block.names]
        for where, factor in ((self.signal, gain * b), (self.free, a)):
            weights, constants = time_factor(features, factor - 1, 1 / a, len(layers))
            for layer, constant in zip(layers, constants):
                layer.weight[:width][where] = 0
                layer.bias[where] = constant
            for column, value in zip(columns, weights):
                block.mapper.weight[where, column] = value
        for layer in layers:
            self._pin(layer.weight, slice(0, width))
            self._pin(layer.bias, slice(0, width))

    def _transport(self, block: ResBlock) -> None:
        """The first block up takes the signal out of the skip: gelu(z) - gelu(-z) = z."""
        enter, leave = block.channelwise[0], block.channelwise[4]
        width = self.net.config.c_hidden[0]
        units = slice(0, 2 * self.fixed.stop)
        enter.weight[units], enter.bias[units] = 0, 0
        leave.weight[:, units] = 0
        for channel in range(self.fixed.stop):
            gain = power_of_two(1 / self.size if channel < 2 * self.n else 1 / (self.large * self.size))
            for unit, sign in ((2 * channel, 1), (2 * channel + 1, -1)):
                enter.weight[unit, width + channel] = sign * gain
                leave.weight[channel, unit] = sign / gain
        self._pin(enter.weight, units)
        self._pin(enter.bias, units)
        self._pin(leave.weight, (slice(None), units))
        response = block.channelwise[2]
        for parameter in (response.gamma, response.beta):
            self._pin(parameter, (slice(None), slice(None), slice(None), units))

    def _read_out(self) -> None:
        """The last convolution: the difference of the pairs, which is ``x`` at r = 1 as far as a power of two makes it;
        what is left over goes to the last time block.
        """
        net, clf = self.net, self.net.clf[1]
        clf.bias.zero_()
        eye = torch.eye(self.n, device=clf.weight.device)[:, :, None, None]
        clf.weight[:, self.plus], clf.weight[:, self.minus] = eye, -eye
        scale = power_of_two(_gain(net))
        clf.weight.mul_(scale)
        self._last_time(net.up_blocks[-1], _gain(net))
        self._pin(clf.weight, (slice(None), self.fixed))


@torch.no_grad()
def silence_blocks(net: nn.Module, names: set[str]) -> None:
    """Blocks of ``net`` with a layer in ``names`` add nothing to what goes through them."""
    for name, block in net.named_modules():
        if any(layer.startswith(f"{name}.") for layer in names):
            if isinstance(block, ResBlock):
                layers = [block.channelwise[4]]
            elif isinstance(block, AttnBlock):
                layers = [block.attention["attn"].out_proj]
            elif isinstance(block, TimestepBlock):
                layers = [getattr(block, each) for each in block.names]
            else:
                continue
            for parameter in (each for layer in layers for each in layer.parameters()):
                parameter.zero_()


def _gain(net: StageB | StageC) -> float:
    """What the answers of ``net`` to pure noise have to be multiplied by to be the noise itself."""
    x, out = probe(net)
    return float((x * out).sum() / out.square().sum())


@torch.no_grad()
def probe(net: StageB | StageC, r: float = 1.0, count: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise (count, C, H, W) and what ``net`` says to it at ``r``, with random conditions."""
    noise, device = torch.Generator().manual_seed(seed), net.embedding[1].weight.device
    side = 16 if isinstance(net, StageB) else 6
    x = torch.randn(count, net.config.c_in, side, side, generator=noise).to(device)

    def draw(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=noise).to(device)

    config = net.config
    if isinstance(net, StageB):
        conditions = {"effnet": draw(config.c_effnet, 6, 6), "clip": draw(config.c_clip)}
    else:
        conditions = {"clip_text": draw(8, config.c_clip_text), "clip_text_pooled": draw(config.c_clip_text_pooled)}
    return x, net(x, torch.full((count,), r, device=device), **conditions)
