"""Learned words: a CLIP text encoder whose token table gets offsets that are trained through it.

As the official release's ReToken: the table stays, and an offset (zero at first) is added to the rows of the learned
tokens. A new word's row is the mean of the rows of the words it starts from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import WrongInput
from ..files.clip import TextConfig
from ..nets.backend import Tree
from .dataset import Picture, list_names
from .frozen_net import FrozenLinear
from .objectives import Row, StageCObjective, stack_rows

START, END = 49406, 49407
LENGTH = 77
TABLE = "text_model.embeddings.token_embedding.weight"
ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


@dataclass(frozen=True)
class Word:
    """A learned word: how captions spell it, its token id, and the ids of the words that it starts from.

    ``pattern`` finds those in the vocabulary, as the official trainer's settings do; "" for a word that is a token.
    """

    text: str
    token: int
    start: tuple[int, ...]
    pattern: str = ""


class Tokenizer(Protocol):
    """CLIP's tokenizer, as transformers and the host have it."""

    def __call__(self, text: str) -> Mapping[str, Sequence[int]]: ...

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> Sequence[str]:
        """The vocabulary's entries, as transformers names this."""


def tokenize(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of plain text, without start and end."""
    ids = list(tokenizer(text)["input_ids"])[1:-1]
    if not all(isinstance(token, int) for token in ids):
        raise WrongInput(
            f"'{text}' has a word in it that a LoRA on the text encoder has added. Train new words with "
            "the text encoder of Load Stable Cascade as it is."
        )
    return ids


class Words(nn.Module):
    """The learned part: ``offsets`` (n, width), float32, and the rows (n, width) that they are added to."""

    rows: Tensor

    def __init__(self, words: Sequence[Word], table: Tensor) -> None:
        super().__init__()
        self.words = tuple(words)
        rows = torch.zeros(len(words), table.shape[1])
        for row, word in zip(rows, words):
            row.copy_(table[list(word.start)].float().mean(0))
        self.register_buffer("rows", rows.detach().clone(), persistent=False)
        self.offsets = nn.Parameter(torch.zeros_like(self.rows))

    def vectors(self) -> Tensor:
        """What stands in the table now, (n, width)."""
        return self.rows + self.offsets

    def place_rows(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """``embedded`` (B, N, width) with the learned rows where ``ids`` (B, N) are learned tokens."""
        for number, word in enumerate(self.words):
            here = (ids == word.token)[..., None]
            embedded = torch.where(here, self.vectors()[number].to(embedded.dtype), embedded)
        return embedded


class Attention(nn.Module):
    """Multi-head attention; ``mask`` (B, 1, N, N) is True where a token may look."""

    q_proj: FrozenLinear
    k_proj: FrozenLinear
    v_proj: FrozenLinear
    out_proj: FrozenLinear

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, FrozenLinear(config.hidden_size, config.hidden_size, device="meta"))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_norm1, self.layer_norm2 = (Norm(width, config.layer_norm_eps) for _ in range(2))
        self.self_attn = Attention(config)
        self.mlp = nn.ModuleDict(
            {
                "fc1": FrozenLinear(width, config.intermediate_size, device="meta"),
                "fc2": FrozenLinear(config.intermediate_size, width, device="meta"),
            }
        )
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.layer_norm2(x))))


class Norm(nn.LayerNorm):
    """A layer norm in float32 with weights of any dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class TextTower(nn.Module):
    """The text encoder as Stable Cascade uses it: the last layer before the final norm, the projected end token.

    Under the key names of transformers; frozen, and checkpointed a layer at a time. ``layer`` counts from the end, as
    CLIP skip does: -2 gives what the last layer but one makes; more than there are gives the end behind the final norm.
    The pooled text is always that of the end.
    """

    text_model: Tree

    def __init__(self, config: TextConfig, words: Words, layer: int = -1) -> None:
        super().__init__()
        self.layer = layer
        tables = {
            "token_embedding": nn.Embedding(config.vocab_size, config.hidden_size, device="meta"),
            "position_embedding": nn.Embedding(config.max_position_embeddings, config.hidden_size, device="meta"),
        }
        layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.text_model = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(tables),
                "encoder": nn.ModuleDict({"layers": layers}),
                "final_layer_norm": Norm(config.hidden_size, config.layer_norm_eps),
            }
        )
        self.text_projection = FrozenLinear(config.hidden_size, config.projection_dim, bias=False, device="meta")
        self.words = [words]  # in a list, so that it is no part of the frozen network

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, N) → hidden states (B, N, width), pooled (B, 1, width). Padding is masked, the rest causal."""
        count, tables = ids.shape[1], self.text_model["embeddings"]
        end = (ids == END).int().argmax(1)
        places = torch.arange(count, device=ids.device)
        mask = ((places[None, :, None] >= places) & (places <= end[:, None])[:, None])[:, None]
        rows = len(tables["token_embedding"].weight)
        x = self.words[0].place_rows(ids, tables["token_embedding"](ids.clamp(max=rows - 1)).float())
        x = x + tables["position_embedding"](places).float()
        layers, hidden = self.text_model["encoder"]["layers"], None
        for number, layer in enumerate(layers, -len(layers)):
            x = checkpoint(layer, x, mask, use_reentrant=False)
            hidden = x if number == self.layer else hidden
        final = self.text_model["final_layer_norm"](x)
        pooled = final[torch.arange(len(ids), device=ids.device), end]
        return final if hidden is None else hidden, self.text_projection(pooled)[:, None]


def text_tower(
    config: TextConfig,
    tensors: Mapping[str, Tensor],
    words: Words,
    *,
    layer: int = -1,
    base: str = "bf16",
    device: torch.device | str = "cpu",
) -> TextTower:
    """A private, frozen copy of a text encoder, with ``words`` in its table; ``layer`` as in :class:`TextTower`."""
    net, plain = TextTower(config, words, layer), torch.float32 if base == "fp32" else torch.bfloat16
    own = net.state_dict()
    with torch.no_grad():
        copies = {
            key: torch.empty(value.shape, dtype=plain, device=device).copy_(value)
            for key, value in tensors.items()
            if key in own
        }
    net.load_state_dict(copies, assign=True)
    words.to(device)
    return net.eval().requires_grad_(False)


def token_ids(caption: str, words: Sequence[Word], tokenizer: Tokenizer) -> Tensor:
    """Token ids (77,) of a caption with learned words, whatever their case; what is longer is cut off."""
    pieces: list[str | Word] = [caption]
    for word in words:
        pieces = [part for piece in pieces for part in (_cut(piece, word) if isinstance(piece, str) else [piece])]
    body = [
        token
        for piece in pieces
        for token in ([piece.token] if isinstance(piece, Word) else tokenize(piece, tokenizer))
    ][: LENGTH - 2]
    return torch.tensor([START, *body, *[END] * (LENGTH - 1 - len(body))])


def count_tokens(pictures: Sequence[Picture], tokenizer: Tokenizer) -> str:
    """Which captions are longer than what is trained on, in one sentence; "" for none."""
    long = [
        picture.name
        for picture in pictures
        if any(len(tokenizer(caption)["input_ids"]) > LENGTH for caption in picture.captions)
    ]
    if not long:
        return ""
    return (
        f"Captions of more than {LENGTH - 2} tokens, whose rest is left out as officially ({len(long)}): "
        f"{list_names(long)}."
    )


def _cut(text: str, word: Word) -> list[str | Word]:
    parts: list[str | Word] = []
    for index, part in enumerate(re.split(re.escape(word.text), text, flags=re.IGNORECASE)):
        parts += [*([word] if index else []), *([part] if part.strip() else [])]
    return parts


def find_words(tokens: Sequence[tuple[str, str]], tokenizer: Tokenizer, rows: int) -> list[Word]:
    """The words of the settings. New ones get the ids after the table's ``rows``; without words to start from, a word
    has to be a token already, whose own row is then trained."""
    words, added = [], 0
    for text, start in tokens:
        ids = tuple(sorted(set(tokenize(start or text, tokenizer))))
        if not text.strip() or not ids or not start and len(ids) != 1:
            raise WrongInput(
                f"The word to learn {text!r} needs words to start from, because the text encoder has no "
                f"token of its own for it: write for example {text.strip() or '[name]'} = dog."
            )
        if not start:
            words.append(Word(text, ids[0], ids))
            continue
        names = "|".join(re.escape(name) for name in tokenizer.convert_ids_to_tokens(ids))
        words.append(Word(text, rows + added, ids, f"^({names})$"))
        added += 1
    return words


@dataclass(eq=False)
class WordsObjective(StageCObjective):
    """As Stage C, with the prompt encoded at every step: rows have "ids" (77,) instead of "text" and "pooled"."""

    tower: TextTower = field(kw_only=True)

    def conditions(self, rows: Sequence[Row], generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        keep = self.keep(generators, self.drop_text)
        return {"ids": torch.where(keep[:, None], stack_rows(rows, "ids"), self.empty["ids"])}

    def predict(self, x: Tensor, r: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        text, pooled = self.tower(conditions["ids"])
        return self.net(x, r, clip_text=text, clip_text_pooled=pooled)
