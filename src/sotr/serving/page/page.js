// The page: an image goes to the server once, with a low score; all choosing happens here.
import { beginBusy, endBusy } from "./busy.js";
import { colourObjects, colourOf, mark, paint } from "./drawing.js";
import { saveCoco, saveCsv, saveOverlay } from "./files.js";
import { anchorOf, centreOf, maskInBox, outlineOf } from "./masks.js";
import { Refusal, Unusable, ask, inPlainWords, post } from "./server.js";
import { beginStrip, endStrip, refreshStrip, stopStrip } from "./strip.js";
import { listenToZoom, resetZoom, zoomed } from "./zoom.js";

const PEN = 1.6;
const TEXT = 13;
const MAX_ENLARGEMENT = 6;
const LONGEST_CANVAS = 8192;
const $ = (id) => document.getElementById(id);

let model = null;
let shown = null; // { name, blob, bitmap, answer, objects, minimum, hidden, chosen, near } of the image on the page
let sample = null;
let score = null; // the model's own, until somebody moves the slider; stays from image to image
let asking = null; // what cancels the request under way

// Talking to the server.

async function askModel() {
  model = await (await ask("model")).json();
  score ??= model.usual_score;
  const names = model.classes.map((entry) => entry.name);
  const classes = names.length > 3 ? `${names.length} classes` : names.join(", ");
  document.title = `SOTR: ${model.name}`;
  $("model").textContent = `${model.name} · finds ${classes}`;
  const megabytes = Math.floor(model.limits.max_bytes / 1e6);
  const megapixels = Math.floor(model.limits.max_pixels / 1e6);
  $("accepted").textContent = `PNG, JPEG, TIFF, WebP and more, up to ${megabytes} MB and ${megapixels} megapixels`;
}

async function loadSample() {
  sample = await (await ask("sample")).blob();
  $("sample-picture").src = URL.createObjectURL(sample);
}

// What the server finds in an image, with the image to draw. `tile`: pixels a side of the tiles in which to look.
async function look(blob, name, tile, signal) {
  if (model && blob.size > model.limits.max_bytes) {
    const limit = Math.floor(model.limits.max_bytes / 1e6);
    throw new Unusable(`“${name}” has ${(blob.size / 1e6).toFixed(1)} MB; this server takes up to ${limit} MB.`);
  }
  if (blob.size === 0) throw new Unusable(`“${name}” is empty.`);
  const started = performance.now();
  if (!model) await askModel();
  const query = new URLSearchParams({ score: model.lowest_score, max_objects: model.max_objects });
  if (tile) query.set("tile", tile);
  const [answer, own] = await Promise.all([
    post(`predict?${query}`, blob, signal).then((response) => response.json()),
    drawable(blob),
  ]);
  const seconds = (performance.now() - started) / 1000;
  return { name, blob, bitmap: await bitmapOf(blob, answer, own, signal), answer, seconds, tile };
}

async function bitmapOf(blob, answer, own, signal) {
  const fits = own && own.width === answer.width && own.height === answer.height;
  return fits ? own : createImageBitmap(await (await post("upright", blob, signal)).blob());
}

async function segment(blob, name, tile = null) {
  asking?.abort();
  asking = null; // what comes of it is not to be shown any more
  stopStrip();
  endBusy();
  hideProblem();
  if (blob !== shown?.blob) endStrip();
  const request = new AbortController();
  asking = request;
  const busy = blob.size > 0 && !(blob.size > model?.limits.max_bytes);
  if (busy) {
    beginBusy(blob, () => {
      request.abort();
      if (asking === request) asking = null;
      cancelled();
    });
  }
  try {
    const result = await look(blob, name, tile, request.signal);
    if (asking === request) {
      show(result);
      refreshStrip(result);
    }
  } catch (error) {
    const again = error.code === "busy" || !(error instanceof Refusal) ? () => segment(blob, name, tile) : null;
    if (asking === request) showProblem(inPlainWords(error, name), error instanceof Unusable ? null : again);
  } finally {
    if (asking === request) endBusy();
  }
}

function cancelled() {
  endBusy();
  $("announcement").textContent = "Canceled";
  (shown ? $("view") : $("choose")).focus({ preventScroll: true });
}

// Several images, one after the other; the first that is done is shown, the others when their frames are chosen.
async function segmentAll(files) {
  asking?.abort();
  asking = null;
  hideProblem();
  let waiting = true;
  beginBusy(files[0], () => {
    stopStrip();
    cancelled();
  });
  let wanted = null; // the last that was asked for
  const showOne = async (result) => {
    wanted = result;
    hideProblem();
    try {
      result.bitmap ??= await bitmapOf(result.blob, result.answer, await drawable(result.blob));
      if (wanted === result) show(result);
      result.bitmap = null; // the page has it
    } catch (error) {
      showProblem(inPlainWords(error, result.name));
    }
    if (waiting) endBusy();
    waiting = false;
  };
  const counted = ({ answer }) => answer.objects.filter((object) => object.score >= Math.max(score, model.lowest_score)).length;
  await beginStrip(files, (file, name, signal) => look(file, name, null, signal), showOne, counted, showProblem);
  if (waiting) endBusy();
}

