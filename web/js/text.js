// Every word that the extension shows. Translations are in locales/<language>/main.json under "cascadeStudio", by the
// same ids; the host serves them. What is missing there is shown in English.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

// Kept as JSON, so that tests and translators' tools can read it.
export const ENGLISH = {
  "canvas.aspect": "Aspect ratio",
  "canvas.custom": "Aspect",
  "canvas.swap": "Swap",
  "canvas.swap_tip": "Exchange width and height.",
  "canvas.snap": "Snap",
  "canvas.snap_tip": "Take the nearest size that needs no padding.",
  "canvas.grids": "{columns} x {rows} Stage C cells, {across} x {down} Stage B latents",
  "canvas.no_padding": "Compression {compression}, no padding",
  "canvas.padding": "Compression {compression}, padded to {width} x {height} px and cropped",
  "canvas.memory": "Working memory: C {c}, B {b}, A {a}",
  "canvas.memory_tip": "What the full models need beside their weights in 16 bit, with guidance, for this batch.",
  "canvas.impossible": "Width and height have to be from 64 to 8192 px, the compression 0 or from 32 to 64.",
  "canvas.cell": "one cell of Stage C",
  "stages.cached": "kept",
  "stages.stopped": "stopped",
  "stages.failed": "failed",
  "stages.tip": "Seconds of Stage C, Stage B and Stage A in the last run.",
  "stages.memory": "Peak memory: {size}",
  "stages.room": "The picture appears here while it is sampled.",
  "download.here": "All files are here",
  "download.automatic": "Run takes the best complete set of files on this computer, or Cascade Mini",
  "download.first": "Run fetches {count} files first, {size} in all",
  "download.first_one": "Run fetches one file first, {size}",
  "download.asks": "Run asks before it fetches {count} files, {size} in all",
  "download.asks_one": "Run asks before it fetches one file, {size}",
  "download.missing": "{count} files are missing, {size} in all",
  "download.missing_one": "One file is missing, {size}",
  "download.running": "Fetching {count} files, {size} in all",
  "download.running_one": "Fetching one file, {size}",
  "download.start": "Download and run",
  "download.cancel": "Cancel",
  "download.cancelled": "Stopped. What has arrived is kept and continued next time.",
  "download.progress": "{done} of {total}, {speed}/s, {left} left",
  "download.failed": "Stopped by an error. What has arrived is kept and continued next time.",
  "download.unknown": "size unknown",
  "download.about": "about {size}",
  "download.to": "To {folders}",
  "download.free": "{size} free on the disk",
  "download.licence": "Licence: {licence}",
  "board.waiting": "Run the workflow: the drafts appear here.",
  "board.draft": "Draft {number}",
  "board.draft_seed": "Draft {number}, seed {seed}",
  "board.hint": "Click the drafts to go on with, then run again.",
  "board.chosen": "Chosen: {numbers}",
  "board.none": "None",
  "compare.before": "before",
  "compare.after": "after",
  "compare.slider": "Slider",
  "compare.side": "Side by side",
  "compare.waiting": "Run the workflow to compare two pictures.",
  "compare.pair": "{number} of {count}",
  "advanced.show": "Show advanced inputs ({count})",
  "advanced.hide": "Hide advanced inputs",
  "repair.wrong": "'{input}' needs {wanted}.",
  "repair.stage C": "a Stage C model (prior)",
  "repair.stage B": "a Stage B model (decoder)",
  "repair.stage A": "Stage A, which paints the pixels",
  "repair.stage C VAE": "the Stage C VAE (image encoder and Previewer)",
  "repair.prior": "a finished Stage C latent",
  "repair.prior empty": "a Stage C latent to start from",
  "repair.latent": "a finished Stage B latent",
  "repair.latent empty": "a Stage B latent to start from",
  "repair.wire": "Wire {output} of {node}",
  "repair.far": "This Stage C was trained on pictures of about {native} x {native} px.",
  "repair.size": "Set the canvas to {width} x {height}",
  "text.waiting": "What the node did is told here after a run.",
  "text.copy": "Copy"
};

const listeners = new Set();
let translations = {};

/** Call `listener` whenever the language changes. Returns a function that ends this. */
export function onLanguage(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** The words for an id in the user's language; `{name}` in them is replaced by `values.name`. */
export function text(id, values = {}) {
  const words = lookUp(id) ?? ENGLISH[id] ?? id;
  return words.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** The user's language, and what stands in for it: "pt-BR", then "pt". */
export function languages() {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return [...new Set([language, language.split("-")[0]])];
}

function lookUp(id) {
  for (const name of languages()) {
    const found = translations[name]?.cascadeStudio;
    const words = found?.[id] ?? id.split(".").reduce((inner, key) => inner?.[key], found);
    if (typeof words === "string") return words;
  }
  return undefined;
}

/** Fetch the translations once, and follow the language setting. */
export async function loadTexts() {
  const tell = () => listeners.forEach((listener) => listener());
  app.ui?.settings?.addEventListener?.("Comfy.Locale.change", () => setTimeout(tell));
  try {
    const answer = await api.fetchApi("/i18n");
    setTranslations(answer.ok ? await answer.json() : {});
  } catch (error) {
    console.warn("Cascade Studio: no translations came, so its panels are in English.", error);
  }
  tell();
}

/** By language what its locales/<language>/main.json holds; "cascadeStudio" in it is ours. */
export function setTranslations(found) {
  translations = found;
}

/** 1536 → "1.5 KB", as people read sizes of files. */
export function size(bytes) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let power = 0;
  let number = Number(bytes) || 0;
  while (number >= 999.5 && power < units.length - 1) {
    number /= 1000;
    power += 1;
  }
  return `${number.toFixed(power > 0 && number < 99.95 ? 1 : 0)} ${units[power]}`;
}

/** The size of files, "about 1.4 GB" where it is not known to the byte. */
export const about = (bytes, isAbout) => (isAbout ? text("download.about", { size: size(bytes) }) : size(bytes));

/** 75 → "1:15", 7.25 → "7.3 s". */
export function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const whole = Math.round(seconds);
  const rest = String(whole % 60).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)}:${rest}`;
  return `${Math.floor(whole / 3600)}:${String(Math.floor(whole / 60) % 60).padStart(2, "0")}:${rest}`;
}
