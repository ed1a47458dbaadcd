"""ComfyUI's ``transformer_options`` patches on the blocks of Stage B and Stage C.

Names of the blocks: a group is one repetition of a level's layers. Down groups are ``("input", n)`` in execution
order, the last of them is ``("middle", 0)``, up groups are ``("output", n)``; a repeat of a level counts again.

Attention is one softmax over the picture's own tokens followed by the condition tokens, where core's UNet has two:
``attn1_patch`` sees the own tokens, ``attn2_patch`` the condition tokens. Likewise a replacement registered as
``attn1`` gets the query with the own keys and values alone, as self-attention guidance needs them, and one registered
as ``attn2`` gets it with those of the conditions; the two results are then weighed as the joint softmax weighs them.

A patch in the table "dit", as skip-layer guidance uses it, replaces a whole group: ``("double_block", n)`` and
``("single_block", n)`` both name the n-th group in execution order, down, middle and up counted through.

Patches before output groups are called where a skip arrives, as in core's UNet, where every group has one.

What the pack's own features change comes under two keys of the options: ``LAYERS_KEY``, a list of attention layers that
a node put on the model, and ``CHANGES_KEY``, the :class:`~.stages.attention.layers.Changes` of one pass. Under
``COMPILER_KEY`` lies the :class:`~.stages.nets.compiled.BlockCompiler` that a node put there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....stages.attention.layers import NO_CHANGES, Attend, AttentionLayer, Changes, LayeredHooks, own_share
from ....stages.errors import WrongInput
from ....stages.nets.hooks import BlockHooks, Place
from ....stages.nets.unet import UNetConfig
from .backend import attention

HEAD_WIDTH_KEY = "dim_head"
SHAPE_KEY = "original_shape"
PATCH_KEYS = ("patches", "patches_replace")
LAYERS_KEY = "cascade_studio_layers"
CHANGES_KEY = "cascade_studio_changes"
COMPILER_KEY = "cascade_studio_compiler"
BLOCK_PATCHES = {
    "input_block": "input_block_patch",
    "input_block_after_skip": "input_block_patch_after_skip",
    "middle_block": "middle_block_after_patch",
    "output_block": "output_block_patch",
}
"""By hook, the host's name of the patches that it runs."""


def choose_hooks(
    options: dict[str, Any] | None, layers: tuple[AttentionLayer, ...] = (), net: Any = None, x: Tensor | None = None
) -> BlockHooks:
    """Block hooks of ``net`` on ``x`` for these ``transformer_options`` and ``layers``; plain ones if none ask."""
    options = options or {}
    asked = layers or any(options.get(key) for key in (*PATCH_KEYS, LAYERS_KEY)) or CHANGES_KEY in options
    if not asked:
        return CancellableHooks(options, options.get(COMPILER_KEY))
    return TransformerHooks({**options, SHAPE_KEY: list(x.shape)}, layers, net.config)


def stop_if_cancelled() -> None:
    """Raise the host's exception where the user pressed Cancel: a step of a large picture may take minutes."""
    if not torch.compiler.is_compiling():
        comfy.model_management.throw_exception_if_processing_interrupted()


def patch_tokens(patch: Any, query: Tensor, pair: Sequence[Tensor], extra: dict[str, Any]) -> Sequence[Tensor]:
    """Query, keys and values after ``patch``; the host's newer patches give a dictionary of those that they change."""
    out = patch(query, *pair, extra)
    return [out.get(name, value) for name, value in zip("qkv", (query, *pair))] if isinstance(out, dict) else out


class CancellableHooks(BlockHooks):
    """Change nothing, and stop between the groups of blocks where the user pressed Cancel."""

    passive = frozenset({"input_block", "output_block"})

    def input_block(self, place: Place, x: Tensor) -> Tensor:
        stop_if_cancelled()
        return x

    def output_block(self, place: Place, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor | None]:
        stop_if_cancelled()
        return x, skip


