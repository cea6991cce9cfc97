// Results as files, alike those of `sotr predict`.
import { paint } from "./drawing.js";

const SMALL_PICTURE = 600;
const MAX_SCALE = 6;
const LONGEST_CANVAS = 60000; // browsers' limits lie a little above

export async function saveOverlay(name, bitmap, objects, texts) {
  const shortest = Math.min(bitmap.width, bitmap.height);
  const fitting = LONGEST_CANVAS / Math.max(bitmap.width, bitmap.height);
  const scale = Math.min(MAX_SCALE, Math.ceil(SMALL_PICTURE / shortest), fitting);
  const canvas = document.createElement("canvas");
  const pen = Math.max(1.5, (shortest * scale) / 500);
  paint(canvas, bitmap, objects, scale, pen, "fill", texts, Math.max(12, 8 * pen));
  const file = await new Promise((done) => canvas.toBlob(done, "image/png"));
  if (!file) throw new Error("the canvas is too large");
  save(file, `${stem(name)}.overlay.png`);
}

export function saveCoco(name, answer, objects, score) {
  const annotations = objects.map((object, index) => ({
    id: index + 1,
    image_id: 1,
    category_id: object.category_id,
    bbox: [object.box[0], object.box[1], object.box[2] - object.box[0], object.box[3] - object.box[1]],
    segmentation: object.segmentation,
    score: object.score,
    area: object.area,
    iscrowd: 0,
  }));
  const content = {
    info: { description: "objects found by SOTR", model: answer.model, score },
    categories: answer.classes,
    images: [{ id: 1, file_name: name, width: answer.width, height: answer.height }],
    annotations,
  };
  save(new Blob([JSON.stringify(content)], { type: "application/json" }), `${stem(name)}.json`);
}

export function saveCsv(name, objects) {
  const head = "picture,object,class,category_id,score,area,x_min,y_min,x_max,y_max,x_center,y_center";
  const rows = objects.map((object, index) =>
    [
      name, index, object.class_name, object.category_id, object.score, object.area, ...object.box,
      ...object.centre.map((value) => value.toFixed(2)),
    ].map(cell).join(","),
  );
  save(new Blob([[head, ...rows, ""].join("\n")], { type: "text/csv" }), `${stem(name)}.csv`);
}

function cell(value) {
  const text = String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "") || "picture";
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
