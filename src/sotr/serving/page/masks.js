// Masks in the browser: COCO run lengths to pixels, pixels to outlines.

// The run lengths of COCO's compressed form: background first, down the columns.
function runLengths(text) {
  const runs = [];
  for (let at = 0; at < text.length; ) {
    let value = 0;
    let shift = 0;
    let digit;
    do {
      digit = text.charCodeAt(at++) - 48;
      value += (digit & 31) * 2 ** shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16) value -= 2 ** shift;
    // From the fourth on, lengths are differences to the one two before.
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

// The part of a mask inside its box [left, top, right, bottom]: one byte per pixel, row by row.
export function maskInBox(rle, box) {
  const [x, y, right, bottom] = box;
  const [width, height] = [right - x, bottom - y];
  const rows = rle.size[0];
  const data = new Uint8Array(width * height);
  let pixel = 0;
  runLengths(rle.counts).forEach((length, index) => {
    if (index % 2) {
      for (let p = pixel; p < pixel + length; p++) data[((p % rows) - y) * width + Math.floor(p / rows) - x] = 1;
    }
    pixel += length;
  });
  return { x, y, width, height, data };
}

// Centre of mass in pixels of the image; the middle of its first pixel lies at 0.5.
export function centreOf({ x, y, width, data }) {
  let [count, sumX, sumY] = [0, 0, 0];
  data.forEach((inside, index) => {
    if (!inside) return;
    count += 1;
    sumX += index % width;
    sumY += Math.floor(index / width);
  });
  return [x + 0.5 + sumX / count, y + 0.5 + sumY / count];
}

// Where a text belongs: the middle of the mask's longest row; where many are as long, of the one in the middle.
export function anchorOf({ x, y, width, height, data }) {
  let [best, anchor] = [-Infinity, [x + width / 2, y + height / 2]];
  for (let row = 0; row < height; row++) {
    for (let start = 0; start < width; start++) {
      if (!data[row * width + start]) continue;
      let end = start;
      while (end < width && data[row * width + end]) end++;
      const worth = end - start - Math.abs(row + 0.5 - height / 2) / height;
      if (worth > best) [best, anchor] = [worth, [x + (start + end) / 2, y + row + 0.5]];
      start = end;
    }
  }
  return anchor;
}

const STEP_X = [1, 0, -1, 0];
const STEP_Y = [0, 1, 0, -1];

// The mask's borders, holes included, as a path in pixels of the image. It follows the edges of the pixels, and a
// corner is a curve from the middle of one edge to the middle of the next: steps become slopes at any enlargement.
export function outlineOf({ x, y, width, height, data }) {
  const inside = (column, row) => column >= 0 && row >= 0 && column < width && row < height && data[row * width + column];
  const across = width + 1;
  // Bit d of a grid point: a border leaves it in direction d (right, down, left, up), with the mask on its right.
  const exits = new Uint8Array(across * (height + 1));
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (!data[row * width + column]) continue;
      const point = row * across + column;
      if (!inside(column, row - 1)) exits[point] |= 1;
      if (!inside(column + 1, row)) exits[point + 1] |= 2;
      if (!inside(column, row + 1)) exits[point + across + 1] |= 4;
      if (!inside(column - 1, row)) exits[point + across] |= 8;
    }
  }
  const path = new Path2D();
  for (let start = 0; start < exits.length; start++) {
    while (exits[start]) follow(exits, across, start, path, x, y);
  }
  return path;
}

function follow(exits, across, start, path, x, y) {
  const first = Math.log2(exits[start] & -exits[start]);
  let [point, direction, begun] = [start, first, false];
  do {
    point += STEP_X[direction] + STEP_Y[direction] * across;
    // Where two pixels touch at a corner, turning right keeps to the same pixel.
    const next = [1, 0, 3].map((turn) => (direction + turn) % 4).find((candidate) => exits[point] & (1 << candidate));
    if (next !== direction) {
      const [cornerX, cornerY] = [x + (point % across), y + Math.floor(point / across)];
      const [fromX, fromY] = [cornerX - STEP_X[direction] / 2, cornerY - STEP_Y[direction] / 2];
      if (begun) path.lineTo(fromX, fromY);
      else path.moveTo(fromX, fromY);
      path.quadraticCurveTo(cornerX, cornerY, cornerX + STEP_X[next] / 2, cornerY + STEP_Y[next] / 2);
      begun = true;
    }
    if (point !== start || next !== first) exits[point] &= ~(1 << next);
    direction = next;
  } while (point !== start || direction !== first);
  exits[start] &= ~(1 << first);
  path.closePath();
}
