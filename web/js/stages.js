// The three stages on every sampler: which one works, how far it is, and how many seconds each has taken. All of it
// comes from the host's own progress messages.
import { api } from "../../../scripts/api.js";
import { Panel, element, live } from "./dom.js";
import { kindOf, nodeOf, workflowId } from "./graph.js";
import { askState } from "./state.js";
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

/** The newest run of each workflow, so that another tab's run does not stand in this one's nodes. */
const runs = new Map();
/** The workflow that the server is at work on, by its prompt. */
const places = new Map();
let clock = null;

const shownRun = () => runs.get(workflowId()) ?? new Run();

/** The run of a prompt, made at the first word of it. Its workflow is the one in sight until the server says which. */
function runOf(prompt) {
  if (!places.has(prompt)) places.set(prompt, workflowId());
  const place = places.get(prompt);
  if (runs.get(place)?.prompt !== prompt) runs.set(place, new Run(prompt));
  return runs.get(place);
}

/** Which workflow a prompt was queued from: the page may have turned to another one meanwhile. */
function settle({ prompt_id: prompt, workflow }) {
  const former = places.get(prompt);
  if (former === workflow || !workflow) return;
  if (runs.get(former)?.prompt === prompt) {
    runs.set(workflow, runs.get(former));
    runs.delete(former);
  }
  places.set(prompt, workflow);
}

class Strip extends Panel {
  constructor(node, stage) {
    super(node, "stages", 22);
    this.parts = Object.fromEntries(ORDER.map((name) => [name, partOf(name)]));
    const children = ORDER.flatMap((name) => [element("i", { textContent: "→" }), this.parts[name].root]).slice(1);
    this.stage = stage;
    this.room = element("div", { className: "room" }, element("span"));
    this.room.hidden = stage === "A";
    this.replace(element("div", { className: "row" }, ...children), this.room);
    this.draw();
  }

  draw(now = Date.now()) {
    this.root.title = text("stages.tip");
    this.room.firstChild.textContent = text("stages.room");
    const run = shownRun();
    this.room.firstChild.hidden = ["running", "finished"].includes(run.stage(this.stage, now).state);
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

function tick(on) {
  if (on && clock === null) clock = setInterval(drawAll, 200);
  if (!on && clock !== null) {
    clearInterval(clock);
    clock = null;
  }
  drawAll();
}

/** The stage of a node that a prompt names, or undefined; the names are those of the workflow that it belongs to. */
const stageOf = (prompt, id) => (places.get(prompt) === workflowId() ? STAGES[kindOf(nodeOf(id))] : undefined);

function onProgress({ detail }) {
  const run = runOf(detail.prompt_id);
  const now = Date.now();
  for (const [id, entry] of Object.entries(detail.nodes ?? {})) {
    const stage = run.nodes.get(id)?.stage ?? stageOf(detail.prompt_id, entry.real_node_id ?? id);
    if (stage) run.note(id, stage, entry.state, entry.value, entry.max, now);
  }
  tick(run.end === null);
}

function onExecuted({ detail }) {
  const report = detail.output?.cascade_studio_report?.[0];
  if (report) runOf(detail.prompt_id).measured(String(detail.display_node ?? detail.node), report);
  drawAll();
}

function onCached({ detail }) {
  const run = runOf(detail.prompt_id);
  for (const id of detail.nodes ?? []) {
    const stage = stageOf(detail.prompt_id, id);
    if (stage) run.note(id, stage, "cached", 1, 1, Date.now());
  }
  drawAll();
}

function onEnd(state) {
  return ({ detail }) => {
    for (const run of runs.values()) {
      if (run.end === null && (!detail?.prompt_id || detail.prompt_id === run.prompt)) run.finish(state, Date.now());
    }
    tick([...runs.values()].some((run) => run.end === null));
  };
}

/** Another workflow is on the screen: its own last run is shown. */
export function drawAll() {
  const now = Date.now();
  for (const panel of live) if (panel instanceof Strip) panel.draw(now);
}

/** What the server says of a run that began, or ended, before this page was loaded. */
export function recallStages({ running, last }) {
  if (running) settle(running);
  if (!last || runs.has(workflowId())) return;
  places.set(last.prompt_id, workflowId());
  const run = runOf(last.prompt_id);
  for (const [id, output] of Object.entries(last.outputs)) {
    const [stage, report] = [stageOf(last.prompt_id, id), output.cascade_studio_report?.[0]];
    if (!stage || !report) continue;
    run.note(id, stage, "finished", 1, 1, Date.now());
    run.measured(id, report);
  }
  run.finish("finished", Date.now());
  drawAll();
}

export function listenToStages() {
  api.addEventListener("execution_start", ({ detail }) => {
    runOf(detail.prompt_id);
    drawAll();
    askState().then(({ running }) => running && settle(running));
  });
  api.addEventListener("execution_cached", onCached);
  api.addEventListener("progress_state", onProgress);
  api.addEventListener("executed", onExecuted);
  api.addEventListener("execution_success", onEnd("finished"));
  api.addEventListener("execution_interrupted", onEnd("stopped"));
  api.addEventListener("execution_error", onEnd("failed"));
}

export function addStrip(node, stage) {
  return new Strip(node, stage).show();
}
