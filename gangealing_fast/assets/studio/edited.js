// SPDX-License-Identifier: Apache-2.0
// The pictures and some frames of the video, with what is drawn on the template.

import { element, page, parts } from "./page.js";

export const draw = { tool: "brush", colour: "#e6194b", size: 24, past: [], stamp: null, busy: false, again: false, timer: 0, layers: {} };

export function tile(picture, source) {
  const figure = element("figure", "studio-tile");
  const image = element("img");
  image.alt = picture.name;
  image.loading = "lazy";
  image.src = source;
  figure.append(image, element("figcaption", "", picture.name));
  figure.dataset.key = picture.key;
  return figure;
}

const edited = (key) => `./studio/edited/${key}?v=${page.version}`;

export function editedPart(place) {
  parts.edited = element("div", "studio-grid");
  place.append(element("p", "studio-hint", "Your drawing on the pictures:"), parts.edited);
  showEdited();
}

export function showEdited() {
  if (!parts.edited || !page.state) return;
  parts.edited.replaceChildren(...page.state.pictures.slice(0, 48).map((picture) => tile(picture, edited(picture.key))));
}

// Fetch what can be seen anew, a few at a time, and show it once it is there, so that nothing flickers. A newer drawing comes first:
// then the rest waits for it.
export async function renew(drawn) {
  page.version = drawn;
  const seen = (image) => {
    const box = image.getBoundingClientRect();
    return image.offsetParent !== null && box.bottom > 0 && box.top < window.innerHeight;
  };
  const images = [...document.querySelectorAll("[data-studio=edited] img, [data-studio=collection][data-shown=edited] img")];
  const waiting = images.filter(seen);
  const rest = images.filter((image) => !waiting.includes(image));
  const one = async () => {
    for (let image = waiting.shift(); image && !draw.again; image = waiting.shift()) {
      const fresh = new Image();
      fresh.src = edited(image.closest("figure").dataset.key);
      try { await fresh.decode(); image.src = fresh.src; } catch { /* a picture that was removed meanwhile */ }
    }
  };
  await Promise.all([one(), one(), one()]);
  if (draw.again) return;
  for (const image of rest) image.src = edited(image.closest("figure").dataset.key);
  await showStrip();
}

export function videoPart(place) {
  parts.video = element("div", "studio-video");
  place.append(parts.video);
  setInterval(() => {
    if (!parts.frames || !parts.frames.length || !parts.flip || parts.flip.offsetParent === null) return;
    parts.turn = ((parts.turn || 0) + 1) % parts.frames.length;
    parts.flip.src = parts.frames[parts.turn].src;
  }, 150);
  showVideo();
}

export function showVideo() {
  if (!parts.video || !page.state) return;
  parts.video.replaceChildren();
  parts.frames = [];
  parts.flip = null;
  if (!page.state.video) {
    parts.video.append(element("p", "studio-hint", "No video yet: add one above, and your drawing appears on it too."));
    return;
  }
  const { name, frames } = page.state.video;
  parts.flip = element("img", "studio-flip");
  parts.flip.alt = `frames of ${name} with the edit`;
  parts.video.append(element("p", "studio-hint", `${name}: some of its ${frames} frames, at once`), parts.flip);
  showStrip();
}

async function showStrip() {
  if (!page.state.video || !parts.flip) return;
  const frames = [];
  for (const frame of page.state.video.strip) {
    const image = new Image();
    image.src = edited(frame.key);
    try { await image.decode(); frames.push(image); } catch { return; }
    if (draw.again) return;
    if (frames.length === 1 && !parts.flip.src) parts.flip.src = image.src;
  }
  parts.frames = frames;
  parts.flip.dataset.drawn = String(page.version);
}
