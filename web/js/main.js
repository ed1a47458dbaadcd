// The page's side of Cascade Studio: panels in its nodes. Every node works without them.
import { app } from "../../../scripts/app.js";
import { addBoard } from "./board.js";
import { addCanvas } from "./canvas.js";
import { addCompare } from "./compare.js";
import { addStyles, after, live, widgetOf } from "./dom.js";
import { listenToDownloads, loaded } from "./downloads.js";
import { allNodes, isOurs, kindOf } from "./graph.js";
import { tell } from "./report.js";
import { STAGES, addStrip, forgetRun, listenToStages } from "./stages.js";
import { loadTexts, onLanguage } from "./text.js";

const PICTURES = { CascadeStudio_DraftBoard: addBoard, CascadeStudio_Compare: addCompare };
const shown = new WeakMap();

/** Show a node's output, as a run gives it or as the page has kept it. */
function show(node, output) {
  shown.get(node)?.pin(output);
  loaded(node);
  tell(node, output);
}

/** Fill dates and other nodes' values into file names that are queued, as the host does for its own save nodes. */
function fillNames(node) {
  const prefix = widgetOf(node, "filename_prefix");
  const filled = window.comfyAPI?.utils?.applyTextReplacements;
  if (prefix && filled) prefix.serializeValue = () => filled(app, prefix.value);
}

app.registerExtension({
  name: "CascadeStudio",

  async setup() {
    addStyles();
    listenToStages();
    listenToDownloads();
    onLanguage(() => live.forEach((panel) => panel.draw()));
    await loadTexts();
  },

  nodeCreated(node) {
    const kind = kindOf(node);
    if (!isOurs(node)) return;
    if (kind === "CascadeStudio_Canvas") addCanvas(node);
    if (kind in STAGES) addStrip(node);
    fillNames(node);
    if (kind in PICTURES) shown.set(node, PICTURES[kind](node));
    after(node, "onExecuted", (output) => show(node, output));
  },

  afterConfigureGraph: forgetRun,

  /** Another workflow tab was opened: the host has kept what its nodes showed. */
  onNodeOutputsUpdated(outputs) {
    for (const node of allNodes()) {
      const output = isOurs(node) ? outputs[outputId(node)] : undefined;
      if (output) show(node, output);
    }
  },
});

/** The id under which the host keeps a node's output: its own in the root graph, "graph:node" in a subgraph. */
function outputId(node) {
  const graph = node.graph;
  return graph && graph !== graph.rootGraph && graph.id ? `${graph.id}:${node.id}` : String(node.id);
}
