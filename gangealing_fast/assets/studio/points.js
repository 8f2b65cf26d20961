// SPDX-License-Identifier: Apache-2.0
// Points of one picture, carried to all others while they are dragged.

import { COLOURS, POINTS, button, element, page, parts, say, send, tried } from "./page.js";

export function pointsPart(place) {
  const row = element("div", "studio-row");
  row.append(button("Remove the last point", () => { page.points.pop(); carry(); }), button("Remove all points", () => { page.points = []; carry(); }));
  const sides = element("div", "studio-sides");
  parts.main = element("figure", "studio-main");
  parts.main.id = "studio-main";
  parts.others = element("div", "studio-grid studio-small");
  sides.append(parts.main, parts.others);
  const hint = "Click to set a point, drag it: the same place appears in the other pictures. Faint points are doubtful, hollow ones lie nowhere there. Click another picture to drag there.";
  place.append(element("p", "studio-hint", hint), row, sides);
  showPoints();
}

const plain = (key) => key === "template" ? `./studio/template/${page.cluster}?v=${page.version}` : `./studio/preview/${key}`;

function withDots(key, name) {
  const figure = element("figure", "studio-tile");
  figure.dataset.key = key;
  const frame = element("div", "studio-frame");
  const image = element("img");
  image.alt = name;
  image.loading = "lazy";
  image.draggable = false;
  image.src = plain(key);
  frame.append(image, element("div", "studio-dots"));
  figure.append(frame, element("figcaption", "", name));
  return figure;
}

export function showPoints() {
  if (!parts.main || !page.state) return;
  const listed = [{ key: "template", name: "template" }, ...page.state.pictures.slice(0, 60)];
  const chosen = listed.find((picture) => picture.key === page.source) || listed[0];
  page.source = chosen.key;
  const main = withDots(chosen.key, chosen.name);
  parts.main.replaceChildren(...main.childNodes);
  draggable(parts.main.querySelector(".studio-frame"));
  parts.others.replaceChildren(...listed.filter((picture) => picture.key !== page.source).map((picture) => {
    const made = withDots(picture.key, picture.name);
    made.addEventListener("click", () => take(picture.key));
    return made;
  }));
  carry();
}

// The points as they lie in another picture become those that are dragged.
function take(key) {
  const found = rowsOf(key);
  const kept = found.map((row, number) => [row, number]).filter(([row]) => row && row[2] > 0);
  page.points = kept.map(([row]) => [row[0], row[1]]);
  page.source = key;
  showPoints();
}

function rowsOf(key) {
  if (!page.carried) return [];
  return key === "template" ? page.carried.template : page.carried.others[key] || [];
}

function draggable(frame) {
  let held = -1;
  const at = (event) => {
    const box = frame.getBoundingClientRect();
    const inside = (value) => Math.min(1, Math.max(0, value));
    return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
  };
  frame.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    frame.setPointerCapture(event.pointerId);
    const [x, y] = at(event);
    held = page.points.findIndex((point) => Math.hypot(point[0] - x, point[1] - y) < 0.04);
    if (held < 0 && page.points.length >= POINTS) { say(`at most ${POINTS} points are carried at a time`, true); return; }
    if (held < 0) held = page.points.push([x, y]) - 1;
    carry();
  });
  frame.addEventListener("pointermove", (event) => { if (held >= 0) { page.points[held] = at(event); carry(); } });
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => { held = -1; });
}

const carrying = { busy: false, again: false };

async function carry() {
  dots(parts.main, page.points.map(([x, y], number) => [x, y, page.carried && rowsOf("template")[number] ? rowsOf("template")[number][2] : 1]));
  if (carrying.busy) { carrying.again = true; return; }
  carrying.busy = true;
  const [source, state] = [page.source, page.state];
  await tried(async () => {
    const keys = page.state.pictures.slice(0, 60).map((picture) => picture.key).filter((key) => key !== source);
    const asked = JSON.stringify({ picture: source, points: page.points, others: keys });
    const found = await send("points", asked).catch((error) => { if (state === page.state) throw error; });
    if (source !== page.source || state !== page.state || !found) return;
    page.carried = found;
    dots(parts.main, page.points.map(([x, y], number) => [x, y, (rowsOf("template")[number] || [0, 0, 0])[2]]));
    for (const figure of parts.others.children) dots(figure, rowsOf(figure.dataset.key));
  });
  carrying.busy = false;
  if (carrying.again) { carrying.again = false; carry(); }
}

function dots(figure, rows) {
  const place = figure.querySelector(".studio-dots");
  if (!place) return;
  const made = rows.map((row, number) => {
    const dot = element("span", "studio-dot");
    if (!row || row[0] < 0 || row[0] > 1 || row[1] < 0 || row[1] > 1) { dot.hidden = true; return dot; }
    dot.style.left = `${100 * row[0]}%`;
    dot.style.top = `${100 * row[1]}%`;
    dot.style.setProperty("--colour", COLOURS[number % COLOURS.length]);
    dot.style.opacity = String(0.35 + 0.65 * row[2]);
    dot.classList.toggle("studio-hollow", row[2] === 0);
    dot.dataset.confidence = row[2].toFixed(2);
    return dot;
  });
  place.replaceChildren(...made);
  const caption = figure.querySelector("figcaption");
  const sure = rows.map((row) => (row ? row[2] : 0));
  const name = figure.querySelector("img").alt;
  const whole = page.carried ? page.carried.pictures[figure.dataset.key] : undefined;
  const told = sure.length ? [name, `confidence ${sure.map((value) => value.toFixed(2)).join(" ")}`] : [name];
  if (sure.length && whole !== undefined) told.push(`of the picture ${whole.toFixed(2)}`);
  caption.textContent = told.join(" · ");
}