class TransformerHooks(LayeredHooks):
    """Calls the patches in ``transformer_options``; the options themselves are never changed."""

    def __init__(self, options: dict[str, Any], layers: tuple[AttentionLayer, ...], config: UNetConfig):
        changes = options.get(CHANGES_KEY, NO_CHANGES)
        every = (*layers, *changes.layers, *options.get(LAYERS_KEY, ()))
        super().__init__(Changes(every, changes.blocks), attention, options, options.get(COMPILER_KEY))
        self.patches = options.get("patches", {})
        if not (self.patches.get("attn1_patch") or self.patches.get("attn2_patch")):
            self.silent = self.silent | {"attention_tokens"}  # PyTorch's compiler cannot follow |=
        if not (self.patches.get("attn1_output_patch") or self.patches.get("attn2_output_patch")):
            self.silent = self.silent | {"attention_output"}
        self.passive = frozenset(hook for hook, name in BLOCK_PATCHES.items() if not self.patches.get(name))
        self.replace = options.get("patches_replace", {})
        self.down_groups = sum(n * repeat for n, repeat in zip(config.blocks[0], config.block_repeat[0]))
        self.plain = {key: value for key, value in options.items() if key not in ("patches", "patches_replace")}

    def options_at(self, place: Place) -> dict[str, Any]:
        """The host's options for a block patch at ``place``."""
        return {**self.options, "block": (place.kind, place.number)}

    def extra_options(self, place: Place, width: int, n_self: int | None = None) -> dict[str, Any]:
        """The host's ``extra_options`` for an attention patch at ``place``."""
        return {
            **self.plain,
            "block": (place.kind, place.number),
            "block_index": place.layer,
            "n_heads": place.heads,
            HEAD_WIDTH_KEY: width // place.heads,
            "attn_precision": None,
            "n_self": n_self,
            "grid": place.grid,
        }

    def input_block(self, place: Place, x: Tensor) -> Tensor:
        stop_if_cancelled()
        return self.run_patches("input_block_patch", place, x)

    def input_block_after_skip(self, place: Place, x: Tensor) -> Tensor:
        return self.run_patches("input_block_patch_after_skip", place, x)

    def run_patches(self, name: str, place: Place, x: Tensor) -> Tensor:
        """``x`` after all patches of ``name``, told of ``place`` as the host's transformers tell them."""
        for patch in self.patches.get(name, ()):
            x = patch(x, self.options_at(place))
        return x

    def middle_block(self, place: Place, x: Tensor) -> Tensor:
        for patch in self.patches.get("middle_block_after_patch", ()):
            x = patch({"h": x, "x": x, "transformer_options": self.options_at(place)})["h"]
        return x

    def output_block(self, place: Place, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor | None]:
        stop_if_cancelled()
        for patch in self.patches.get("output_block_patch", ()) if skip is not None else ():
            x, skip = patch(x, skip, self.options_at(place))
        return x, skip

    def attention_tokens(
        self, place: Place, own: Tensor, cond: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        query, own_pair, cond_pair = own, (own, own), (cond, cond)
        if self.patches.get("attn1_patch") or self.patches.get("attn2_patch"):
            extra = self.extra_options(place, own.shape[-1], own.shape[1])
            for patch in self.patches.get("attn1_patch", ()):
                query, *own_pair = patch_tokens(patch, query, own_pair, extra)
            for patch in self.patches.get("attn2_patch", ()):
                query, *cond_pair = patch_tokens(patch, query, cond_pair, extra)
            own_pair, cond_pair = self.cut_keys(place, query, own_pair, cond_pair)
        return query, tuple(own_pair), tuple(cond_pair)

    def cut_keys(self, place: Place, query: Tensor, own: Sequence[Tensor], cond: Sequence[Tensor]) -> tuple[Any, Any]:
        """Keys and values for a query whose tokens a patch cut into tiles (HyperTile) or merged (ToMe).

        Each tile (B tiles, N / tiles, C) sees its share of the picture's own tokens in their order, as core's attention
        then reads them, and all tokens of the conditions.
        """
        batch, length = own[0].shape[:2]
        if query.shape[:2] == (batch, length):
            return own, cond
        tiles = query.shape[0] // batch
        if self.layers or query.shape[0] % batch or length % tiles:
            raise WrongInput(
                f"A node made {tuple(query.shape)} of the picture's tokens {tuple(own[0].shape)} before the attention "
                f"of the block {place.kind} {place.number} (HyperTile and ToMe do so). That cannot be combined with "
                "regional prompts, token weights or windows, and the tiles have to be equal: take one of them off."
            )
        if tiles == 1:
            return own, cond
        return (
            [x.reshape(batch * tiles, length // tiles, -1) for x in own],
            [x.repeat_interleave(tiles, 0) for x in cond],
        )

    def replaces_group(self, place: Place) -> bool:
        return self.find_group_patch(place) is not None

    def find_group_patch(self, place: Place) -> Any:
        """The patch that replaces the whole group at ``place``, or None."""
        table = self.replace.get("dit")
        if not table:
            return None
        starts = {"input": 0, "middle": self.down_groups - 1, "output": self.down_groups}
        number = starts[place.kind] + place.number
        return table.get(("double_block", number), table.get(("single_block", number)))

    def replace_group(self, place: Place, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        def run_original(args: dict[str, Any]) -> dict[str, Any]:
            return {**args, "img": run(args["img"])}

        given = {"img": x, "transformer_options": self.options_at(place)}
        return self.find_group_patch(place)(given, {"original_block": run_original})["img"]

    def attention(self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int) -> Tensor | None:
        patches = self.find_replacement("attn1", place), self.find_replacement("attn2", place)
        if patches == (None, None):
            return super().attention(place, q, k, v, n_self)
        layers = [layer for layer in self.layers if not layer.yields]
        return self.through_layers(place, q, k, v, n_self, layers, self.attend_in_halves(place, *patches))

    def find_replacement(self, name: str, place: Place) -> Any:
        """The patch that replaces the attention ``name`` at ``place``, or None."""
        table, block = self.replace.get(name, {}), (place.kind, place.number)
        return table.get((*block, place.layer), table.get(block))

    def attend_in_halves(self, place: Place, own_patch: Any, cond_patch: Any) -> Attend:
        """The joint attention, put together again from its two halves."""

        def half(patch: Any, q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None) -> Tensor:
            if patch is None:
                return self.plainly(place)(q, k, v, n_self, mask)
            out = patch(q, k, v, self.extra_options(place, q.shape[-1], n_self))
            if out.shape != q.shape:
                raise WrongInput(
                    f"A node replaced the attention of the block {place.kind} {place.number} by something "
                    f"of shape {tuple(out.shape)}; it has to be {tuple(q.shape)}. That node was made for "
                    "another kind of model: take it off the model's wire."
                )
            return out

        def attend(q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None) -> Tensor:
            if n_self in (0, k.shape[1]):
                return half(own_patch if n_self else cond_patch, q, k, v, n_self, mask)
            masks = (None, None) if mask is None else (mask[..., :n_self], mask[..., n_self:])
            own = half(own_patch, q, k[:, :n_self], v[:, :n_self], n_self, masks[0])
            cond = half(cond_patch, q, k[:, n_self:], v[:, n_self:], n_self, masks[1])
            share = own_share(q, k, place.heads, n_self, mask).to(own.dtype)
            own, cond = (x.unflatten(-1, (place.heads, -1)) for x in (own, cond))
            return (own * share + cond * (1 - share)).flatten(-2)

        return attend

    def attention_output(self, place: Place, x: Tensor) -> Tensor:
        for name in ("attn1_output_patch", "attn2_output_patch"):
            for patch in self.patches.get(name, ()):
                x = patch(x, self.extra_options(place, x.shape[-1]))
        if x.shape[1] != place.grid[0] * place.grid[1]:
            raise WrongInput(
                f"A node left {tuple(x.shape)} tokens after the attention of the block {place.kind} {place.number}, "
                f"which has {place.grid[0]} x {place.grid[1]} cells. That node was made for another kind of model: "
                "take it off the model's wire."
            )
        return x
