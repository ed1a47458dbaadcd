"""Groups of blocks on a stream that nobody else looks at: written over, in fewer passes, the same but for rounding.

A product can add to what is there, so it adds a block's change to the stream by itself. The bias of that product waits
for the TimestepBlock behind it, whose factors and shifts pass over the stream anyway; and that block leaves room for
the condition tokens behind the picture's own, so that nobody has to join them. Where a hook looks or a layer does not
lend its tensors, the block runs as :mod:`.blocks` has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from .blocks import AttnBlock, FeedForwardBlock, Modulation, Neighbours, Projections, ResBlock, TimestepBlock
from .channels_last import channel_norm
from .hooks import BLOCKS, BlockHooks, Place
from .response import GlobalResponseNorm, channel_lengths
from .run import Pass

AUTOCASTS = ("cpu", "cuda", "xpu")
SPARE = 32  # queries that nobody asked for may be one of so many


def works_alone(hooks: BlockHooks) -> bool:
    """Whether nothing but the network itself holds the stream between its blocks, and nobody replaces a block."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or hooks.compiler:
        return False
    if any(torch.is_autocast_enabled(kind) for kind in AUTOCASTS):
        return False  # which chooses formats for layers that are called
    return "run_block" in hooks.silent and set(BLOCKS) <= hooks.silent | hooks.passive | hooks.borrowed


def read_neighbours(levels: Iterable[Sequence[nn.Module]], like: Tensor | None) -> dict[TimestepBlock, Neighbours]:
    """Every TimestepBlock with the biases around it, where they are at hand for ``like``; with none for None."""
    found: dict[TimestepBlock, Neighbours] = {}
    for blocks in levels:
        for before, block, behind in zip([None, *blocks], blocks, [*blocks[1:], None], strict=False):
            if isinstance(block, TimestepBlock):
                around = (before, behind) if like is not None else (None, None)
                found[block] = Neighbours(*(read_last_bias(each, like) for each in around))
    return found


def read_last_bias(block: nn.Module | None, like: Tensor | None) -> Tensor | None:
    """The bias of the layer of ``block`` that adds to the stream, if it is at hand for ``like``."""
    if like is None or not isinstance(block, (ResBlock, AttnBlock)):
        return None
    last = block.channelwise[4] if isinstance(block, ResBlock) else cast(Projections, block.attention["attn"]).out_proj
    return block.backend.read_bias(last, like)


def scale_biases(blocks: Sequence[ResBlock], like: Tensor, scale: float) -> dict[nn.Module, Tensor]:
    """``scale`` times the bias of every block's convolution that is at hand, by block."""
    found: dict[nn.Module, Tensor] = {}
    by_width: dict[int, list[tuple[nn.Module, Tensor]]] = {}
    for block in blocks:
        bias = block.backend.read_bias(block.depthwise, like)
        if bias is not None:
            by_width.setdefault(len(bias), []).append((block, bias))
    for pairs in by_width.values():
        scaled = torch.stack([bias for _, bias in pairs]) * scale
        found.update(zip((block for block, _ in pairs), scaled.unbind(), strict=True))
    return found


def run_group_alone(group: Sequence[nn.Module], x: Tensor, skip: Tensor | None, place: Place, run: Pass) -> Tensor:
    """x (B, H, W, C) through the blocks of one group, the ``skip`` into its first ResBlock; ``x`` is written over."""
    attentions, room, modulation = 0, None, None
    for block, following in pairwise([*group, None]):
        if isinstance(block, ResBlock):
            x = run.add_control(x)
            if isinstance(following, TimestepBlock) and x.is_contiguous():
                modulation = add_residual(block, x, skip, run.modulations[following], run)
            else:
                x, modulation = block(x, skip, run.scale), None
            skip = None
        elif isinstance(block, TimestepBlock):
            modulation = run.modulations[block]._replace(late=None) if modulation is None else modulation
            if x.is_contiguous() and joins_conditions(following, run):
                room = modulate_into_room(x, modulation, run.cond.shape[1])
            else:
                torch.addcmul(modulation.shift, x, modulation.factor, out=x)
                modulation = None
        elif isinstance(block, AttnBlock):
            at = place._replace(layer=attentions)
            if room is None or modulation is None:
                x = block(x, run.map_condition(block), run.scale, at, run.hooks)
            else:
                at = at._replace(heads=block.heads, grid=(x.shape[1], x.shape[2]))
                x, room, modulation = attend_in_room(block, x, room, modulation, at, run), None, None
            x = run.show("attention_block", at, x, run.time)
            attentions += 1
        else:
            x = cast(FeedForwardBlock, block)(x, None, run.scale)
    return x


