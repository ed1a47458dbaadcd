"""ComfyUI's ``transformer_options`` patches on the blocks of Stage B and Stage C.

Names of the blocks: a group is one repetition of a level's layers. Down groups are ``("input", n)`` in execution
order, the last of them is ``("middle", 0)``, up groups are ``("output", n)``; a repeat of a level counts again.

Attention is one softmax over the picture's own tokens followed by the condition tokens, where core's UNet has two:
``attn1_patch`` sees the own tokens, ``attn2_patch`` the condition tokens, and a replacement registered as ``attn1``
or ``attn2`` sees the joint query, key and value (the own tokens come first; ``extra_options["n_self"]`` counts
them). A replacement that returns its value, as perturbed attention does, keeps the own tokens of it.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor

from ...stages.blocks import BlockHooks, Place

HEAD_WIDTH_KEY = "dim_head"


class TransformerHooks(BlockHooks):
    """Calls the patches in ``transformer_options``; the options themselves are never changed."""

    def __init__(self, options: dict[str, Any]):
        self.options = options
        self.patches = options.get("patches", {})
        self.replace = options.get("patches_replace", {})
        self.plain = {key: value for key, value in options.items() if key not in ("patches", "patches_replace")}

    def at(self, place: Place) -> dict[str, Any]:
        """The host's options for a block patch at ``place``."""
        return {**self.options, "block": (place.kind, place.number)}

    def extra(self, place: Place, width: int, n_self: int | None = None) -> dict[str, Any]:
        """The host's ``extra_options`` for an attention patch at ``place``."""
        return {**self.plain, "block": (place.kind, place.number), "block_index": place.layer, "n_heads": place.heads,
                HEAD_WIDTH_KEY: width // place.heads, "attn_precision": None, "n_self": n_self}

    def input_block(self, place: Place, x: Tensor) -> Tensor:
        return self.through("input_block_patch", place, x)

    def input_block_after_skip(self, place: Place, x: Tensor) -> Tensor:
        return self.through("input_block_patch_after_skip", place, x)

    def through(self, name: str, place: Place, x: Tensor) -> Tensor:
        for patch in self.patches.get(name, ()):
            x = patch(x, self.at(place))
        return x

    def middle_block(self, place: Place, x: Tensor) -> Tensor:
        for patch in self.patches.get("middle_block_after_patch", ()):
            x = patch({"h": x, "x": x, "transformer_options": self.at(place)})["h"]
        return x

    def output_block(self, place: Place, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for patch in self.patches.get("output_block_patch", ()):
            x, skip = patch(x, skip, self.at(place))
        return x, skip

    def attention_tokens(self, place: Place, own: Tensor, cond: Tensor
                         ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        query, own_pair, cond_pair = own, (own, own), (cond, cond)
        if self.patches.get("attn1_patch") or self.patches.get("attn2_patch"):
            extra = self.extra(place, own.shape[-1], own.shape[1])
            for patch in self.patches.get("attn1_patch", ()):
                query, *own_pair = patch(query, *own_pair, extra)
            for patch in self.patches.get("attn2_patch", ()):
                query, *cond_pair = patch(query, *cond_pair, extra)
        return query, tuple(own_pair), tuple(cond_pair)

    def attention(self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int) -> Tensor | None:
        for name in ("attn1", "attn2"):
            table = self.replace.get(name, {})
            block = (place.kind, place.number)
            patch = table.get((*block, place.layer), table.get(block))
            if patch is not None:
                return patch(q, k, v, self.extra(place, q.shape[-1], n_self))[:, :q.shape[1]]
        return None

    def attention_output(self, place: Place, x: Tensor) -> Tensor:
        for name in ("attn1_output_patch", "attn2_output_patch"):
            for patch in self.patches.get(name, ()):
                x = patch(x, self.extra(place, x.shape[-1]))
        return x