// The image as the browser draws it, or null of what it does not know, such as TIFF, or shows otherwise than the model
// sees it: PNGs of 16 bits, which the server scales by their largest value.
async function drawable(blob) {
  const head = new Uint8Array(await blob.slice(0, 25).arrayBuffer());
  if (head[0] === 0x89 && head[24] === 16) return null;
  return createImageBitmap(blob).catch(() => null);
}

// What is on the page.

function showProblem(text, again = null) {
  $("problem-text").textContent = text;
  $("problem-again").hidden = again === null;
  $("problem-again").onclick = again;
  $("problem").hidden = false;
  $("problem").scrollIntoView({ block: "nearest" });
}

function hideProblem() {
  $("problem").hidden = true;
}

function show({ name, blob, bitmap, answer, seconds, tile }) {
  const labels = new Map(answer.classes.map((entry, label) => [entry.id, label]));
  const objects = answer.objects.map((object) => {
    const mask = maskInBox(object.segmentation, object.box);
    const [left, top, right, bottom] = object.box;
    const middle = [(left + right) / 2, (top + bottom) / 2];
    const label = labels.get(object.category_id);
    return { ...object, label, middle, path: outlineOf(mask), centre: centreOf(mask), anchor: anchorOf(mask) };
  });
  colourObjects(objects, answer.classes, model.colors);
  const minimum = Math.max(score, model.lowest_score);
  shown = { name, blob, bitmap, answer, objects, minimum, hidden: new Set(), chosen: null, near: null };
  $("empty").hidden = true;
  for (const id of ["view", "keys", "panel", "tools"]) $(id).hidden = false;
  document.querySelector("main").classList.add("with-panel");
  resetZoom();
  const size = `${answer.width.toLocaleString("en")} × ${answer.height.toLocaleString("en")} px`;
  $("about").textContent = `${name} · ${size} · ${seconds.toFixed(1)} s${tile ? ` · tiles of ${tile} px` : ""}`;
  const [note] = answer.notes;
  $("note").hidden = !note;
  $("note").textContent = note ? `${note[0].toUpperCase()}${note.slice(1).split(";")[0]}; look in tiles for small objects.` : "";
  $("tile").value = tile ?? model.input.tile;
  $("score").min = model.lowest_score;
  $("score").value = minimum;
  listClasses();
  filter();
  $("stage").scrollIntoView({ block: "nearest" });
  $("view").focus({ preventScroll: true });
}

function visible() {
  return shown.objects.filter((object) => object.score >= shown.minimum && !shown.hidden.has(object.category_id));
}

// What is written on objects, if that is wanted: their numbers in the list and in the CSV, and their classes.
function textsOf(objects) {
  if (!$("labels").checked) return [];
  const several = shown.answer.classes.length > 1;
  return objects.map((object, index) => (several ? `${index} ${object.class_name}` : `${index}`));
}

function describe(object) {
  return `${object.class_name}, score ${object.score.toFixed(2)}, area ${object.area.toLocaleString("en")} px`;
}

function listClasses() {
  const several = shown.answer.classes.length > 1;
  const found = new Set(shown.objects.map((object) => object.category_id));
  const entries = shown.answer.classes.filter((entry) => found.has(entry.id));
  const rows = entries.map((entry) => {
    const row = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    box.dataset.category = entry.id;
    box.addEventListener("change", () => {
      shown.hidden[box.checked ? "delete" : "add"](entry.id);
      filter();
    });
    const number = Object.assign(document.createElement("span"), { className: "number" });
    number.dataset.category = entry.id;
    const label = shown.answer.classes.indexOf(entry);
    row.append(box, ...(several ? [swatch(colourOf(label, model.colors))] : []), entry.name, number);
    row.dataset.name = entry.name.toLowerCase();
    if (several) row.addEventListener("dblclick", () => chooseClasses((id) => id === entry.id));
    return row;
  });
  $("class-rows").replaceChildren(...rows);
  $("classes").hidden = rows.length === 0;
  $("class-tools").hidden = rows.length < 2;
  $("class-search").hidden = rows.length < 8;
  $("class-search").value = "";
}

function chooseClasses(wanted) {
  for (const box of $("class-rows").querySelectorAll("input")) {
    const id = Number(box.dataset.category);
    box.checked = wanted(id);
    shown.hidden[box.checked ? "delete" : "add"](id);
  }
  filter();
}

