// Wires that cannot work, found in the graph itself when it is queued, and the one change that mends each: offered as a
// button in the node. Nothing is offered where more than one change could be meant.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { Panel, button, element, setValue, valueOf } from "./dom.js";
import { allNodes, kindOf } from "./graph.js";
import { text } from "./text.js";

const OURS = "CascadeStudio_";
const [C, B, A, V] = ["stage C", "stage B", "stage A", "stage C VAE"];
/** Latents: a finished one of Stage C, one to start from, an empty one; the same of Stage B; core's empty one. */
const [PRIOR, START, EMPTY] = ["prior", "prior start", "prior empty"];
const [PICTURE, B_EMPTY, FOREIGN, NOTHING] = ["latent", "latent empty", "latent of another model", "nothing"];

/** What comes out of a node, by its kind and the output's name. */
const GIVES = {
  Load: { prior: C, decoder: B, stage_a: A, stage_c_vae: V },
  LoadPrior: { prior: C },
  LoadDecoder: { decoder: B },
  LoadStageA: { stage_a: A },
  LoadImageEncoder: { stage_c_vae: V },
  LoadLora: { prior: C, decoder: B },
  ApplyLoraStack: { prior: C, decoder: B },
  TileDecoder: { decoder: B },
  TrainLora: { model: C },
  GuideStageC: { prior: C },
  Canvas: { "Stage C latent": EMPTY, "Stage B latent": B_EMPTY },
  SamplePrior: { prior: PRIOR },
  SampleDecoder: { latent: PICTURE },
  DraftBoard: { prior: PRIOR },
  DecoderConditioning: { "Stage B latent": B_EMPTY },
  EncodeImage: { "Stage C latent": START, "Stage B latent": B_EMPTY },
  EncodeStageA: { latent: PICTURE },
  HighResolutionPrior: { "Stage C latent": START },
  SuperResolutionHint: { "Stage C latent": START, "Stage B latent": B_EMPTY },
};

/** Core's nodes that make a latent for other models. */
const FOREIGN_KINDS = /^Empty.*Latent/;

/** What an input takes; the first is what is looked for where nothing fitting is wired. */
const FINISHED = [PRIOR, START];
const TO_FILL = [EMPTY, START, PRIOR];
const TAKES = {
  SamplePrior: { model: [C], latent: TO_FILL },
  SampleDecoder: { model: [B], prior: FINISHED, latent: [B_EMPTY, PICTURE] },
  DecodeStageA: { latent: [PICTURE], vae: [A] },
  EncodeStageA: { vae: [A] },
  EncodeImage: { vae: [V], target: [EMPTY, START, PRIOR] },
  DecodePreview: { prior: FINISHED, vae: [V] },
  DraftBoard: { prior: FINISHED, vae: [V] },
  DecoderConditioning: { prior: FINISHED },
  HighResolutionPrior: { prior: FINISHED },
  SuperResolutionHint: { vae: [V] },
  LoadLora: { prior: [C], decoder: [B] },
  ApplyLoraStack: { prior: [C], decoder: [B] },
  TileDecoder: { model: [B] },
  TiledAttention: { model: [C] },
  LoadHookLora: { model: [C] },
  TrainLora: { model: [C], vae: [V] },
  Detailer: { prior: [C], decoder: [B], stage_a: [A], stage_c_vae: [V] },
  Upscale: { prior: [C], decoder: [B], stage_a: [A], stage_c_vae: [V] },
  OneModel: { prior: [C], decoder: [B], stage_a: [A], stage_c_vae: [V] },
  GuideStageC: { model: [C], prior: FINISHED },
  CannyHint: { latent: TO_FILL },
  InpaintHint: { latent: TO_FILL },
};

const plain = (node) => kindOf(node).replace(OURS, "");
const works = (node) => (node.mode ?? 0) === 0;
const linkOf = (graph, id) => (id == null ? null : graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id]);
const sourceOf = (node, input) => {
  const link = linkOf(node.graph, input?.link);
  const source = link && node.graph.getNodeById(link.origin_id);
  return source ? { node: source, slot: link.origin_slot } : null;
};

/** What an output gives; undefined where that cannot be told from the graph, as with files of any kind. */
export function roleOf({ node, slot }, seen = new Set()) {
  const output = node.outputs?.[slot];
  const given = GIVES[plain(node)]?.[output?.name];
  const isWay = ({ name, type }) => name === output?.name && type === "MODEL";
  const passed = node.inputs?.find(isWay); // a LoRA's node gives what it was given
  if (given && passed && passed.link == null) return NOTHING;
  if (given && kindOf(node).startsWith(OURS) && works(node)) return given;
  if (FOREIGN_KINDS.test(kindOf(node))) return FOREIGN;
  if (seen.has(node)) return undefined;
  seen.add(node);
  const way = node.inputs?.find((input) => input.type === output?.type && input.link != null);
  const before = way && sourceOf(node, way);
  if (!before) return undefined;
  const model = output.type === "LATENT" && modelOf(node);
  if (!model) return roleOf(before, seen);
  return { [C]: PRIOR, [B]: PICTURE }[roleOf(model, seen)]; // a sampler of core's
}

/** The model that a sampler samples with, by itself or through a guider; null for other nodes. */
function modelOf(node) {
  const from = (type) => sourceOf(node, node.inputs?.find((input) => input.type === type));
  const guider = from("GUIDER");
  return from("MODEL") ?? (guider && modelOf(guider.node));
}

