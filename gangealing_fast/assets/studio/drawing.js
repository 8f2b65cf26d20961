// SPDX-License-Identifier: Apache-2.0
// The template: what is drawn and placed on it, handed to the studio while it changes.

import { SIDE, ask, button, chooser, element, page, parts, say, send, tooLarge, tried } from "./page.js";
import { draw, renew } from "./edited.js";

function layer() {
  if (!draw.layers[page.cluster]) {
    const made = element("canvas");
    made.width = made.height = SIDE;
    draw.layers[page.cluster] = made;
  }
  return draw.layers[page.cluster];
}

export function editPart(place) {
  const tools = element("div", "studio-row");
  parts.tools = {};
  for (const [name, text] of [["brush", "Brush"], ["eraser", "Eraser"], ["move", "Move picture"]]) {
    parts.tools[name] = button(text, () => choose(name));
    tools.append(parts.tools[name]);
  }
  const colour = element("input");
  colour.type = "color";
  colour.value = draw.colour;
  colour.title = "colour";
  colour.setAttribute("aria-label", "colour");
  colour.addEventListener("input", () => { draw.colour = colour.value; });
  const size = element("input");
  size.type = "range";
  size.min = 4;
  size.max = 200;
  size.value = draw.size;
  size.title = "size of the brush, or of the picture that is placed";
  size.setAttribute("aria-label", "size");
  size.addEventListener("input", () => resize(Number(size.value)));
  parts.size = size;
  tools.append(colour, size, button("Undo", undo), button("Clear", () => wipe(true)));
  tools.append(chooser("Place a picture", "image/*,.heic", false, (files) => place_(files[0], SIDE / 2, SIDE / 2)));
  tools.querySelector("input[type=file]").id = "studio-stamp";
  parts.which = element("div", "studio-row");
  const board = element("div", "studio-board");
  parts.template = element("img", "studio-template");
  parts.template.alt = "template";
  parts.canvas = element("canvas", "studio-canvas");
  parts.canvas.width = parts.canvas.height = SIDE;
  parts.canvas.id = "studio-canvas";
  board.append(parts.template, parts.canvas);
  place.append(element("p", "studio-hint", "The template: draw here, or drop a picture on it."), tools, parts.which, board);
  pointers(parts.canvas);
  parts.canvas.addEventListener("drop", (event) => {
    const file = event.dataTransfer.files[0];
    const [x, y] = spot(event);
    if (file) place_(file, x, y);
  });
  choose("brush");
  showTemplate();
}

function choose(tool) {
  draw.tool = tool;
  if (tool !== "move") settle();
  for (const [name, one] of Object.entries(parts.tools)) one.setAttribute("aria-pressed", String(name === tool));
}

function resize(value) {
  draw.size = value;
  if (!draw.stamp || draw.tool !== "move") return;
  draw.stamp.width = value * SIDE / 200;
  paint();
  later();
}

export function showTemplate() {
  if (!parts.template || !page.state) return;
  parts.template.src = `./studio/template/${page.cluster}?v=${page.version}`;
  parts.which.replaceChildren();
  for (let k = 0; page.state.clusters > 1 && k < page.state.clusters; k++) {
    const one = button(`template ${k}`, () => { settle(); page.cluster = k; draw.past = []; showTemplate(); });
    one.setAttribute("aria-pressed", String(k === page.cluster));
    parts.which.append(one);
  }
  const known = draw.layers[page.cluster];
  if (!known && page.state.edited.includes(page.cluster)) recall(page.cluster);
  paint();
}

async function recall(cluster) {
  const target = layer();
  await tried(async () => {
    target.getContext("2d", { willReadFrequently: true }).drawImage(await createImageBitmap(await ask(`drawing/${cluster}`)), 0, 0, SIDE, SIDE);
    paint();
  });
}

function paint() {
  const context = parts.canvas.getContext("2d", { willReadFrequently: true });
  context.clearRect(0, 0, SIDE, SIDE);
  context.drawImage(layer(), 0, 0);
  if (draw.stamp) stamped(context);
}

function stamped(context) {
  const { image, x, y, width } = draw.stamp;
  const height = width * image.height / image.width;
  context.drawImage(image, x - width / 2, y - height / 2, width, height);
}

function settle() {
  if (!draw.stamp) return;
  remember();
  stamped(layer().getContext("2d", { willReadFrequently: true }));
  draw.stamp = null;
  paint();
}

function remember() {
  draw.past.push(layer().getContext("2d", { willReadFrequently: true }).getImageData(0, 0, SIDE, SIDE));
  if (draw.past.length > 20) draw.past.shift();
}

function undo() {
  if (draw.stamp) draw.stamp = null;
  else if (draw.past.length) layer().getContext("2d", { willReadFrequently: true }).putImageData(draw.past.pop(), 0, 0);
  paint();
  later(0);
}

export async function wipe(tell) {
  if (tell) remember();
  draw.stamp = null;
  for (const [number, one] of Object.entries(draw.layers)) {
    if (!tell || Number(number) === page.cluster) one.getContext("2d", { willReadFrequently: true }).clearRect(0, 0, SIDE, SIDE);
  }
  if (parts.canvas) paint();
  if (tell) later(0);
  else draw.past = [];
}

function spot(event) {
  const box = parts.canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE];
}

function pointers(canvas) {
  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    last = spot(event);
    if (draw.tool !== "move") { remember(); stroke(last, last); }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = spot(event);
    if (draw.tool === "move" && draw.stamp) { draw.stamp.x += next[0] - last[0]; draw.stamp.y += next[1] - last[1]; paint(); later(); }
    else if (draw.tool !== "move") stroke(last, next);
    last = next;
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { if (last) { last = null; later(0); } });
}

function stroke(from, to) {
  const context = layer().getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = draw.tool === "eraser" ? "destination-out" : "source-over";
  context.strokeStyle = draw.colour;
  context.lineWidth = draw.size;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(to[0] + 0.01, to[1]);
  context.stroke();
  context.globalCompositeOperation = "source-over";
  paint();
  later();
}

async function place_(file, x, y) {
  if (tooLarge(file)) return;
  await tried(async () => {
    const image = await createImageBitmap(await send("stamp", file, { "X-Name": encodeURIComponent(file.name) }));
    settle();
    draw.stamp = { image, x, y, width: SIDE / 3 };
    parts.size.value = 200 / 3;
    choose("move");
    paint();
    later(0);
    say("drag the picture to its place; the slider changes its size");
  });
}

// While one edit is under way to the studio, only the newest of the others waits.
function later(wait = 120) {
  if (!draw.timer) draw.timer = setTimeout(() => { draw.timer = 0; hand(); }, wait);
}

async function hand() {
  if (draw.busy) { draw.again = true; return; }
  draw.busy = true;
  const cluster = page.cluster;
  await tried(async () => {
    const pixels = parts.canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, SIDE, SIDE).data;
    let empty = true;
    for (let k = 3; k < pixels.length && empty; k += 4) empty = pixels[k] === 0;
    const body = empty ? null : await new Promise((done) => parts.canvas.toBlob(done, "image/png"));
    const found = await send(`edit?cluster=${cluster}`, body);
    page.state.edited = found.edited;
    await renew(found.drawn);
  });
  draw.busy = false;
  if (draw.again) { draw.again = false; later(0); }
}
