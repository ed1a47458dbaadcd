// What the host's menu offers where a wire is dropped on empty ground: ours after core's own.
import { PREFIX } from "./graph.js";

const [AFTER, BEFORE] = ["slot_types_default_out", "slot_types_default_in"];
const OFFERS = {
  [AFTER]: {
    LATENT: ["SampleDecoder", "DecodeStageA", "SamplePrior", "DraftBoard"],
    CLIP: ["EncodePrompt", "LoadLora"],
    CONDITIONING: ["SamplePrior", "RegionalPrompt", "ApplyControl"],
    MODEL: ["SamplePrior", "SampleDecoder", "LoadLora"],
    VAE: ["DecodeStageA", "EncodeImage"],
  },
  [BEFORE]: {
    LATENT: ["Canvas", "SamplePrior", "SampleDecoder", "EncodeImage"],
    CLIP: ["Load", "LoadLora"],
    CONDITIONING: ["EncodePrompt"],
    MODEL: ["Load", "LoadLora"],
    VAE: ["Load"],
    CONTROL_NET: ["LoadControlNet"],
  },
};

/** Add them once all nodes are known. */
export function suggestNodes() {
  for (const [list, byType] of Object.entries(OFFERS)) {
    for (const [type, kinds] of Object.entries(byType)) {
      const known = LiteGraph[list][type] ?? [];
      LiteGraph[list][type] = [...new Set([...known, ...kinds.map((kind) => PREFIX + kind)])];
    }
  }
}
