// Talking to the server, with a key where it wants one.

const KEPT = "sotr-key";
const $ = (id) => document.getElementById(id);

export class Refusal extends Error {
  constructor({ code, message }, response) {
    super(message);
    this.code = code;
    this.wait = response.headers.get("Retry-After");
  }
}

// What need not be sent; the message is for people.
export class Unusable extends Error {}

export function inPlainWords(error, name) {
  if (error instanceof Unusable) return error.message;
  if (!(error instanceof Refusal)) return "The server cannot be reached. Check that it is still running, then try again.";
  if (error.code === "unreadable_picture") {
    return `“${name}” cannot be read as an image. Save it as PNG, JPEG or TIFF and try again.`;
  }
  if (error.code === "busy") return `The server is busy. Try again in ${error.wait ?? "a few"} seconds.`;
  return `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
}

// The server's answer; where it wants a key, people are asked for it once.
export async function ask(address, options = {}) {
  for (;;) {
    const key = kept();
    const headers = { ...options.headers, ...(key ? { "X-API-Key": key } : {}) };
    const response = await fetch(address, { ...options, headers });
    if (response.ok) return response;
    const problem = await response.json().catch(() => null);
    if (response.status !== 401) {
      throw new Refusal(problem?.error ?? { code: "unknown", message: `the server answered ${response.status}` }, response);
    }
    if (key === kept()) await askForKey(key !== null); // else another request has got one meanwhile
  }
}

export function post(address, blob, signal) {
  const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
  return ask(address, { method: "POST", headers: { "Content-Type": type }, body: blob, signal });
}

let asked = null;
let given = null; // where the browser keeps nothing

function kept() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return given;
  }
}

function keep(key) {
  given = key;
  try {
    localStorage.setItem(KEPT, key);
  } catch {
    // It is asked for again when the page is loaded anew.
  }
}

function askForKey(wrong) {
  asked ??= new Promise((done) => {
    const dialog = $("door");
    $("door-text").textContent = wrong ? "This key is not right." : "This server wants a key.";
    $("door-form").onsubmit = (event) => {
      event.preventDefault();
      const key = $("key").value.trim();
      if (!/^[\x21-\x7e]+$/.test(key)) return;
      keep(key);
      $("key").value = "";
      dialog.close();
      asked = null;
      done();
    };
    dialog.oncancel = (event) => event.preventDefault();
    if (!dialog.open) dialog.showModal();
  });
  return asked;
}
