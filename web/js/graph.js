// Finding the nodes that the server speaks of.
import { app } from "../../../scripts/app.js";

export const PREFIX = "CascadeStudio_";

const rootGraph = () => app.rootGraph ?? app.graph;

/** The id of the workflow in sight, as its prompts carry it. */
export const workflowId = () => rootGraph()?.id ?? null;

/** The node of an id as the server gives it: "7", or "5:7" for node 7 inside the subgraph node 5. */
export function nodeOf(executionId) {
  let graph = rootGraph();
  let node = null;
  for (const part of String(executionId ?? "").split(":")) {
    node = graph?.getNodeById?.(part) ?? graph?.getNodeById?.(Number(part)) ?? null;
    if (!node) return null;
    graph = node.subgraph;
  }
  return node;
}

export const kindOf = (node) => node?.constructor?.comfyClass ?? node?.comfyClass ?? node?.type ?? "";

export const isOurs = (node) => kindOf(node).startsWith(PREFIX);

/** Every node of the workflow, those inside subgraphs too. */
export function* allNodes(graph = rootGraph()) {
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    yield node;
    if (node.subgraph) yield* allNodes(node.subgraph);
  }
}