/** Every node that something of `node` flows into. */
function followers(node, found = new Set()) {
  for (const output of node.outputs ?? []) {
    for (const id of output.links ?? []) {
      const next = node.graph.getNodeById(linkOf(node.graph, id)?.target_id);
      if (next && !found.has(next)) followers(next, found.add(next));
    }
  }
  return found;
}

/** The one output that an input is meant to get; null where there is none, or more than one could be meant. */
function findSource(node, input, wanted) {
  const after = followers(node).add(node);
  const sought = wanted === TO_FILL ? [EMPTY, START] : wanted;
  const all = [];
  for (const other of node.graph.nodes ?? node.graph._nodes) {
    if (after.has(other) || !works(other)) continue;
    const fits = ({ type }, slot) => type === input.type && sought.includes(roleOf({ node: other, slot }));
    const slot = (other.outputs ?? []).findLastIndex(fits); // of core's samplers the last is the denoised one
    if (slot >= 0) all.push({ node: other, slot });
  }
  const best = sought[0] === EMPTY ? all : all.filter((one) => roleOf(one) === sought[0]);
  const pool = best.length ? best : all;
  const last = pool.filter((one) => !pool.some((other) => other !== one && followers(one.node).has(other.node)));
  const free = last.filter((one) => !isTaken(node, input, one));
  if (pool.length === 1) return pool[0];
  return free.length === 1 ? free[0] : null;
}

/** Whether another node of the same kind has this source at the same input. */
function isTaken(node, input, { node: source, slot }) {
  const others = (node.graph.nodes ?? node.graph._nodes).filter((one) => one !== node && kindOf(one) === kindOf(node));
  return others.some((other) => {
    const its = sourceOf(other, other.inputs.find(({ name }) => name === input.name));
    return its?.node === source && its.slot === slot;
  });
}

/** Inputs of a graph that cannot work as they are wired: `{ node, input, source }`, `source` null without a remedy. */
export function findFaults(graph = app.rootGraph ?? app.graph) {
  const faults = [];
  for (const node of allNodes(graph)) {
    const takes = kindOf(node).startsWith(OURS) && works(node) ? TAKES[plain(node)] : undefined;
    for (const [name, wanted] of Object.entries(takes ?? {})) {
      const input = node.inputs?.find((one) => one.name === name);
      if (!input) continue;
      const source = sourceOf(node, input);
      const role = source && roleOf(source);
      const needed = input.shape !== LiteGraph.GRID_SHAPE && isRequired(node, name);
      if (source ? role === undefined || wanted.includes(role) : !needed || input.link != null) continue;
      faults.push({ node, input, wanted, role, source: findSource(node, input, wanted) });
    }
  }
  return faults;
}

const isRequired = (node, name) => name in (node.constructor?.nodeData?.input?.required ?? {});

/** Wire it, as one step that Undo takes back. */
export function mend({ node, input, source }) {
  node.graph.beforeChange?.();
  source.node.connect(source.slot, node, node.inputs.indexOf(input));
  node.graph.afterChange?.();
  remember();
  node.setDirtyCanvas(true, true);
}

const remember = () => {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
};

class RepairPanel extends Panel {
  constructor(node) {
    super(node, "repair", 40);
    this.words = element("div", { className: "warning" });
    this.press = button("", "", () => this.mend());
    this.press.dataset.action = "mend";
    this.replace(this.words, element("div", { className: "row" }, this.press));
  }

  offer(says, does, mend) {
    Object.assign(this, { says, does, mend: () => (mend(), this.hide()) });
    this.draw();
    this.appear();
  }

  draw() {
    this.words.textContent = this.says?.() ?? "";
    this.press.textContent = this.does?.() ?? "";
  }
}

const panels = new WeakMap();

function panelOf(node) {
  if (!panels.has(node)) panels.set(node, new RepairPanel(node));
  return panels.get(node);
}

const nameOf = (node) => node.title ?? node.type;

/** Show what is wrong with the graph, and what would mend it; what was mended otherwise goes. */
export function offerRepairs() {
  for (const node of allNodes()) panels.get(node)?.hide();
  for (const fault of findFaults()) {
    const { node, input, source, wanted } = fault;
    if (!source) continue;
    const says = () => text("repair.wrong", { input: input.label ?? input.name, wanted: text(`repair.${wanted[0]}`) });
    const output = source.node.outputs[source.slot];
    const does = () => text("repair.wire", { output: output.label ?? output.name, node: nameOf(source.node) });
    panelOf(node).offer(says, does, () => mend(fault));
  }
}

/** A run was far from the size that its Stage C was trained on: offer a canvas of that area and the same aspect. */
export function offerSize(node, output) {
  const native = output?.cascade_studio_native?.[0];
  const source = native && sourceOf(node, node.inputs.find(({ name }) => name === "latent"));
  if (!source || kindOf(source.node) !== `${OURS}Canvas`) return;
  const canvas = source.node;
  const [width, height] = ["width", "height"].map((name) => Number(valueOf(canvas, name)));
  const scale = native / Math.sqrt(width * height);
  const [across, down] = [width, height].map((side) => Math.max(64, 8 * Math.round((side * scale) / 8)));
  const does = () => text("repair.size", { width: across, height: down });
  panelOf(canvas).offer(() => text("repair.far", { native }), does, () => {
    canvas.graph.beforeChange?.();
    setValue(canvas, "width", across);
    setValue(canvas, "height", down);
    canvas.graph.afterChange?.();
    remember();
  });
}

export function listenToRepairs() {
  api.addEventListener("promptQueueing", offerRepairs);
  api.addEventListener("execution_error", offerRepairs);
}
