// SPDX-License-Identifier: Apache-2.0
// What all parts of the page share: what there is, how the studio is asked, how something is said. Nothing is loaded from elsewhere, names
// are shown as text only.

export const SIDE = 512; // pixels of the canvas that is drawn on
export const POINTS = 16;
export const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45",
  "#fabed4", "#469990", "#dcbeff", "#9a6324", "#ffe119", "#800000", "#aaffc3", "#808000"];
export const page = { state: null, cluster: 0, order: "likeness", shown: "aligned", rows: [], points: [], source: "template", carried: null };
export const parts = {};

export async function ask(path, options = {}) {
  const answer = await fetch(`./studio/${path}`, options);
  const found = (answer.headers.get("content-type") || "").startsWith("application/json") ? await answer.json() : await answer.blob();
  if (found && found.error) throw new Error(found.error);
  if (!answer.ok) throw new Error("the studio cannot be reached; is it still running?");
  return found;
}

export function send(path, body = null, headers = {}) {
  return ask(path, { method: "POST", body, headers: { "X-Studio": "1", ...headers } });
}

export function say(text, wrong = false) {
  if (!parts.said) return;
  parts.said.textContent = text;
  parts.said.classList.toggle("studio-wrong", wrong);
}

export async function tried(work) {
  try {
    return await work();
  } catch (error) {
    say(error.message, true);
    return undefined;
  }
}

export function element(kind, className = "", text = "") {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export function button(text, act, title = "") {
  const made = element("button", "studio-button", text);
  made.type = "button";
  made.title = title;
  made.addEventListener("click", act);
  return made;
}

export function chooser(text, accept, multiple, take) {
  const label = element("label", "studio-button", text);
  const input = element("input");
  input.type = "file";
  input.accept = accept;
  input.multiple = multiple;
  input.addEventListener("change", () => { const files = [...input.files]; input.value = ""; if (files.length) take(files); });
  label.append(input);
  return label;
}

export function tooLarge(file) {
  if (file.size <= page.state.megabytes * 1e6) return false;
  say(`${file.name} is refused: it is larger than ${page.state.megabytes} MB`, true);
  return true;
}