function swatch(colour) {
  const patch = Object.assign(document.createElement("span"), { className: "swatch" });
  patch.style.backgroundColor = colour;
  return patch;
}

// After the score or the classes have changed.
function filter() {
  const objects = visible();
  if (!objects.includes(shown.chosen)) shown.chosen = null;
  shown.near = null;
  $("score-value").textContent = shown.minimum.toFixed(2);
  const noun = objects.length === 1 ? "object" : "objects";
  const rest = shown.objects.length - objects.length;
  $("count").textContent = shown.objects.length ? `${objects.length} ${noun}` : "No objects found";
  $("rest").textContent = !shown.objects.length
    ? `Nothing scores ${model.lowest_score} or more. Objects should look as large and sharp as in the training images.`
    : rest ? `${rest} more below this score or in hidden classes` : "None left out";
  $("view").setAttribute("aria-label", `${shown.name}, ${objects.length} ${noun}`);
  for (const number of $("classes").querySelectorAll(".number")) {
    number.textContent = objects.filter((object) => object.category_id === Number(number.dataset.category)).length;
  }
  const rows = objects.map((object, index) => {
    const row = Object.assign(document.createElement("li"), { id: `object-${shown.objects.indexOf(object)}` });
    row.setAttribute("role", "option");
    const position = Object.assign(document.createElement("span"), { className: "position", textContent: index });
    const value = Object.assign(document.createElement("span"), { className: "number" });
    value.textContent = object.score.toFixed(2);
    const text = Object.assign(document.createElement("span"), { textContent: object.class_name });
    const area = Object.assign(document.createElement("span"), { className: "number" });
    area.textContent = `${object.area.toLocaleString("en")} px`;
    text.className = "name";
    row.append(swatch(object.colour), position, text, area, value);
    row.addEventListener("pointerenter", () => point(object));
    row.addEventListener("pointerleave", () => point(null));
    row.addEventListener("click", () => choose(object));
    return row;
  });
  $("none").hidden = rows.length > 0;
  $("objects").hidden = rows.length === 0;
  $("objects").replaceChildren(...rows);
  draw();
}

function scaleOnPage() {
  const { bitmap } = shown;
  const room = Math.max(240, window.innerHeight * 0.8);
  return Math.min($("stage").clientWidth / bitmap.width, room / bitmap.height, MAX_ENLARGEMENT) * zoomed();
}

function draw() {
  const scale = scaleOnPage();
  const { bitmap } = shown;
  const ratio = density(scale);
  const [look, texts] = [document.querySelector("[name=look]:checked").value, textsOf(visible())];
  paint($("picture"), bitmap, visible(), scale * ratio, PEN * ratio, look, texts, TEXT * ratio);
  for (const canvas of [$("picture"), $("highlight")]) {
    canvas.style.width = `${$("picture").width / ratio}px`;
    canvas.style.height = `${$("picture").height / ratio}px`;
  }
  const fitting = scale / zoomed();
  $("view").style.width = `${Math.max(1, Math.round(bitmap.width * fitting))}px`;
  $("view").style.height = `${Math.max(1, Math.round(bitmap.height * fitting))}px`;
  $("view").classList.toggle("zoomed", zoomed() > 1);
  $("zoom-fit").textContent = `${Math.round(zoomed() * 100)} %`;
  drawMark();
}

// Pixels of the canvas for each of the page; fewer where it would grow too large.
function density(scale) {
  const longest = Math.max(shown.bitmap.width, shown.bitmap.height) * scale;
  return Math.min(window.devicePixelRatio || 1, LONGEST_CANVAS / longest);
}

