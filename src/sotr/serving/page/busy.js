// What is seen while the server works: the image, the seconds, and a way out.

const $ = (id) => document.getElementById(id);

let clock = null;
let shown = null;

// `cancel` is called when people do not want to wait any longer.
export function beginBusy(blob, cancel) {
  endBusy();
  const started = performance.now();
  const tell = () => ($("elapsed").textContent = `${Math.floor((performance.now() - started) / 1000)} s`);
  tell();
  clock = setInterval(tell, 1000);
  $("busy").hidden = false;
  $("stage").setAttribute("aria-busy", true);
  $("cancel").onclick = cancel;
  if ($("view").hidden) {
    shown = URL.createObjectURL(blob);
    $("preview").onload = () => ($("preview").hidden = false); // not of what browsers do not draw
    $("preview").src = shown;
    $("empty").hidden = true;
    $("waiting").hidden = false;
  }
}

export function endBusy() {
  clearInterval(clock);
  $("busy").hidden = true;
  $("stage").setAttribute("aria-busy", false);
  $("waiting").hidden = true;
  $("preview").hidden = true;
  if (shown) {
    $("preview").onload = null;
    URL.revokeObjectURL(shown);
  }
  shown = null;
  $("empty").hidden = !$("view").hidden;
}
