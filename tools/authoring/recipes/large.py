"""Large pictures, and many cheap drafts before one of them is finished."""

from __future__ import annotations

from ..flow import TOUCH, Flow
from . import parts

PRESET = "full-bf16"


def high_resolution_2k() -> Flow:
    """A 1024-pixel composition, then a second pass of Stage C at twice the size."""
    flow = Flow("high_resolution_2k")
    load = parts.load(flow, PRESET, parts.PICTURES_IN)
    flow.step("Size of the first pass", below=True)
    canvas = parts.canvas(flow, 1024, 768)
    flow.step("Prompt")
    positive, negative = parts.prompts(
        flow, load["clip"], "aerial view of a medieval city on a river bend, golden hour, photograph"
    )
    flow.step("First pass: composition")
    first = parts.sample_prior(flow, load["prior"], positive[0], negative[0], canvas["Stage C latent"])
    larger = flow.add("CascadeStudio_HighResolutionPrior", prior=first["prior"], scale=2.0)
    flow.step("Second pass: detail")
    windows = flow.add("CascadeStudio_TiledAttention", model=load["prior"])
    second = parts.sample_prior(
        flow, windows[0], positive[0], negative[0], larger["Stage C latent"], denoise=0.6, shift=3.0
    )
    flow.step("Stage B in pieces")
    pieces = flow.add("CascadeStudio_TileDecoder", model=load["decoder"])
    b = parts.sample_decoder(flow, pieces["decoder"], positive[0], negative[0], second["prior"])
    parts.finish(flow, b["latent"], load["stage_a"], parts.keys_of(PRESET, parts.PICTURES_IN))
    flow.feature(second, denoise=1.0)
    flow.feature(larger, scale=1.5)
    flow.note(
        "Why two passes",
        """## Why two passes

Stage C was trained on pictures of about 1024 pixels. Much larger grids in one go make things appear twice. So the
first pass settles the composition, **Enlarge Stage C Latent** doubles its grid, and the second pass adds detail:
**denoise** 0.4 to 0.7.

**Tile Stage B** lets Stage B work in pieces: the same picture in less than half the memory.""",
    )
    return flow


def high_resolution_4k() -> Flow:
    """Four thousand pixels: a high compression keeps Stage C small, pieces keep Stage B small."""
    flow = Flow("high_resolution_4k")
    load = parts.load(flow, "mixed-bf16", parts.PICTURES_IN)
    flow.step("Size of the first pass", below=True)
    canvas = parts.canvas(flow, 1024, 576)
    flow.step("Prompt")
    positive, negative = parts.prompts(
        flow, load["clip"], "a coral reef full of fish, sunbeams through clear water, wide angle"
    )
    flow.step("First pass: composition")
    first = parts.sample_prior(flow, load["prior"], positive[0], negative[0], canvas["Stage C latent"])
    larger = flow.add("CascadeStudio_HighResolutionPrior", prior=first["prior"], scale=3.75, compression=64.0)
    flow.step("Second pass: detail")
    second = parts.sample_prior(
        flow, load["prior"], positive[0], negative[0], larger["Stage C latent"], denoise=0.5, shift=3.0
    )
    flow.step("Stage B in pieces")
    tiles = flow.add("CascadeStudio_TileDecoder", model=load["decoder"])
    b = parts.sample_decoder(flow, tiles["decoder"], positive[0], negative[0], second["prior"])
    parts.finish(
        flow,
        b["latent"],
        load["stage_a"],
        parts.keys_of("mixed-bf16", parts.PICTURES_IN),
        title="Stage A paints the picture in tiles",
        tile_size=1024,
    )
    flow.feature(larger, compression=42.0)
    flow.note(
        "3840 x 2160",
        """## 3840 x 2160

**Compression 64** in Enlarge Stage C Latent keeps the grid of Stage C small (60 x 34), so that the second pass stays
quick and motifs do not repeat. The lite Stage B does the large part of the work.

**Tile Stage B** works in pieces, which changes nothing but memory: a smaller tile_size needs less. Decode Stage A cuts
tiles of 1024 pixels, which give exactly the same picture.""",
    )
    return flow


