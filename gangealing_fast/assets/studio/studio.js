// SPDX-License-Identifier: Apache-2.0
// The page as a whole: uploads, the collection, and what gradio's controls call.

import { ask, button, chooser, element, page, parts, say, send, tooLarge, tried } from "./page.js";
import { editPart, showTemplate, wipe } from "./drawing.js";
import { editedPart, renew, showEdited, showVideo, tile, videoPart } from "./edited.js";
import { pointsPart, showPoints } from "./points.js";

async function addPictures(files) {
  if (files.length > page.state.room) {
    say(`${files.length} pictures are too many: there is room for ${page.state.room} more of ${page.state.most}`, true);
    return;
  }
  const refused = [];
  let count = 0;
  for (const file of files) {
    if (file.size > page.state.megabytes * 1e6) {
      refused.push(`${file.name} is refused: it is larger than ${page.state.megabytes} MB`);
      continue;
    }
    say(`adding ${file.name} (${count + refused.length + 1} of ${files.length})`);
    try {
      await send("pictures", file, { "X-Name": encodeURIComponent(file.name), "X-Count": String(files.length - count - refused.length) });
      count += 1;
    } catch (error) {
      refused.push(error.message);
    }
  }
  await reload();
  const more = refused.length > 1 ? ` (and ${refused.length - 1} more)` : "";
  if (refused.length) say(refused[0] + more, true);
  else say(`${count} ${count === 1 ? "picture was" : "pictures were"} added`);
}

async function addVideo(file) {
  if (tooLarge(file)) return;
  say(`reading ${file.name}`);
  await tried(async () => {
    page.state = await send("video", file, { "X-Name": encodeURIComponent(file.name) });
    say(`${page.state.video.name}: ${page.state.video.frames} frames`);
    refresh();
  });
}

async function removed(what) {
  await tried(async () => {
    page.state = await send(`remove?what=${encodeURIComponent(what)}`);
    page.points = what === "all" ? [] : page.points;
    say(what === "all" ? "as at the beginning" : "removed");
    if (what === "all") await wipe(false);
    refresh();
  });
}

async function reload() {
  await tried(async () => {
    page.state = await ask("state");
    if (page.cluster >= page.state.clusters) page.cluster = 0;
    if (!page.state.edited.length) wipe(false); // another aligner has another template
    refresh();
  });
}

function refresh() {
  page.version = Date.now();
  if (!isKnown(page.source)) { page.source = "template"; page.points = []; }
  for (const show of [showTop, showTemplate, showEdited, showVideo, showPoints, showCollection]) show();
}

const isKnown = (key) => key === "template" || page.state.pictures.some((picture) => picture.key === key);

function topPart(place) {
  parts.count = element("span", "studio-count");
  parts.said = element("p", "studio-said");
  parts.said.setAttribute("role", "status");
  parts.mine = button("Remove mine", () => removed("own"));
  parts.theirs = button("Remove the examples", () => removed("examples"));
  const add = chooser("Add pictures", "image/*,.heic", true, addPictures);
  add.querySelector("input").id = "studio-add";
  const film = chooser("Add a video", "video/*", false, (files) => addVideo(files[0]));
  film.querySelector("input").id = "studio-add-video";
  const row = element("div", "studio-row");
  row.append(add, film, parts.theirs, parts.mine, button("Start over", () => removed("all")), parts.count);
  place.append(row, parts.said);
  showTop();
}

function showTop() {
  if (!parts.count || !page.state) return;
  const own = page.state.pictures.filter((picture) => picture.own).length;
  const others = page.state.pictures.length - own;
  parts.count.textContent = `${own} of yours, ${others} ${page.state.examples ? "examples" : "others"}, room for ${page.state.room}`;
  parts.mine.hidden = !own;
  parts.theirs.hidden = !others;
}

window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => {
  event.preventDefault();
  const files = [...(event.dataTransfer ? event.dataTransfer.files : [])];
  if (files.length && !event.target.closest("[data-studio=edit]")) addPictures(files);
});

// ---- collection

function collectionPart(place) {
  parts.collection = element("div", "studio-grid");
  parts.collectionPlace = place;
  place.append(parts.collection);
  // Scores take a while for many pictures: they are asked for once the tab is seen.
  new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) showCollection(); }).observe(place);
}

async function showCollection() {
  if (!parts.collection || !page.state || parts.collectionPlace.offsetParent === null) return;
  if (!page.rows.length || page.rowsOf !== page.version) {
    parts.collection.setAttribute("aria-busy", "true");
    const version = page.version;
    await tried(async () => { page.rows = await ask("collection"); page.rowsOf = version; });
    parts.collection.removeAttribute("aria-busy");
  }
  const value = (row) => (row[page.order] === null || row[page.order] === undefined ? -Infinity : row[page.order]);
  const rows = page.order === "added" ? page.rows : [...page.rows].sort((one, other) => value(other) - value(one));
  parts.collectionPlace.dataset.shown = page.shown;
  parts.collection.replaceChildren(...rows.map((row) => {
    const figure = tile(row, `./studio/${page.shown}/${row.key}?v=${page.version}`);
    const numbers = [`alike ${row.likeness.toFixed(2)}`];
    if (row.score !== null) numbers.push(`flow score ${row.score.toExponential(1)}`);
    if (row.confidence !== null) numbers.push(`confidence ${row.confidence.toFixed(2)}`);
    if (row.outlier) numbers.push("does not belong to the others");
    figure.querySelector("figcaption").append(element("br"), numbers.join(" · "));
    figure.dataset.likeness = String(row.likeness);
    figure.append(button("×", () => removed(row.key), `remove ${row.name} from this page`));
    return figure;
  }));
}

// ---- what gradio's controls call

window.studio = {
  reload,
  async show(how) {
    await tried(async () => {
      const found = await send(`show?${new URLSearchParams(how)}`);
      await renew(found.drawn);
    });
  },
  browse(how) {
    Object.assign(page, how);
    showCollection();
  },
};

const kinds = { top: topPart, edit: editPart, edited: editedPart, video: videoPart, points: pointsPart, collection: collectionPart };

function build() {
  for (const place of document.querySelectorAll("[data-studio]:not([data-ready])")) {
    place.dataset.ready = "1";
    kinds[place.dataset.studio](place);
  }
}

async function begin() {
  page.version = Date.now();
  let why = "";
  page.state = await ask("state").catch((error) => { why = error.message; });
  if (!page.state) {
    document.body.prepend(element("p", "studio-wrong", why));
    return;
  }
  new MutationObserver(build).observe(document.body, { childList: true, subtree: true });
  build();
  refresh();
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
else begin();
