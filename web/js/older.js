// What older frontends do not do as today's does.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { setValue, widgetOf } from "./dom.js";

const PACK = "cascade-studio";
const INPUT = "-1";
/** Today's numbers what it queues, and says so with the event that older ones do not have. */
const isOlder = () => !("nextQueueRequestId" in app);

/** Say that a prompt is queued, and give our blocks new seeds after it. */
export function announceQueueing() {
  if (!isOlder()) return;
  const queue = app.queuePrompt;
  app.queuePrompt = function (number, batchCount = 1, ...others) {
    const answer = queue.call(this, number, batchCount, ...others);
    api.dispatchCustomEvent("promptQueueing", { requestId: 0, batchCount });
    answer?.then?.(drawSeeds, () => {});
    return answer;
  };
}

/** Older ones leave the seed of a block alone, whatever the node inside says of it. */
function drawSeeds() {
  for (const block of app.rootGraph.nodes) {
    const seed = isBlock(block) && widgetOf(block, "seed");
    const rules = (block.subgraph?.nodes ?? []).map((node) => widgetOf(node, "control_after_generate")?.value);
    if (seed && rules.includes("randomize")) setValue(block, "seed", Math.floor(Math.random() * 2 ** 50));
  }
}

const isBlock = ({ properties }) => properties?.cnr_id === PACK && Array.isArray(properties.proxyWidgets);

/** In a workflow that is opened, list the fields of our blocks as those of their inputs: older ones look for the inner
 * nodes of the others, and show none. */
export function listFields(workflow) {
  if (!isOlder()) return;
  for (const { inputs, properties } of workflow?.nodes ?? []) {
    if (!isBlock({ properties })) continue;
    properties.proxyWidgets = (inputs ?? []).filter(({ widget }) => widget).map(({ name }) => [INPUT, name]);
  }
}
