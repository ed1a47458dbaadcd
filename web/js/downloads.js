// The files of a loader: which are here, which a run would fetch and what that takes, and how far a download is. The
// server tells it in two messages whose shape nodes/host/files/fetch.py describes; it starts and ends downloads itself,
// when a workflow is queued or interrupted.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { Panel, button, element, live, onValues, setValue, valueOf, widgetOf } from "./dom.js";
import { nodeOf, workflowId } from "./graph.js";
import { say } from "./messages.js";
import { HOST_TEXT } from "./report.js";
import { about, duration, size, text } from "./text.js";

const DOWNLOAD = "download";
const ASKING = "ask if large";
const LARGE = 1e9; // as LARGE in nodes/host/files/fetch.py
const [ROW, ROWS, REST] = [18, 5, 112];
const NO_FILES = ["none", "from the checkpoint", ""];

/** What was told, by workflow: of a tab that is not in sight, too. */
const told = new Map();

class FilesPanel extends Panel {
  constructor(node) {
    const inputs = fileInputs(node);
    super(node, "download", REST + ROW * Math.min(ROWS, inputs.length), HOST_TEXT);
    this.inputs = inputs;
    this.forget();
    this.head = element("div", { className: "head" });
    this.files = element("div", { className: "files" });
    this.bar = element("b");
    this.words = element("div", { className: "words" });
    this.start = button("", "", () => this.startAndRun());
    this.cancel = button("", "", () => api.interrupt(null));
    this.start.dataset.action = "start";
    this.cancel.dataset.action = "cancel";
    this.track = element("div", { className: "track", role: "progressbar" }, this.bar);
    this.buttons = element("div", { className: "row" }, this.start, this.cancel);
    this.replace(this.head, this.files, this.track, this.words, this.buttons);
    const names = inputs.map(({ name }) => name);
    onValues(node, [...names, "preset", "missing_files"], () => this.turn());
    this.draw();
  }

  forget() {
    Object.assign(this, { message: null, progress: null, ended: null, report: "", here: "" });
    this.arrived = new Set();
  }

  /** Other files were chosen: what was told of the former ones is over. */
  turn() {
    if (this.message && this.drawn !== this.chosen()) this.forget();
    this.draw();
  }

  check() {
    if (this.drawn !== this.chosen()) this.turn();
  }

  chosen() {
    return ["preset", ...this.inputs.map(({ name }) => name)].map((name) => valueOf(this.node, name)).join("\n");
  }

  /** What the host's own place for text would say under this node. */
  write(value) {
    if (this.message === null) this.report = say(String(value ?? ""));
    this.draw();
  }

  plan(message) {
    this.forget();
    this.message = message;
    this.draw();
  }

  advance(progress) {
    if (this.progress && this.progress.file !== progress.file) this.arrived.add(this.progress.file);
    this.progress = progress;
    this.draw();
  }

  /** The run is over: what had not been finished was stopped. */
  end(how) {
    if (this.message === null || this.ended !== null || this.message.state !== "fetches") return;
    this.ended = how;
    this.draw();
  }

  /** The loader has done its work: every file is here. */
  done(report) {
    this.forget();
    this.report = report;
    this.here = this.chosen();
    this.draw();
  }

  get fetches() {
    return this.message?.state === "fetches" && this.ended === null;
  }

  /** What is shown: the files of a plan, else those that are chosen. */
  list() {
    return this.message ? this.message.plan?.missing ?? [] : this.choice();
  }

  /** Whether a plan that was told earlier is about the files that are chosen now. */
  isAbout(message) {
    const names = this.choice()?.map(({ name }) => name);
    return !names || (message.plan?.missing ?? []).every(({ name }) => names.includes(name));
  }

  /** The chosen files: name, whether it is here, and what is known of it. Null where the server will choose. */
  choice() {
    const preset = valueOf(this.node, "preset");
    const presets = inputOptions(this.node, "preset").presets ?? {};
    if (preset === "automatic") return null;
    const files = this.inputs.map(({ name, published, facts }) => {
      const file = presets[preset] ? presets[preset][name] ?? valueOf(this.node, name) : valueOf(this.node, name);
      const missing = this.here !== this.chosen() && published.includes(file);
      return { name: file, missing, ...(missing ? facts[file] : {}) };
    });
    return files.filter(({ name }) => !NO_FILES.includes(name ?? ""));
  }

