"""The draft board: choose among cheap Stage C drafts before the other stages run."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .host import latents
from .host.models import use_vae as vaes
from .host.report import draft_board

CATEGORY = "Cascade Studio/latent"
BOARD = "Draft Board"


class CascadeStudioDraftBoard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CascadeStudio_DraftBoard",
            display_name=BOARD,
            category=CATEGORY,
            description=(
                "Shows a batch of Stage C latents as small pictures with numbers and seeds, and hands only the "
                "chosen ones on to Sample Stage B."
            ),
            search_aliases=["stable cascade", "contact sheet", "choose", "batch", "picker", "grid"],
            inputs=[
                io.Latent.Input("prior", tooltip="A batch from Sample Stage C."),
                io.Vae.Input("vae", tooltip="The Stage C VAE output of Load Stable Cascade (Previewer)."),
                io.String.Input(
                    "chosen",
                    default="",
                    tooltip=("Numbers of the drafts to hand on, such as 1,3 or 2-4. Empty: see stop_here."),
                ),
                io.Boolean.Input(
                    "stop_here",
                    default=True,
                    tooltip=("While nothing is chosen, run nothing after the board. Off hands all drafts on."),
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip=("Drafts side by side; 0 makes the sheet about square."),
                ),
            ],
            outputs=[
                io.Latent.Output("prior", display_name="prior", tooltip="The chosen latents, for Sample Stage B."),
                io.Image.Output("sheet", display_name="sheet", tooltip="The contact sheet."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, prior: dict[str, Any], vae: Any, chosen: str, stop_here: bool, columns: int) -> io.NodeOutput:
        samples = latents.expect_finished_prior(prior, BOARD)
        vaes.expect_stage_c(vae, BOARD)
        numbers = draft_board.parse_numbers(chosen, samples.shape[0])
        pictures = vaes.preview(vae, samples)
        board = draft_board.place_drafts(prior, numbers, (pictures.shape[2], pictures.shape[1]), columns)
        sheet = draft_board.draw_sheet(pictures, board)
        everything = list(range(1, samples.shape[0] + 1))
        handed = (
            draft_board.block_output()
            if stop_here and not numbers
            else draft_board.pick_drafts(prior, numbers or everything)
        )
        return io.NodeOutput(
            handed, sheet, ui={**ui.PreviewImage(sheet, cls=cls).as_dict(), **draft_board.show_drafts(board, sheet)}
        )


NODES = [CascadeStudioDraftBoard]
