// SPDX-License-Identifier: Apache-2.0
// What is drawn and dragged on the page of the studio. Nothing here is loaded from elsewhere, names are shown as text only.
"use strict";
(() => {
  const SIDE = 512; // pixels of the canvas that is drawn on
  const POINTS = 16;
  const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45",
    "#fabed4", "#469990", "#dcbeff", "#9a6324", "#ffe119", "#800000", "#aaffc3", "#808000"];
  const page = { state: null, cluster: 0, order: "likeness", shown: "aligned", rows: [], points: [], source: "template", carried: null };
  const parts = {};

  // ---- asking

  async function ask(path, options = {}) {
    const answer = await fetch(`./studio/${path}`, options);
    const found = (answer.headers.get("content-type") || "").startsWith("application/json") ? await answer.json() : await answer.blob();
    if (found && found.error) throw new Error(found.error);
    if (!answer.ok) throw new Error("the studio cannot be reached; is it still running?");
    return found;
  }

  function send(path, body = null, headers = {}) {
    return ask(path, { method: "POST", body, headers: { "X-Studio": "1", ...headers } });
  }

  function say(text, wrong = false) {
    if (!parts.said) return;
    parts.said.textContent = text;
    parts.said.classList.toggle("studio-wrong", wrong);
  }

  async function tried(work) {
    try {
      return await work();
    } catch (error) {
      say(error.message, true);
      return undefined;
    }
  }

  function element(kind, className = "", text = "") {
    const made = document.createElement(kind);
    if (className) made.className = className;
    if (text) made.textContent = text;
    return made;
  }

  function button(text, act, title = "") {
    const made = element("button", "studio-button", text);
    made.type = "button";
    made.title = title;
    made.addEventListener("click", act);
    return made;
  }

  function chooser(text, accept, multiple, take) {
    const label = element("label", "studio-button", text);
    const input = element("input");
    input.type = "file";
    input.accept = accept;
    input.multiple = multiple;
    input.addEventListener("change", () => { const files = [...input.files]; input.value = ""; if (files.length) take(files); });
    label.append(input);
    return label;
  }

  // ---- pictures and the video

  function tooLarge(file) {
    if (file.size <= page.state.megabytes * 1e6) return false;
    say(`${file.name} is refused: it is larger than ${page.state.megabytes} MB`, true);
    return true;
  }

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

  // ---- drawing

  const draw = { tool: "brush", colour: "#e6194b", size: 24, past: [], stamp: null, busy: false, again: false, timer: 0, layers: {} };

  function layer() {
    if (!draw.layers[page.cluster]) {
      const made = element("canvas");
      made.width = made.height = SIDE;
      draw.layers[page.cluster] = made;
    }
    return draw.layers[page.cluster];
  }

  function editPart(place) {
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

  function showTemplate() {
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

  async function wipe(tell) {
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

  // ---- edited pictures

  function tile(picture, source) {
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

  function editedPart(place) {
    parts.edited = element("div", "studio-grid");
    place.append(element("p", "studio-hint", "Your drawing on the pictures:"), parts.edited);
    showEdited();
  }

  function showEdited() {
    if (!parts.edited || !page.state) return;
    parts.edited.replaceChildren(...page.state.pictures.slice(0, 48).map((picture) => tile(picture, edited(picture.key))));
  }

  // Fetch what can be seen anew, a few at a time, and show it once it is there, so that nothing flickers. A newer drawing comes first:
  // then the rest waits for it.
  async function renew(drawn) {
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

  // ---- video

  function videoPart(place) {
    parts.video = element("div", "studio-video");
    place.append(parts.video);
    setInterval(() => {
      if (!parts.frames || !parts.frames.length || !parts.flip || parts.flip.offsetParent === null) return;
      parts.turn = ((parts.turn || 0) + 1) % parts.frames.length;
      parts.flip.src = parts.frames[parts.turn].src;
    }, 150);
    showVideo();
  }

  function showVideo() {
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

  // ---- points

  function pointsPart(place) {
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

  function showPoints() {
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
})();