  /** What the button does: from now on missing files are fetched, and the workflow is queued. */
  async startAndRun() {
    setValue(this.node, "missing_files", DOWNLOAD);
    this.start.disabled = true;
    await app.queuePrompt(0, 1);
    this.start.disabled = false;
  }

  draw() {
    if (!this.head) return;
    this.drawn = this.chosen();
    const files = this.list();
    const missing = (files ?? []).filter((file) => this.message || file.missing);
    const bytes = this.message?.plan?.to_come ?? missing.reduce((sum, file) => sum + (file.bytes ?? 0), 0);
    const whole = about(bytes, missing.some(isAbout));
    this.head.textContent = files === null ? text("download.automatic") : this.headline(missing.length, bytes, whole);
    this.head.title = say(this.message?.text ?? "");
    this.files.replaceChildren(...(files ?? []).map((file) => this.row(file)));
    this.drawProgress(missing);
    this.start.textContent = text("download.start");
    this.cancel.textContent = text("download.cancel");
    this.cancel.hidden = !this.fetches;
    this.start.hidden = this.message === null || this.fetches || !widgetOf(this.node, "missing_files");
    this.buttons.hidden = this.cancel.hidden && this.start.hidden;
  }

  headline(count, bytes, whole) {
    if (count === 0) return text("download.here");
    const mode = valueOf(this.node, "missing_files");
    const asks = mode === "ask" || (mode === ASKING && bytes > LARGE);
    const waiting = mode === "never" ? "missing" : asks ? "asks" : "first";
    const kind = this.fetches ? "running" : this.message ? "missing" : waiting;
    return text(`download.${kind}${count === 1 ? "_one" : ""}`, { count, size: whole });
  }

  drawProgress(missing) {
    const { done = 0, total = 0, speed = 0, left = null, note = "", file = "" } = this.progress ?? {};
    const share = total ? done / total : 0;
    this.bar.style.width = `${Math.round(100 * Math.min(1, share))}%`;
    this.track.ariaValueNow = String(Math.round(100 * share));
    this.track.ariaLabel = this.head.textContent;
    this.track.hidden = !this.fetches;
    if (this.ended) this.words.textContent = text(this.ended === "stopped" ? "download.cancelled" : "download.failed");
    else if (note) this.words.textContent = `${file}: ${say(note)}`;
    else if (this.progress) {
      const rest = left === null ? "…" : duration(left);
      const parts = { done: size(done), total: size(total), speed: size(speed), left: rest };
      this.words.textContent = `${file}: ${text("download.progress", parts)}`;
    } else this.words.textContent = this.report || this.terms(missing);
  }

  /** Where files would go, under which licences, and how much room is left there. */
  terms(missing) {
    const unique = (list) => [...new Set(list.filter(Boolean))];
    const folders = unique(missing.map(({ folder, target }) => folder ?? shortened(target)));
    const licences = unique(missing.map(({ licence }) => licence?.split(":")[0]));
    const spaces = this.message?.plan?.spaces ?? [];
    return [
      folders.length ? text("download.to", { folders: folders.join(", ") }) : "",
      licences.length ? text("download.licence", { licence: licences.join(", ") }) : "",
      ...spaces.map((one) => text("download.free", { size: size(one.free) })),
    ].filter(Boolean).join(" · ");
  }

  row(file) {
    const here = this.message ? this.arrived.has(file.name) : !file.missing;
    const state = here ? "here" : file.name === this.progress?.file && this.fetches ? "now" : "";
    const licence = file.licence ? text("download.licence", { licence: file.licence }) : "";
    const bytes = file.bytes ?? file.about;
    const told = here ? "✓" : bytes ? about(bytes, isAbout(file)) : text("download.unknown");
    const title = [file.name, file.target ?? file.folder, licence].filter(Boolean).join("\n");
    return element(
      "div",
      { className: "file", data: { state }, title },
      element("span", { textContent: file.name }),
      element("span", { textContent: told }),
    );
  }
}

/** Whether a file's size is only about right: a plan has it beside the exact one, an input's facts say so. */
const isAbout = (file) => (typeof file.about === "boolean" ? file.about : file.bytes === null && Boolean(file.about));

