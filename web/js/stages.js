// The three stages on every sampler: which one works, how far it is, and how many seconds each has taken. All of it
// comes from the host's own progress messages.
import { api } from "../../../scripts/api.js";
import { Panel, element, live } from "./dom.js";
import { kindOf, nodeOf } from "./graph.js";
import { duration, size, text } from "./text.js";

/** The nodes whose work belongs to a stage. */
export const STAGES = {
  CascadeStudio_SamplePrior: "C",
  CascadeStudio_SampleDecoder: "B",
  CascadeStudio_DecodeStageA: "A",
};
const ORDER = ["C", "B", "A"];

/** What one run has told so far: by stage, its nodes with their states and times. */
class Run {
  constructor(prompt = null) {
    this.prompt = prompt;
    this.nodes = new Map();
    this.end = null;
  }

  note(id, stage, state, value, most, now) {
    const known = this.nodes.get(id) ?? { stage, state: "", begun: now, ended: null };
    if (state === "finished" || state === "error") known.ended ??= now;
    Object.assign(known, { state, value, most });
    this.nodes.set(id, known);
  }

  /** What the node itself measured is more exact than what the page saw. */
  measured(id, report) {
    const known = this.nodes.get(id);
    if (known) Object.assign(known, { seconds: report.seconds, memory: report.peak_memory });
  }

  /** Close what is still open when the run is over: "stopped" or "failed" nodes keep their part of the bar. */
  finish(state, now) {
    this.end = state;
    for (const node of this.nodes.values()) {
      if (node.state !== "running") continue;
      node.ended = now;
      node.state = state;
    }
  }

  /** Seconds, share and state of a stage; the state of the node that is at work, else of the last one. */
  stage(name, now) {
    const nodes = [...this.nodes.values()].filter((node) => node.stage === name);
    if (!nodes.length) return { state: "", seconds: 0, share: 0 };
    const current = nodes.find((node) => node.state === "running") ?? nodes.at(-1);
    const worked = nodes.filter((node) => node.state !== "cached");
    const seconds = worked.reduce((sum, node) => sum + (node.seconds ?? ((node.ended ?? now) - node.begun) / 1000), 0);
    const memory = Math.max(0, ...worked.map((node) => node.memory ?? 0));
    const share = current.state === "finished" || current.state === "cached" ? 1 : current.value / (current.most || 1);
    return { state: current.state, seconds, share, memory };
  }
}

let run = new Run();
let clock = null;

class Strip extends Panel {
  constructor(node) {
    super(node, "stages", 22);
    this.parts = Object.fromEntries(ORDER.map((stage) => [stage, partOf(stage)]));
    const children = ORDER.flatMap((stage) => [element("i", { textContent: "→" }), this.parts[stage].root]).slice(1);
    this.replace(...children);
    this.draw();
  }

  draw(now = Date.now()) {
    this.root.title = text("stages.tip");
    for (const stage of ORDER) {
      const { state, seconds, share, memory } = run.stage(stage, now);
      const { root, bar, words } = this.parts[stage];
      root.dataset.state = state;
      root.title = memory ? text("stages.memory", { size: size(memory) }) : "";
      bar.style.width = `${Math.round(100 * Math.min(1, share))}%`;
      words.textContent = wordsOf(state, seconds);
    }
  }
}

function partOf(stage) {
  const bar = element("b");
  const words = element("span", { className: "words" });
  const name = element("span", { className: "name", textContent: stage });
  return { bar, words, root: element("div", { className: "stage", data: { stage } }, bar, name, words) };
}

function wordsOf(state, seconds) {
  if (state === "cached") return text("stages.cached");
  if (state === "stopped" || state === "failed") return text(`stages.${state}`);
  return state ? duration(seconds) : "";
}

function drawAll() {
  const now = Date.now();
  for (const panel of live) if (panel instanceof Strip) panel.draw(now);
}

function tick(on) {
  if (on && clock === null) clock = setInterval(drawAll, 200);
  if (!on && clock !== null) {
    clearInterval(clock);
    clock = null;
  }
  drawAll();
}

function onProgress({ detail }) {
  if (detail.prompt_id !== run.prompt) run = new Run(detail.prompt_id);
  const now = Date.now();
  for (const [id, entry] of Object.entries(detail.nodes ?? {})) {
    const stage = STAGES[kindOf(nodeOf(entry.real_node_id ?? id))];
    if (stage) run.note(id, stage, entry.state, entry.value, entry.max, now);
  }
  tick(run.end === null);
}

function onExecuted({ detail }) {
  const report = detail.output?.cascade_studio_report?.[0];
  if (report && detail.prompt_id === run.prompt) run.measured(String(detail.display_node ?? detail.node), report);
  drawAll();
}

function onCached({ detail }) {
  if (detail.prompt_id !== run.prompt) run = new Run(detail.prompt_id);
  for (const id of detail.nodes ?? []) {
    const stage = STAGES[kindOf(nodeOf(id))];
    if (stage) run.note(id, stage, "cached", 1, 1, Date.now());
  }
  drawAll();
}

function onEnd(state) {
  return ({ detail }) => {
    if (detail?.prompt_id && detail.prompt_id !== run.prompt) return;
    run.finish(state, Date.now());
    tick(false);
  };
}

/** Another workflow is on the screen: what an earlier run took does not belong to its nodes. */
export function forgetRun() {
  if (run.end !== null) run = new Run();
  drawAll();
}

export function listenToStages() {
  api.addEventListener("execution_start", ({ detail }) => {
    run = new Run(detail.prompt_id);
    drawAll();
  });
  api.addEventListener("execution_cached", onCached);
  api.addEventListener("progress_state", onProgress);
  api.addEventListener("executed", onExecuted);
  api.addEventListener("execution_success", onEnd("finished"));
  api.addEventListener("execution_interrupted", onEnd("stopped"));
  api.addEventListener("execution_error", onEnd("failed"));
}

export function addStrip(node) {
  return new Strip(node).show();
}