def add_residual(block: ResBlock, x: Tensor, skip: Tensor | None, modulation: Modulation, run: Pass) -> Modulation:
    """Add to x (B, H, W, C) what ``block`` changes, but for its last bias.

    Returns the ``modulation`` of the block behind it with that bias in its shift, and in ``late`` (1, B, 1, 1, C) the
    same with the bias of the attention behind that, if it is at hand.
    """
    scale, own, mixer = run.scale, block.mixer_scale(skip, run.scale), block.channelwise
    h = mixer.widen(block.mix(x, skip, scale, run.held.get(block)), own)
    lent = mixer.backend.lend_weights(mixer[4], h)
    if lent is None or not x.dtype == h.dtype == lent.weight.dtype:
        if lent is not None:
            lent.release()
        torch.add(x, mixer.narrow(h, own), alpha=scale / own, out=x)
        return modulation._replace(late=None)
    weight, missing, norm = lent.weight, None, cast(GlobalResponseNorm, mixer[2])
    if modulation.late is None:
        missing = lent.bias
    if mixer.folds(h):
        x.view(len(x), -1, x.shape[-1]).baddbmm_(
            h.flatten(1, 2), mixer.fold(h, own, channel_lengths, weight), alpha=scale / own
        )
        missing = mixer.shift_folded(h, weight, missing)
    else:
        x.view(-1, x.shape[-1]).addmm_(norm(h, own).flatten(0, 2), weight.t(), alpha=scale / own)
    shifts = modulation.shift[None] if modulation.late is None else modulation.late
    if missing is not None:
        shifts = torch.addcmul(shifts, modulation.factor, missing, value=scale)
    lent.release()
    return modulation._replace(shift=shifts[0], late=shifts[1:] if len(shifts) > 1 else None)


def joins_conditions(block: nn.Module | None, run: Pass) -> bool:
    """Whether ``block`` is an attention to the picture and the conditions, whose tokens no hook touches."""
    quiet = {"attention_tokens", "attention_output"} <= run.hooks.silent
    return isinstance(block, AttnBlock) and block.self_attn and quiet


def modulate_into_room(x: Tensor, modulation: Modulation, spare: int) -> Tensor:
    """A TimestepBlock on x (B, H, W, C): (B, N + ``spare``, C), of which the last are not written yet."""
    length = x.shape[1] * x.shape[2]
    room = x.new_empty(x.shape[0], length + spare, x.shape[3])
    factor, shift = (each[:, 0] for each in (modulation.factor, modulation.shift))  # (B, 1, C)
    torch.addcmul(shift, x.flatten(1, 2), factor, out=room[:, :length])
    return room


def attend_in_room(
    block: AttnBlock, x: Tensor, room: Tensor, modulation: Modulation, place: Place, run: Pass
) -> Tensor:
    """``block`` on x (B, H, W, C) after its ``modulation``, which lies in ``room`` (B, N + M, C) behind which there is
    room for the M condition tokens. To spare the sum a pass and a rounding, x is modulated again, with its bias."""
    attn, length = cast(Projections, block.attention["attn"]), place.grid[0] * place.grid[1]
    tokens = channel_norm(room, run.scale)
    write_conditions(block, tokens[:, length:], run)
    q, k, v = project_queries(block, tokens, length), attn.to_k(tokens), attn.to_v(tokens)
    del tokens
    out = run.hooks.attention(place, q, k, v, length)
    if out is None:
        out = block.attend(q, k, v, block.heads, run.hooks.options)
    lent = block.backend.lend_weights(attn.out_proj, out)
    if lent is None or not out.dtype == x.dtype == lent.weight.dtype:
        if lent is not None:
            lent.release()
        return torch.add(room[:, :length], attn.out_proj(out), alpha=run.scale).view(x.shape)
    if modulation.late is not None:
        shift = modulation.late[0]
    else:
        shift = modulation.shift if lent.bias is None else torch.add(modulation.shift, lent.bias, alpha=run.scale)
    torch.addcmul(shift, x, modulation.factor, out=x)
    x.view(-1, x.shape[-1]).addmm_(out.flatten(0, 1), lent.weight.t(), alpha=run.scale)
    lent.release()
    return x


def write_conditions(block: AttnBlock, place: Tensor, run: Pass) -> None:
    """The condition tokens of ``block`` into their ``place`` (B, M, C), by its product itself where that is one."""
    layer = block.kv_mapper[1]
    lent = block.backend.lend_weights(layer, run.cond) if run.mapped is None and len(place) <= 2 else None
    if lent is None or lent.bias is None:
        place.copy_(run.map_condition(block))
    else:
        for sample, given in zip(run.cond.expand(len(place), -1, -1), place, strict=True):
            torch.addmm(lent.bias, sample, lent.weight.t(), out=given)
    if lent is not None:
        lent.release()


def project_queries(block: AttnBlock, tokens: Tensor, length: int) -> Tensor:
    """The queries (B, N, C) of the first ``length`` of ``tokens``, in few products and without copying them."""
    layer = cast(Projections, block.attention["attn"]).to_q
    if len(tokens) == 1:
        return layer(tokens[:, :length])
    spare = tokens.shape[1] - length
    lent = block.backend.lend_weights(layer, tokens) if SPARE * spare > length else None
    if lent is None or lent.bias is None:
        if lent is not None:
            lent.release()
        return layer(tokens)[:, :length]
    out = tokens.new_empty(len(tokens), length, lent.weight.shape[0])
    for sample, given in zip(tokens, out, strict=True):
        torch.addmm(lent.bias, sample[:length], lent.weight.t(), out=given)
    lent.release()
    return out