/** The folder of a target below the one with all models, that one included. */
const shortened = (target) => /(?:^|[\\/])(models[\\/].*)[\\/][^\\/]*$/.exec(target ?? "")?.[1].replaceAll("\\", "/");

function inputOptions(node, name) {
  const { required = {}, optional = {} } = node.constructor?.nodeData?.input ?? {};
  return (required[name] ?? optional[name])?.[1] ?? {};
}

/** The inputs of a node that choose files which can be fetched. */
function fileInputs(node) {
  const { required = {}, optional = {} } = node.constructor?.nodeData?.input ?? {};
  return Object.entries({ ...required, ...optional }).flatMap(([name, [, options]]) =>
    Array.isArray(options?.published) ? [{ name, published: options.published, facts: options.facts ?? {} }] : [],
  );
}

const all = () => [...live].filter((panel) => panel instanceof FilesPanel);
const panelOf = (node) => all().find((panel) => panel.node === node);

/** Keep a message for its workflow, and show it if that is in sight. */
function keep(kind, message) {
  const place = message.workflow ?? workflowId();
  if (told.get(place)?.prompt_id !== message.prompt_id || !told.has(place)) {
    // A page that was loaded meanwhile hears of the progress before it has asked for the plan.
    const isWhole = kind === "plans";
    told.set(place, { prompt_id: message.prompt_id, plans: {}, progress: {}, ended: null, isWhole });
  }
  const kept = told.get(place);
  if (kind === "plans") delete kept.progress[message.node];
  kept[kind][message.node] = message;
  if (place !== workflowId()) return;
  const panel = panelOf(nodeOf(message.node));
  if (kind === "plans") panel?.plan(message);
  else panel?.advance(message);
}

/** A run is over, in sight or not. */
function end(how, prompt) {
  for (const kept of told.values()) if (!prompt || !kept.prompt_id || kept.prompt_id === prompt) kept.ended ??= how;
  restoreDownloads();
}

/** Show in the nodes of this workflow what has been told of them. */
export function restoreDownloads() {
  const kept = told.get(workflowId());
  if (!kept) return;
  for (const [id, message] of Object.entries(kept.plans)) {
    const panel = panelOf(nodeOf(id));
    if (!panel?.isAbout(message)) continue;
    if (panel.message !== message) panel.plan(message);
    if (kept.progress[id] && panel.progress !== kept.progress[id]) panel.advance(kept.progress[id]);
    if (kept.ended) panel.end(kept.ended);
  }
}

/** What the server has kept of a prompt that was queued before this page was loaded. */
export function recallDownloads({ downloads, running }) {
  const kept = told.get(downloads?.workflow);
  if (!downloads || kept?.isWhole || (kept && kept.prompt_id !== downloads.prompt_id)) return;
  const { prompt_id, plans } = downloads;
  const progress = { ...downloads.progress, ...kept?.progress };
  const hasCome = ({ finished, done, total } = {}) => finished && done >= total;
  if (Object.keys(plans).every((id) => hasCome(progress[id]))) return;
  const over = running?.prompt_id === prompt_id ? null : "stopped";
  told.set(downloads.workflow, { prompt_id, plans, progress, ended: kept?.ended ?? over, isWhole: true });
  restoreDownloads();
}

export function listenToDownloads() {
  api.addEventListener("cascade_studio.plan", ({ detail }) => detail?.node && keep("plans", detail));
  api.addEventListener("cascade_studio.progress", ({ detail }) => detail?.node && keep("progress", detail));
  api.addEventListener("execution_interrupted", ({ detail }) => end("stopped", detail?.prompt_id));
  api.addEventListener("execution_error", ({ detail }) => end("failed", detail?.prompt_id));
}

/** The loader has done its work: nothing of it is missing any more. */
export function loaded(node, output) {
  const panel = panelOf(node);
  if (!panel) return;
  const kept = told.get(workflowId());
  for (const id of Object.keys(kept?.plans ?? {})) if (nodeOf(id) === node) delete kept.plans[id];
  panel.done(say([output?.text ?? []].flat().join("\n")));
}

export function addFiles(node) {
  return widgetOf(node, "missing_files") ? new FilesPanel(node).show() : null;
}
