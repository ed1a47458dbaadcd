// What older frontends do not do as today's does.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { setValue, widgetOf } from "./dom.js";

const PACK = "cascade-studio";
const INPUT = "-1";
/** Today's numbers what it queues, and says so with an event that older ones do not have. */
const isOlder = () => !("nextQueueRequestId" in app);
const isBlock = ({ properties }) => properties?.cnr_id === PACK && Array.isArray(properties.proxyWidgets);
let said = false;

/** Say that a prompt is queued; once, however many widgets hear of it. */
function announceQueueing() {
  if (said) return;
  said = true;
  setTimeout(() => {
    said = false;
  });
  api.dispatchCustomEvent("promptQueueing", { requestId: 0, batchCount: 1 });
}

/** Let a widget of a node of ours hear of it. */
export function hearQueueing(node) {
  const [widget] = node.widgets ?? [];
  if (!isOlder() || !widget) return;
  const before = widget.beforeQueued;
  widget.beforeQueued = (...given) => {
    before?.apply(widget, given);
    announceQueueing();
  };
}

/** A new seed for blocks of ours: older ones leave it alone, whatever the node inside says of it. */
function drawSeeds() {
  for (const block of app.rootGraph.nodes.filter(isBlock)) {
    const rules = (block.subgraph?.nodes ?? []).map((node) => widgetOf(node, "control_after_generate")?.value);
    if (rules.includes("randomize")) setValue(block, "seed", Math.floor(Math.random() * 2 ** 50));
  }
}

export function listenToRuns() {
  if (isOlder()) api.addEventListener("promptQueued", drawSeeds);
}

/** In a workflow that is opened, list the fields of our blocks as those of their inputs: older ones look for the inner
 * nodes of the others, and show none. */
export function listFields(workflow) {
  if (!isOlder()) return;
  for (const { inputs, properties } of workflow?.nodes ?? []) {
    if (!isBlock({ properties })) continue;
    properties.proxyWidgets = (inputs ?? []).filter(({ widget }) => widget).map(({ name }) => [INPUT, name]);
  }
}
