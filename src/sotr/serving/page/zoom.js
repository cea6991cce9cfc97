// Enlarging and moving the image inside its frame.

const MOST = 16;
const STEP = 1.5;
const $ = (id) => document.getElementById(id);

let zoom = 1;

export function zoomed() {
  return zoom;
}

export function resetZoom() {
  zoom = 1;
}

// `redraw` draws the image at the new size.
export function listenToZoom(redraw) {
  const view = $("view");

  // The place (x, y) of the frame keeps showing the same part of the image.
  function change(factor, x = view.clientWidth / 2, y = view.clientHeight / 2) {
    const next = factor === 0 ? 1 : Math.min(MOST, Math.max(1, zoom * factor));
    if (next === zoom) return;
    const [left, top] = [(view.scrollLeft + x) * (next / zoom) - x, (view.scrollTop + y) * (next / zoom) - y];
    zoom = next;
    redraw();
    view.scrollTo(left, top);
  }

  $("zoom-in").addEventListener("click", () => change(STEP));
  $("zoom-out").addEventListener("click", () => change(1 / STEP));
  $("zoom-fit").addEventListener("click", () => change(0));
  view.addEventListener("keydown", (event) => {
    const factor = { "+": STEP, "=": STEP, "-": 1 / STEP, 0: 0 }[event.key];
    if (factor === undefined || event.ctrlKey || event.metaKey) return;
    change(factor);
    event.preventDefault();
  });
  view.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return; // also what two fingers on a touchpad send
      event.preventDefault();
      const frame = view.getBoundingClientRect();
      change(Math.exp(-event.deltaY / 200), event.clientX - frame.left, event.clientY - frame.top);
    },
    { passive: false },
  );

  let from = null;
  let moved = false;
  view.addEventListener("pointerdown", (event) => {
    moved = false;
    from = event.button === 0 && event.pointerType === "mouse" ? [event.clientX, event.clientY] : null;
  });
  window.addEventListener("pointermove", (event) => {
    if (!from || zoom === 1) return;
    const [x, y] = [event.clientX - from[0], event.clientY - from[1]];
    if (!moved && Math.hypot(x, y) < 4) return;
    moved = true;
    view.scrollBy(-x, -y);
    from = [event.clientX, event.clientY];
  });
  window.addEventListener("pointerup", () => (from = null));
  // What ends a move is no click on an object.
  view.addEventListener("click", (event) => moved && event.stopPropagation(), { capture: true });
}