def _paint_twice(
    name: str, size: tuple[int, int], scale: float, prompt: str, preset: str, note: tuple[str, str], **decode: int
) -> Flow:
    """A small picture, and a large one that UltraPixel's guide leads through the same structure."""
    flow = Flow(name)
    load = parts.load(flow, preset, parts.PICTURES_IN)
    guide = flow.add("CascadeStudio_LoadUltraPixel", ultrapixel=parts.files.name("ultrapixel"))
    flow.step("Size of the small picture", below=True)
    canvas = parts.canvas(flow, *size)
    flow.step("Prompt")
    positive, negative = parts.prompts(flow, load["clip"], prompt)
    flow.step("The small picture")
    # UltraPixel samples both pictures at shift 1, as it was trained.
    first = parts.sample_prior(flow, load["prior"], positive[0], negative[0], canvas["Stage C latent"], shift=1.0)
    flow.step("How much larger")
    larger = flow.add(
        "CascadeStudio_HighResolutionPrior", colours=TOUCH, prior=first["prior"], scale=scale, method="guided"
    )
    guided = flow.add(
        "CascadeStudio_GuideStageC", model=load["prior"], guide=guide[0], prior=first["prior"], positive=positive[0]
    )
    flow.step("The large picture, guided by the small one")
    second = parts.sample_prior(flow, guided["prior"], positive[0], negative[0], larger["Stage C latent"], shift=1.0)
    flow.step("Stage B in pieces")
    pieces = flow.add("CascadeStudio_TileDecoder", model=load["decoder"])
    b = parts.sample_decoder(flow, pieces["decoder"], positive[0], negative[0], second["prior"])
    keys = [*parts.keys_of(preset, parts.PICTURES_IN), "ultrapixel"]
    parts.finish(flow, b["latent"], load["stage_a"], keys, title="Stage A paints the picture in tiles", **decode)
    flow.feature(guided, strength=0.0)
    flow.note(*note)
    return flow


GUIDED = """Stage C knows compositions of about 24 x 24 cells. UltraPixel's guide nets read the structure out of a small
picture and correct Stage C with it in every step of the large one, which starts from noise alone. So the large picture
has the small one's structure and a detail of its own, and nothing appears twice.

The full Stage C (3.6B) is needed. Long prompts help; *rich detail, 4k, high quality* at the end is the authors' habit.
**strength** in Guide Stage C: less leaves the large picture more freedom."""


def ultrapixel_2k() -> Flow:
    """UltraPixel at 2048 pixels: the small picture leads, the large one adds detail."""
    return _paint_twice(
        "ultrapixel_2k",
        (1024, 1024),
        2.0,
        "portrait of an old sailor with a weathered face, a knitted cap, the harbour behind him, soft morning light, "
        "rich detail, 4k, high quality",
        "full-bf16",
        ("2048 x 2048, guided", f"## 2048 x 2048, guided\n\n{GUIDED}"),
        tile_size=1024,
    )


def ultrapixel_4k() -> Flow:
    """UltraPixel at 3840 x 2160 pixels, and 6K by one number."""
    return _paint_twice(
        "ultrapixel_4k",
        (1280, 720),
        3.0,
        "a mountain village above a lake in autumn, wooden houses with flower boxes, snow on the peaks, clear air, "
        "rich detail, 4k, high quality",
        "mixed-bf16",
        (
            "3840 x 2160, guided, and 6K",
            f"## 3840 x 2160, guided\n\n{GUIDED}\n\n"
            "**6K**: set **scale** to 4.8 (6144 x 3456). The lite Stage B does the large part of the work.",
        ),
        tile_size=1024,
    )


def draft_board() -> Flow:
    """Eight drafts from Stage C; only the chosen ones are finished."""
    flow = Flow("draft_board")
    without = ("clip_vision", "image_encoder")
    load = parts.load(flow, PRESET, without)
    flow.step("Picture size and number of drafts", below=True)
    canvas = parts.canvas(flow, 1024, 1024, batch_size=8)
    flow.step("Prompt")
    positive, negative = parts.prompts(
        flow, load["clip"], "a small robot watering sunflowers, children's book illustration"
    )
    flow.step("Sample the drafts")
    c = flow.add(
        "CascadeStudio_SamplePrior",
        model=load["prior"],
        positive=positive[0],
        negative=negative[0],
        latent=canvas["Stage C latent"],
    )
    flow.step("Choose, then run again")
    board = flow.add("CascadeStudio_DraftBoard", prior=c["prior"], vae=load["stage_c_vae"])
    flow.step("Finish the chosen ones")
    b = parts.sample_decoder(flow, load["decoder"], positive[0], negative[0], board["prior"])
    decoded = flow.add("CascadeStudio_DecodeStageA", latent=b["latent"], vae=load["stage_a"])
    flow.step("Save with a report")
    saved = flow.add(
        "CascadeStudio_SaveImage",
        images=decoded["image"],
        report=decoded["report"],
        filename_prefix=f"cascade/{flow.name}",
    )
    flow.add("CascadeStudio_ReportCard", report=decoded["report"], image=decoded["image"])
    parts.model_links(flow, parts.keys_of(PRESET, without))
    flow.show_in_app(
        [(positive, "text"), (canvas, "width"), (canvas, "height"), (c, "seed"), (board, "chosen")], board, saved
    )
    flow.feature(board, chosen="2")
    flow.note(
        "How to use the board",
        """## How to use the board

1. Press *Run*: Stage C makes eight drafts, the Previewer shows them on the board, and nothing else runs.
2. Click the drafts that you like, or write their numbers into **chosen** (1,3 or 2-4).
3. Press *Run* again: the drafts are kept, and Stage B and A finish the chosen ones.

The seed is fixed so that the drafts stay. Change it for eight new ones. **Save Cascade Image** writes the seconds,
the memory and the model files into the PNG, beside ComfyUI's own prompt and workflow.""",
    )
    return flow


RECIPES = (high_resolution_2k, high_resolution_4k, ultrapixel_2k, ultrapixel_4k, draft_board)
