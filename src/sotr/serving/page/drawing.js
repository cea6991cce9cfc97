// Objects drawn over their picture, as `Instances.draw` does it.

const FILL = 0.35;
const RIM = "rgb(0 0 0 / 55%)";

// A class's colour: the palette's, and beyond that hues that stay apart from each other.
export function colourOf(label, palette) {
  if (label < palette.length) return palette[label];
  return `hsl(${((label - palette.length) * 137.5) % 360} 75% ${label % 2 ? 42 : 62}%)`;
}

// A colour per object: its class's where the model has several, else one that no near object has.
export function colourObjects(objects, classes, palette) {
  if (classes.length > 1) {
    for (const object of objects) object.colour = colourOf(object.label, palette);
    return;
  }
  objects.forEach((object, index) => {
    const nearest = new Map(palette.map((colour) => [colour, Infinity]));
    for (const other of objects.slice(0, index)) {
      const distance = (other.middle[0] - object.middle[0]) ** 2 + (other.middle[1] - object.middle[1]) ** 2;
      nearest.set(other.colour, Math.min(nearest.get(other.colour), distance));
    }
    object.colour = palette.reduce((best, colour) => (nearest.get(colour) > nearest.get(best) ? colour : best));
  });
}

// Paint the image with the objects on it: filled, their outlines alone, or none (`look`: fill, outline, original);
// `scale` is canvas pixels per pixel of the image, `pen` their line width, `texts` what is written on each, if anything.
export function paint(canvas, bitmap, objects, scale, pen, look = "fill", texts = [], size = 13) {
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  context.scale(scale, scale);
  if (look === "original") return;
  context.lineJoin = "round";
  // Large objects first: a small one on top of a large one stays visible.
  const ordered = [...objects].sort((one, other) => other.area - one.area);
  context.globalAlpha = FILL;
  for (const object of look === "fill" ? ordered : []) {
    context.fillStyle = object.colour;
    context.fill(object.path, "evenodd");
  }
  context.globalAlpha = 1;
  for (const object of ordered) stroke(context, object.path, object.colour, pen / scale);
  write(context, objects, texts, scale, size);
}

// A text in each object that has room for it; best objects first, and none on another.
function write(context, objects, texts, scale, size) {
  context.resetTransform();
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = size / 4;
  context.strokeStyle = "rgb(0 0 0 / 85%)";
  context.fillStyle = "#ffffff";
  const taken = [];
  texts.forEach((text, index) => {
    const { box, anchor } = objects[index];
    const [x, y] = [anchor[0] * scale, anchor[1] * scale];
    const [w, h] = [context.measureText(text).width / 2, size / 2];
    if (2 * w > (box[2] - box[0]) * scale || 2 * h > (box[3] - box[1]) * scale) return;
    if (taken.some(([tx, ty, tw]) => Math.abs(tx - x) < tw + w && Math.abs(ty - y) < size)) return;
    taken.push([x, y, w]);
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  });
}

// Mark one object on an otherwise clear canvas of the same size.
export function mark(canvas, size, object, scale, pen) {
  [canvas.width, canvas.height] = size;
  if (!object) return;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.lineJoin = "round";
  context.fillStyle = "rgb(255 255 255 / 28%)";
  context.fill(object.path, "evenodd");
  stroke(context, object.path, "#ffffff", (2 * pen) / scale);
}

function stroke(context, path, colour, width) {
  context.strokeStyle = RIM;
  context.lineWidth = width * 2.2;
  context.stroke(path);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke(path);
}
