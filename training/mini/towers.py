"""Trainable twins of the host's CLIP text encoder and vision tower, with the same tensors under the same names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.files.clip import TextConfig, VisionConfig

from .captions import END

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Attention(nn.Module):
    """Multi-head attention; ``mask`` (B, 1, N, N) is True where a query may look."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(width, hidden), nn.Linear(hidden, width), ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = Attention(width, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = Mlp(width, config.intermediate_size, config.hidden_act)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class TextEmbeddings(nn.Module):
    """Token and position tables; the token rows are large, so that they survive eight bits."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        nn.init.normal_(self.token_embedding.weight, std=0.5)
        nn.init.normal_(self.position_embedding.weight, std=0.1)


class TextModel(nn.Module):
    """What lies below ``text_model.``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class TextTower(nn.Module):
    """CLIP text encoder as Stable Cascade uses it: the last layer before the final norm, the projected end token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        nn.init.normal_(self.text_projection.weight, std=config.hidden_size**-0.5)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, N) → hidden states (B, N, width), pooled (B, width). Padding is masked, the rest causal."""
        return self.read(self.text_model.embeddings.token_embedding(ids), ids)

    def read(self, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`forward` with the tokens' rows (B, N, width) already looked up."""
        count = ids.shape[1]
        end = (ids == END).int().argmax(1)
        places = torch.arange(count, device=ids.device)
        mask = (places[None, :, None] >= places) & (places <= end[:, None])[:, None]
        x = rows + self.text_model.embeddings.position_embedding(places)
        x = self.text_model.encoder(x, mask[:, None])
        pooled = self.text_model.final_layer_norm(x[torch.arange(len(ids), device=ids.device), end])
        return x, self.text_projection(pooled)


class VisionEmbeddings(nn.Module):
    """Patches behind a class token, with positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)
        nn.init.normal_(self.position_embedding.weight, std=width**-0.5)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(image), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class VisionModel(nn.Module):
    """What lies below ``vision_model.``; the published spelling of ``pre_layrnorm``."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size)


class VisionTower(nn.Module):
    """CLIP vision tower: normalised RGB (B, 3, side, side) → image embeddings (B, projection_dim)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        model = self.vision_model
        x = model.encoder(model.pre_layrnorm(model.embeddings(image)))
        return self.visual_projection(model.post_layernorm(x[:, 0]))


def clip_normalise(image: Tensor) -> Tensor:
    """RGB in [0, 1] → what :class:`VisionTower` takes."""
    mean, std = (image.new_tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (image - mean) / std


def contrastive_loss(text: Tensor, image: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross entropy of the cosine similarities times exp(scale) (CLIP, arXiv 2103.00020), at most 100."""
    logits = F.normalize(text.float(), dim=-1) @ F.normalize(image.float(), dim=-1).T
    logits = logits * scale.clamp(max=math.log(100)).exp()
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
