"""Parts 1 and 2: Stage A with its codebook and a discriminator, and the image encoder together with the Previewer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from cascade_studio.stages.nets.encoder import ImageEncoder
from cascade_studio.stages.nets.initial import initialise_stage_a
from cascade_studio.stages.nets.previewer import Previewer
from cascade_studio.stages.nets.stage_a import StageA
from cascade_studio.stages.training.optimiser import EMA, Optimiser

from .codes import load_code
from .loop import Part, Place, grid
from .scenes import Scenes, for_encoder

SETTLE = 0.6
"""From this share of the budget on, batch norms keep their running statistics, as they will when used."""
ADDED = 1e-5
"""What PyTorch's batch norm adds to a variance."""
FINISH = 0.9
"""From here on the statistics of the latents stay, too."""


def edges(image: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours down and across."""
    return image[..., 1:, :] - image[..., :-1, :], image[..., 1:] - image[..., :-1]


def picture_loss(made: Tensor, wanted: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Absolute and squared error and that of the edges; ``weight`` (B, 1, H, W) for each pixel."""
    made = made.float()
    error = made - wanted
    sharp = sum((a - b).abs().mean() for a, b in zip(edges(made), edges(wanted)))
    return ((error.abs() + 2 * error.square()) * weight).mean() + sharp


def psnr(made: Tensor, wanted: Tensor, alpha: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over the pixels with ``alpha`` above one half, mean over pictures."""
    mask = (alpha > 0.5).float()
    squared = ((made.float().clamp(0, 1) - wanted).square() * mask).flatten(1).sum(1)
    error = squared / (3 * mask.flatten(1).sum(1).clamp(min=1))
    return float(-10 * error.clamp(min=1e-10).log10().mean())


def settle_norms(net: nn.Module, training: bool) -> None:
    """Batch statistics while ``training``, running ones afterwards."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(training)
            module.momentum = 0.05


class Following:
    """Lets a norm that uses its running statistics (a latent's last layer) follow what goes into it.

    Statistics of the batch itself would take brightness out of a latent: a batch of few pictures has a mean of its own.
    """

    def __init__(self, norm: nn.Module, momentum: float = 0.02, hurry: int = 100) -> None:
        self.momentum, self.hurry = momentum, hurry
        self.active, self.seen = True, 0
        norm.register_forward_pre_hook(self.follow)

    @torch.no_grad()
    def follow(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A hook of batch norms that moves their running statistics (Welford's step) by what they are about to see."""
        if not self.active or not inputs[0].requires_grad:  # not when the net, or a copy of it, is only used
            return
        self.seen += 1
        rate = max(self.momentum, 1 / self.seen if self.seen <= self.hurry else 0.0)
        var, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3))
        norm.running_var.lerp_(var + (mean - norm.running_mean).square() * (1 - rate), rate)
        norm.running_mean.lerp_(mean, rate)

    def state_dict(self) -> dict[str, int]:
        """How many batches were seen."""
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.seen = state["seen"]


class Discriminator(nn.Sequential):
    """A patch discriminator with spectral norms: RGB → one score for every 8 x 8 pixels."""

    def __init__(self, width: int = 32) -> None:
        layers: list[nn.Module] = []
        for c_in, c_out in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [spectral_norm(nn.Conv2d(c_in, c_out, 4, 2, 1)), nn.LeakyReLU(0.2)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(4 * width, 1, 1)))


class StageAPart(Part):
    """Stage A on crops: picture loss, half of the batches through the codebook, a hinge discriminator later on."""

    name = "stage_a"
    STEPS, LR, BATCH, CROP = 4000, 2e-3, 8, 96
    ADVERSARY, ADVERSARY_FROM = 0.02, 0.4
    CODES_FROM, CODES_EVERY = 100, 200

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        torch.manual_seed(place.seed)
        self.scenes = Scenes(self.rng, others=0.5)
        self.config = place.sizes.stage_a
        self.net = StageA(self.config)
        initialise_stage_a(self.net)
        self.net.to(place.device)
        self.net.eval()
        self.following = Following(self.net.down_blocks[-1][1].requires_grad_(False))
        self.judge = Discriminator().to(place.device)
        self.ema = EMA(self.net, 0.995)
        self.steps, self.usage = 0, torch.zeros(self.config.codebook_size)
        self.state = {
            "net": self.net,
            "following": self.following,
            "judge": self.judge,
            "ema": self.ema,
            "optimiser": Optimiser(self.net.parameters(), self.LR, betas=(0.9, 0.98), clip=1.0),
            "judge_optimiser": Optimiser(self.judge.parameters(), 4e-4, betas=(0.5, 0.9)),
        }

    def crops(self) -> tuple[Tensor, Tensor]:
        """Two windows of each composed picture, and their alpha."""
        batch = self.scenes.batch(self.BATCH // 2)
        both, last = torch.cat([batch.rgb, batch.alpha], 1), batch.rgb.shape[-1] - self.CROP
        cut = []
        for picture in both:
            for _ in range(2):
                y, x = (4 * self.rng.randrange(last // 4 + 1) for _ in range(2))
                cut.append(picture[:, y : y + self.CROP, x : x + self.CROP])
        stacked = torch.stack(cut).to(self.place.device)
        return stacked[:, :3].contiguous(), stacked[:, 3:]

    def step(self, factor: float) -> dict[str, float]:
        self.following.active = self.progress < FINISH
        image, alpha = self.crops()
        with self.place.autocast():
            latent = self.net.encode(image).float()
            found = self.net.quantize(latent)
            self.renew_codes(latent.detach(), found.indices)
            made = self.net.decode(found.vectors if self.rng.random() < 0.5 else latent).float()
            loss = picture_loss(made, image, 1 + alpha) + found.loss
            taken = {"picture": (loss - found.loss).item(), "codebook": found.loss.item()}
            if self.progress > self.ADVERSARY_FROM:
                loss = loss - self.ADVERSARY * self.judge(made).float().mean()
        self.state["optimiser"].step(loss, factor)
        self.ema.update(self.net)
        if self.progress > self.ADVERSARY_FROM * 0.9:
            with self.place.autocast():
                real, fake = self.judge(image).float(), self.judge(made.detach()).float()
                hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            self.state["judge_optimiser"].step(hinge, factor)
            taken["judge"] = hinge.item()
        return {**taken, "psnr": psnr(made.detach(), image, alpha)}

    @torch.no_grad()
    def renew_codes(self, latent: Tensor, indices: Tensor) -> None:
        """Put codes that nothing uses onto latents of the batch; all of them the first time."""
        self.steps += 1
        self.usage += torch.bincount(indices.flatten().cpu(), minlength=len(self.usage))
        if self.steps == self.CODES_FROM or self.steps % self.CODES_EVERY == 0 and self.progress < FINISH:
            rows = (latent * self.config.scale_factor).permute(0, 2, 3, 1).reshape(-1, self.config.c_latent)
            dead = torch.nonzero(self.usage < (1e9 if self.steps == self.CODES_FROM else 1)).flatten().to(rows.device)
            self.net.vquantizer.codebook.weight[dead] = rows[torch.randint(len(rows), (len(dead),), device=rows.device)]
            self.usage.zero_()

    def average_net(self) -> StageA:
        """The averaged net."""
        return self.ema.copy_of(self.net)

    def sheet(self) -> Tensor:
        """Rows: pictures, decoded latents, decoded codes."""
        net, batch = self.average_net(), self.scenes.batch(8)
        latent = net.encode(batch.rgb.to(self.place.device))
        rows = torch.cat([batch.rgb, net.decode(latent).cpu(), net.decode(net.quantize(latent).vectors).cpu()])
        return grid(rows, 8)

    def result(self) -> dict[str, dict[str, Tensor]]:
        return {self.name: self.average_net().state_dict()}


class EncoderPart(Part):
    """The image encoder learns to give the code of a picture (:mod:`.codes`), and the Previewer to read it.

    Noise on the code keeps the Previewer smooth, so that what Stage C gets slightly wrong still decodes. They start
    from those that shipped before where the work folder has them (``encoder.start.pt``, see
    :func:`.export.restore_kept`).
    """

    name = "encoder"
    STEPS, LR, BATCH, NOISE = 2500, 2e-3, 24, 0.25
    SIZES, MIRRORED, OTHERS = (0.74, 0.92), 0.3, 0.25

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        torch.manual_seed(place.seed + 1)
        self.scenes = Scenes(self.rng, self.OTHERS, sizes=self.SIZES, mirrored=self.MIRRORED, shades=0.15)
        self.canvas, self.code = place.sizes.canvas, load_code(place)
        self.encoder, self.previewer = ImageEncoder(place.sizes.encoder), Previewer(place.sizes.previewer)
        for net in (self.encoder, self.previewer):
            for module in net.modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            net.to(place.device)
        for name, tensors in place.read_start(self.name).items():
            getattr(self, name).load_state_dict(tensors)
        leave_as_said(self.encoder.mapper[1])
        self.nets = nn.ModuleList([self.encoder, self.previewer])
        self.ema = EMA(self.nets, 0.995)
        self.state = {
            "nets": self.nets,
            "ema": self.ema,
            "optimiser": Optimiser(self.nets.parameters(), self.LR, weight_decay=1e-3),
        }

    def step(self, factor: float) -> dict[str, float]:
        for net in (self.encoder.backbone, self.previewer):
            settle_norms(net, self.progress < SETTLE)
        batch = self.scenes.batch(self.BATCH)
        rgb, alpha = batch.rgb.to(self.place.device), batch.alpha.to(self.place.device)
        wanted = self.code.encode(batch.rgb).to(self.place.device)
        with self.place.autocast():
            made = self.encoder(for_encoder(rgb, self.canvas)).float()
            error = (made - wanted).square().mean()
            strength = self.NOISE * torch.rand(len(wanted), 1, 1, 1, device=wanted.device)
            shown = self.previewer(wanted + strength * torch.randn_like(wanted)).float()
        seen, mask = (F.interpolate(x, size=shown.shape[2:], mode="area") for x in (rgb, alpha))
        preview = picture_loss(shown, seen, 1 + mask)
        self.state["optimiser"].step(error + preview, factor)
        self.ema.update(self.nets)
        return {"error": error.item(), "preview": preview.item()}

    def average_net(self) -> nn.ModuleList:
        """Encoder and Previewer, averaged."""
        return self.ema.copy_of(self.nets)

    def sheet(self) -> Tensor:
        """Rows: pictures, the best that a linear decoder makes of their codes, the Previewer of what is encoded."""
        encoder, previewer = self.average_net()
        batch = self.scenes.batch(8)
        latent = encoder(for_encoder(batch.rgb.to(self.place.device), self.canvas))
        rows = (batch.rgb, self.code.decode(self.code.encode(batch.rgb)), previewer(latent).cpu())
        return grid(torch.cat([F.interpolate(x, size=(192, 192)) for x in rows]), 8)

    def result(self) -> dict[str, dict[str, Tensor]]:
        encoder, previewer = self.average_net()
        return {"encoder": encoder.state_dict(), "previewer": previewer.state_dict()}


def leave_as_said(norm: nn.Module) -> None:
    """The norm of a latent changes nothing: what goes into it has the sizes that it should have."""
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - ADDED)
