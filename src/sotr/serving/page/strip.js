// Several pictures: looked at one after the other, each with its frame in a strip above the image.
import { inPlainWords } from "./server.js";

const MOST = 24;
const TRIES = 6;
const LONGEST_WAIT = 15;
const THUMB = [96, 64];
const $ = (id) => document.getElementById(id);

let entries = []; // { file, name, button, canvas, said, result, problem }
let run = null; // what stops the work
let shown = null;
let count = null; // of a result's objects that are shown

// `look(file, name, signal)` asks the server and gives a result with its bitmap; `show(result, first)` puts one on the
// page, without a bitmap if it was shown before; `counted(result)` says how many of its objects are shown.
export async function beginStrip(files, look, show, counted, say) {
  endStrip();
  const own = (run = new AbortController());
  count = counted;
  entries = files.slice(0, MOST).map((file) => frame(file, show, say));
  $("frames").replaceChildren(...entries.map((entry) => entry.button.parentNode));
  $("strip").hidden = false;
  if (files.length > MOST) say(`${MOST} images at a time: ${files.length - MOST} were left out.`);
  $("strip-stop").hidden = false;
  for (const entry of entries) {
    if (own.signal.aborted) break;
    tell(entry, "working …");
    $("strip-state").textContent = `Image ${entries.indexOf(entry) + 1} of ${entries.length}`;
    try {
      const result = await patiently(() => look(entry.file, entry.name, own.signal), own.signal, entry);
      if (own.signal.aborted) break;
      thumbnail(entry.canvas, result.bitmap);
      entry.result = result;
      if (shown) {
        result.bitmap.close();
        result.bitmap = null; // it takes as much memory as all pixels
      } else {
        mark(entry);
        show(result);
      }
    } catch (error) {
      if (own.signal.aborted) break;
      entry.problem = inPlainWords(error, entry.name);
      entry.button.classList.add("failed");
      if (!shown && entry === entries.at(-1)) say(entry.problem);
    }
    tell(entry);
  }
  if (run !== own) return;
  run = null;
  $("strip-stop").hidden = true;
  const done = entries.filter((entry) => entry.result).length;
  const failed = entries.filter((entry) => entry.problem).length;
  $("strip-state").textContent = `${done} of ${entries.length} images${failed ? `, ${failed} cannot be used` : ""}`;
  for (const entry of entries) tell(entry);
}

// Stop, and leave what there is.
export function stopStrip() {
  run?.abort();
}

export function endStrip() {
  run?.abort();
  run = shown = null;
  entries = [];
  $("strip").hidden = true;
  $("frames").replaceChildren();
}

// After the score has changed, or the shown image was looked at anew.
export function refreshStrip(result = null) {
  if (result && shown?.file === result.blob) shown.result = { ...result, bitmap: null };
  for (const entry of entries) if (entry.result) tell(entry);
}

function frame(file, show, say) {
  const name = file.name || "pasted.png";
  const button = document.createElement("button");
  const canvas = Object.assign(document.createElement("canvas"), { width: THUMB[0], height: THUMB[1] });
  const title = Object.assign(document.createElement("span"), { className: "name", textContent: name });
  const said = Object.assign(document.createElement("span"), { className: "number", textContent: "waiting" });
  const item = document.createElement("li");
  button.append(canvas, title, said);
  button.title = name;
  button.disabled = true;
  item.append(button);
  const entry = { file, name, button, canvas, said, result: null, problem: null };
  button.addEventListener("click", () => {
    if (entry.problem) return say(entry.problem);
    mark(entry);
    show(entry.result);
  });
  return entry;
}

function mark(entry) {
  shown = entry;
  for (const each of entries) {
    if (each === entry) each.button.setAttribute("aria-current", "true");
    else each.button.removeAttribute("aria-current");
  }
}

function tell(entry, text = null) {
  const found = entry.result && count(entry.result);
  const state = entry.problem ? "cannot be used" : entry.result ? `${found} object${found === 1 ? "" : "s"}` : run ? "waiting" : "not done";
  entry.said.textContent = text ?? state;
  entry.button.disabled = !entry.result && !entry.problem;
}

function thumbnail(canvas, bitmap) {
  const scale = Math.max(canvas.width / bitmap.width, canvas.height / bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  canvas.getContext("2d").drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
}

// A full server is asked again when it says so.
async function patiently(ask, signal, entry) {
  for (let tries = 1; ; tries++) {
    try {
      return await ask();
    } catch (error) {
      if (error.code !== "busy" || tries === TRIES || signal.aborted) throw error;
      const seconds = Math.min(LONGEST_WAIT, Number(error.wait) || 2);
      tell(entry, `again in ${seconds} s`);
      await new Promise((done) => {
        const clock = setTimeout(done, 1000 * seconds);
        signal.addEventListener("abort", () => (clearTimeout(clock), done()), { once: true });
      });
      tell(entry, "working …");
    }
  }
}
