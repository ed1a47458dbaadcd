// What a loader is about to fetch or asks to fetch, and how far it is. The server tells it in two messages whose shape
// nodes/host/files/fetch.py describes; it starts and ends downloads itself, when a workflow is queued or interrupted.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { Panel, button, element, live, setValue, widgetOf } from "./dom.js";
import { nodeOf } from "./graph.js";
import { duration, size, text } from "./text.js";

const DOWNLOAD = "download";
const ROW = 18;
const panels = new WeakMap();

class DownloadPanel extends Panel {
  constructor(node) {
    super(node, "download", 120);
    this.message = null;
    this.progress = null;
    this.ended = null;
    this.arrived = new Set();
    this.head = element("div", { className: "head" });
    this.files = element("div", { className: "files" });
    this.bar = element("b");
    this.words = element("div", { className: "words" });
    this.start = button("", "", () => this.startAndRun());
    this.cancel = button("", "", () => api.interrupt(null));
    this.start.dataset.action = "start";
    this.cancel.dataset.action = "cancel";
    const buttons = element("div", { className: "row" }, this.start, this.cancel);
    this.track = element("div", { className: "track" }, this.bar);
    this.replace(this.head, this.files, this.track, this.words, buttons);
  }

  plan(message) {
    this.message = message;
    this.progress = null;
    this.ended = null;
    this.arrived.clear();
    this.resize(112 + ROW * Math.min(6, this.missing.length));
    this.show();
    this.draw();
  }

  get missing() {
    return this.message?.plan?.missing ?? [];
  }

  get fetches() {
    return this.message?.state === "fetches" && this.ended === null;
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

  /** What the button does: from now on missing files are fetched, and the workflow is queued. */
  async startAndRun() {
    setValue(this.node, "missing_files", DOWNLOAD);
    this.start.disabled = true;
    await app.queuePrompt(0, 1);
    this.start.disabled = false;
  }

  draw() {
    if (this.message === null) return;
    const { to_come: bytes = 0, spaces = [] } = this.message.plan ?? {};
    const count = this.missing.length;
    const kind = this.fetches ? "running" : "missing";
    const head = text(`download.${kind}${count === 1 ? "_one" : ""}`, { count, size: size(bytes) });
    this.head.textContent = head;
    this.head.title = this.message.text ?? "";
    this.files.replaceChildren(...this.missing.map((file) => this.row(file)));
    this.drawProgress(spaces);
    this.start.textContent = text("download.start");
    this.cancel.textContent = text("download.cancel");
    this.cancel.hidden = !this.fetches;
    this.start.hidden = this.fetches || !widgetOf(this.node, "missing_files");
  }

  drawProgress(spaces) {
    const { done = 0, total = 0, speed = 0, left = null, note = "", file = "" } = this.progress ?? {};
    const share = total ? done / total : 0;
    this.bar.style.width = `${Math.round(100 * Math.min(1, share))}%`;
    this.track.hidden = !this.fetches;
    if (this.ended === "stopped") this.words.textContent = text("download.cancelled");
    else if (this.progress && !note) {
      const rest = left === null ? "…" : duration(left);
      const parts = { done: size(done), total: size(total), speed: size(speed), left: rest };
      this.words.textContent = `${file}: ${text("download.progress", parts)}`;
    } else if (note) this.words.textContent = `${file}: ${note}`;
    else this.words.textContent = spaces.map((one) => text("download.free", { size: size(one.free) })).join(" · ");
  }

  row(file) {
    const state = this.arrived.has(file.name) ? "here" : file.name === this.progress?.file ? "now" : "";
    const licence = file.licence ? text("download.licence", { licence: file.licence }) : "";
    return element(
      "div",
      { className: "file", data: { state }, title: [file.about, file.target, licence].filter(Boolean).join("\n") },
      element("span", { textContent: file.name }),
      element("span", { textContent: size(file.bytes) }),
    );
  }
}

function panelOf(node) {
  if (!panels.has(node)) panels.set(node, new DownloadPanel(node));
  return panels.get(node);
}

const all = () => [...live].filter((panel) => panel instanceof DownloadPanel);

export function listenToDownloads() {
  api.addEventListener("cascade_studio.plan", ({ detail }) => {
    const node = nodeOf(detail?.node);
    if (node) panelOf(node).plan(detail);
  });
  api.addEventListener("cascade_studio.progress", ({ detail }) => {
    const node = nodeOf(detail?.node);
    if (node && panels.has(node)) panels.get(node).advance(detail);
  });
  api.addEventListener("execution_interrupted", () => all().forEach((panel) => panel.end("stopped")));
  api.addEventListener("execution_error", () => all().forEach((panel) => panel.end("failed")));
  // A whole run went well: no file is missing any more.
  api.addEventListener("execution_success", () => all().forEach((panel) => panel.hide()));
}

/** Once the loader has done its work there is nothing left to decide: the panel goes. */
export function loaded(node) {
  panels.get(node)?.hide();
}

