// The page's side of Cascade Studio: panels in its nodes. Every node works without them.
import { app } from "../../../scripts/app.js";
import { foldAdvanced, retell } from "./advanced.js";
import { addBoard } from "./board.js";
import { addCanvas } from "./canvas.js";
import { addCompare } from "./compare.js";
import { addStyles, after, live, widgetOf } from "./dom.js";
import { addFiles, listenToDownloads, loaded, recallDownloads, restoreDownloads } from "./downloads.js";
import { allNodes, isOurs, kindOf, nodeOf, workflowId } from "./graph.js";
import { addGrowth } from "./grow.js";
import { listenToMessages } from "./messages.js";
import { hearQueueing, listFields, listenToRuns } from "./older.js";
import { listenToPreviews } from "./previews.js";
import { listenToRepairs, offerSize } from "./repair.js";
import { addReport, tell } from "./report.js";
import { addSettings } from "./settings.js";
import { STAGES, addStrip, drawAll, listenToStages, recallStages } from "./stages.js";
import { askState } from "./state.js";
import { suggestNodes } from "./suggest.js";
import { loadTexts, onLanguage } from "./text.js";

const PICTURES = { CascadeStudio_DraftBoard: addBoard, CascadeStudio_Compare: addCompare };
const shown = new WeakMap();

/** Show a node's output, as a run gives it or as the page has kept it. */
function show(node, output) {
  shown.get(node)?.pin(output);
  loaded(node, output);
  offerSize(node, output);
  tell(node, output);
}

/** Show what is known of the workflow in sight: kept by this page, or by the server from before it was loaded. */
async function recall() {
  restoreDownloads();
  drawAll();
  const place = workflowId();
  if (!place) return;
  const state = await askState();
  if (place !== workflowId()) return;
  recallDownloads(state);
  recallStages(state);
  // What the host keeps of a tab may come before the tab's nodes do. Files and sizes may be others since that run.
  for (const [id, output] of Object.entries(state.last?.outputs ?? {})) {
    const node = nodeOf(id);
    if (!node || !isOurs(node)) continue;
    shown.get(node)?.pin(output);
    if (!widgetOf(node, "missing_files")) tell(node, output);
  }
}

/** Fill dates and other nodes' values into file names that are queued, as the host does for its own save nodes. */
function fillNames(node) {
  const prefix = widgetOf(node, "filename_prefix");
  const filled = window.comfyAPI?.utils?.applyTextReplacements;
  if (prefix && filled) prefix.serializeValue = () => filled(app, prefix.value);
}

/** A file's name may also come from a node that gives text, as the server takes it: such inputs say `file`. */
function takeNames(node) {
  const { required, optional } = node.constructor.nodeData?.input ?? {};
  for (const slot of node.inputs ?? []) {
    const [, options] = { ...required, ...optional }[slot.widget?.name ?? slot.name] ?? [];
    if (options?.file) slot.type = "COMBO,STRING";
  }
}

app.registerExtension({
  name: "CascadeStudio",

  async setup() {
    addStyles();
    listenToMessages();
    listenToStages();
    listenToPreviews();
    listenToDownloads();
    listenToRepairs();
    listenToRuns();
    suggestNodes();
    onLanguage(() => {
      live.forEach((panel) => panel.draw());
      retell(allNodes());
    });
    await loadTexts();
  },

  nodeCreated(node) {
    const kind = kindOf(node);
    if (!isOurs(node)) return;
    foldAdvanced(node);
    if (kind === "CascadeStudio_Canvas") addCanvas(node);
    if (kind in STAGES) addStrip(node, STAGES[kind]);
    addFiles(node);
    addReport(node, kind);
    addSettings(node);
    if (kind === "CascadeStudio_ImagePrompts") addGrowth(node);
    fillNames(node);
    takeNames(node);
    hearQueueing(node);
    if (kind in PICTURES) shown.set(node, PICTURES[kind](node));
    after(node, "onExecuted", (output) => show(node, output));
  },

  loadedGraphNode(node) {
    if (isOurs(node)) takeNames(node);
  },

  beforeConfigureGraph: listFields,
  afterConfigureGraph: recall,

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