// The object under the pointer, else the chosen one.
function drawMark() {
  const object = shown.near ?? shown.chosen;
  const scale = scaleOnPage();
  const ratio = density(scale);
  mark($("highlight"), [$("picture").width, $("picture").height], object, scale * ratio, PEN * ratio);
  for (const row of $("objects").children) {
    row.setAttribute("aria-selected", shown.chosen !== null && row.id === idOf(shown.chosen));
    row.classList.toggle("near", shown.near !== null && row.id === idOf(shown.near));
  }
  $("objects").setAttribute("aria-activedescendant", shown.chosen ? idOf(shown.chosen) : "");
  const tip = $("tip");
  tip.hidden = !object;
  if (!object) return;
  tip.textContent = describe(object);
  const [width, height] = [shown.bitmap.width * scale, shown.bitmap.height * scale];
  const left = Math.min(object.middle[0] * scale - tip.offsetWidth / 2, width - tip.offsetWidth - 6);
  const above = object.box[1] * scale - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${above > 4 ? above : Math.min(object.box[3] * scale + 8, height - tip.offsetHeight - 4)}px`;
}

function idOf(object) {
  return `object-${shown.objects.indexOf(object)}`;
}

function point(object) {
  if (shown.near === object) return;
  shown.near = object;
  drawMark();
}

function choose(object) {
  shown.chosen = object;
  shown.near = null;
  drawMark();
  if (!object) return;
  $("announcement").textContent = describe(object);
  $(idOf(object)).scrollIntoView({ block: "nearest" });
}

// Finding objects by place and by key.

function objectAt(event) {
  const context = $("picture").getContext("2d");
  const bounds = $("picture").getBoundingClientRect();
  const scale = shown.bitmap.width / bounds.width;
  const [x, y] = [(event.clientX - bounds.left) * scale, (event.clientY - bounds.top) * scale];
  context.save();
  context.resetTransform();
  const hits = visible().filter(
    ({ box, path }) => x >= box[0] && x < box[2] && y >= box[1] && y < box[3] && context.isPointInPath(path, x, y, "evenodd"),
  );
  context.restore();
  return hits.reduce((best, object) => (best && best.area <= object.area ? best : object), null);
}

// The nearest object in a direction; sideways distance counts double, so that the path stays straight.
function neighbour(from, key) {
  const [across, sign] = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1] }[key];
  let [best, least] = [from, Infinity];
  for (const object of visible()) {
    const ahead = sign * (object.middle[across] - from.middle[across]);
    const aside = Math.abs(object.middle[1 - across] - from.middle[1 - across]);
    if (object !== from && ahead > 0 && ahead + 2 * aside < least) [best, least] = [object, ahead + 2 * aside];
  }
  return best;
}

function onViewKey(event) {
  if (event.key === "Escape") choose(null);
  else if (event.key.startsWith("Arrow")) {
    const objects = visible();
    if (objects.length) choose(shown.chosen ? neighbour(shown.chosen, event.key) : objects[0]);
  } else return;
  event.preventDefault();
}

function onListKey(event) {
  const objects = visible();
  const at = objects.indexOf(shown.chosen);
  const last = objects.length - 1;
  const target = { ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last }[event.key];
  if (event.key === "Escape") choose(null);
  else if (target !== undefined && objects.length) choose(objects[target]);
  else return;
  event.preventDefault();
}

// Ways in.

function take(files) {
  const [file, ...rest] = files;
  if (rest.length) segmentAll([file, ...rest]);
  else if (file) segment(file, file.name || "pasted.png");
  else showProblem("That was not a file. Save the image first, then drop or choose it here.");
}

async function trySample() {
  try {
    if (!sample) await loadSample();
    await segment(sample, "sample.png");
  } catch (error) {
    showProblem(inPlainWords(error, "sample.png"));
  }
}

function listen() {
  for (const id of ["choose", "another"]) $(id).addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files.length) take($("file").files);
    $("file").value = ""; // so that the same file can be chosen again
  });
  $("sample").addEventListener("click", trySample);
  $("problem-close").addEventListener("click", hideProblem);
  document.addEventListener("paste", (event) => event.clipboardData.files.length && take(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("stage").classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? $("stage").classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("stage").classList.remove("dropping");
    take(event.dataTransfer.files);
  });
  $("score").addEventListener("input", () => {
    score = shown.minimum = Number($("score").value);
    filter();
    refreshStrip();
  });
  $("picture").addEventListener("pointermove", (event) => point(objectAt(event)));
  $("picture").addEventListener("pointerleave", () => point(null));
  $("picture").addEventListener("click", (event) => choose(objectAt(event)));
  $("view").addEventListener("keydown", onViewKey);
  $("objects").addEventListener("keydown", onListKey);
  $("save-overlay").addEventListener("click", () => {
    saveOverlay(shown.name, shown.bitmap, visible(), textsOf(visible())).catch(() => showProblem("This browser cannot draw so large an image."));
  });
  $("save-coco").addEventListener("click", () => saveCoco(shown.name, shown.answer, visible(), shown.minimum));
  $("save-csv").addEventListener("click", () => saveCsv(shown.name, visible()));
  $("in-tiles").addEventListener("submit", (event) => {
    event.preventDefault();
    segment(shown.blob, shown.name, Number($("tile").value) || null);
  });
  for (const look of document.querySelectorAll("[name=look], #labels")) look.addEventListener("change", draw);
  $("strip-stop").addEventListener("click", stopStrip);
  $("class-all").addEventListener("click", () => chooseClasses(() => true));
  $("class-none").addEventListener("click", () => chooseClasses(() => false));
  $("class-search").addEventListener("input", () => {
    const wanted = $("class-search").value.trim().toLowerCase();
    for (const row of $("class-rows").children) row.hidden = !row.dataset.name.includes(wanted);
  });
  listenToZoom(draw);
  new ResizeObserver(() => shown && draw()).observe($("stage"));
}

listen();
loadSample().catch(() => {}); // it is asked for again when it is wanted
askModel().catch((error) => showProblem(inPlainWords(error, "")));
