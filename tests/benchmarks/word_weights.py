"""How much Stage C hears of a weighted word, by each method of Encode prompt, for the help page of that node.

    python3 dev.py run tests/benchmarks/word_weights.py

For four prompts, the prediction of Stage C at half noise with one word weighted, less the one without weights, as a
share of what it changes to exchange the word for a comma; on the tiny random family, whose text encoder has bigG's
arithmetic, and on Cascade Mini. Beside it the share of Stage C's attention that lies on the word's tokens.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("CASCADE_STUDIO_OFFLINE", "1")
TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import inprocess  # noqa: E402
import torch  # noqa: E402
from family import write_family  # noqa: E402
from mini_studio import MiniStudio  # noqa: E402
from torch import Tensor  # noqa: E402
from world import Studio  # noqa: E402

from cascade_studio.stages.attention.layers import TokenLayer  # noqa: E402

PROMPTS = (
    "{} apple on a blue background|red",
    "red {} on a blue background|apple",
    "a green tree and a {}|house",
    "{} on yellow|robot",
)
WEIGHTS = (0.0, 0.5, 1.5, 2.0)


@torch.inference_mode()
def predict(studio: Studio, conditioning: Any) -> Tensor:
    """Stage C's answer to one noise at half noise."""
    from cascade_studio.nodes.host.models.regions import WEIGHTS_KEY

    model = studio.parts.prior
    text, extra = conditioning[0]
    x = torch.randn((1, 16, 6, 6), generator=torch.Generator().manual_seed(0))
    weights = {"text_weights": extra[WEIGHTS_KEY]} if WEIGHTS_KEY in extra else {}
    given = {"clip_text": text, "clip_text_pooled": extra["pooled_output"][None], **weights}
    return model.model.diffusion_model(x, torch.tensor([0.5]), transformer_options={}, **given)


def measure_share(studio: Studio, prompt: str, word: str) -> float:
    """The mean share of the attention to all tokens that lies on those of ``word``, from the change of its log-sum."""
    from cascade_studio.nodes.host.models.regions import WEIGHTS_KEY

    shares: list[float] = []

    class Look(TokenLayer):
        def attend(self, place: Any, q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Any, following: Any) -> Tensor:
            heads = place.heads
            q4, k4 = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (q, k))
            lies = (q4 @ k4.transpose(2, 3) * q4.shape[-1] ** -0.5).softmax(-1)[..., n_self:]
            shares.append(float(lies[..., : self.weights.shape[1]][..., self.weights[0] != 1].sum(-1).mean()))
            return following(q, k, v, n_self, mask)

    weighted = encode(studio, prompt.format(f"({word}:2)"), "attention")
    model = studio.parts.prior.clone()
    layers = [Look(weighted[0][1][WEIGHTS_KEY])]
    text, extra = weighted[0]
    x = torch.randn((1, 16, 6, 6), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model.model.diffusion_model(
            x,
            torch.tensor([0.5]),
            transformer_options={"cascade_studio_layers": layers},
            clip_text=text,
            clip_text_pooled=extra["pooled_output"][None],
        )
    return sum(shares) / len(shares)


def encode(studio: Studio, text: str, weighting: str) -> Any:
    return studio.call("CascadeStudio_EncodePrompt", clip=studio.parts.clip, text=text, weighting=weighting)


def measure(studio: Studio, name: str) -> None:
    """The table of one set of models."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([studio.parts.prior])
    rows = [row.split("|") for row in PROMPTS]
    print(f"{name}: attention on the word {sum(measure_share(studio, *row) for row in rows) / len(rows):.2%}")
    for weighting in ("contrast", "attention", "comfyui"):
        found = []
        for weight in WEIGHTS:
            changes = []
            for prompt, word in rows:
                plain = predict(studio, encode(studio, prompt.format(word), weighting))
                without = predict(studio, encode(studio, prompt.format(","), weighting))
                moved = predict(studio, encode(studio, prompt.format(f"({word}:{weight})"), weighting))
                changes.append(float((moved - plain).norm() / (without - plain).norm()))
            found.append(f"{weight:g}: {sum(changes) / len(changes):6.1%}")
        print(f"  {weighting:<10} {'   '.join(found)}", flush=True)


def main() -> None:
    """Print both tables."""
    host = inprocess.Host(inprocess.prepare())
    torch.set_num_threads(1)
    write_family(host.models)
    measure(Studio(host, host.models), "the small family")
    measure(MiniStudio(host), "Cascade Mini")


if __name__ == "__main__":
    main()
