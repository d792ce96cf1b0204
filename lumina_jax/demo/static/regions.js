"use strict";
// Regions of a picture as rectangles with captions, drawn by mouse, touch or keyboard on a canvas of its size.
//
// In: `props.value`, regions in the form of `--region`, one a line; `props.width` and `props.height`, pixels of the
// picture. Out: `props.value` as a person changes it; lines that are no boxes stay in it as they are. Gradio runs this
// as a function with `element`, which holds regions.html, and tells by `watch` when the server has set a property.

const BOX = /^\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*:\s*(.*?)\s*$/;
const COLORS = ["#d81b60", "#1e88e5", "#ffc107", "#004d40", "#8e24aa", "#5d4037"];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SVG = "http://www.w3.org/2000/svg";
let regions = []; // {box: [left, top, right, bottom], caption}, or {line} where a line is no box
let chosen = -1; // an index of `regions`
let drag = null; // {pointer, boxAt: from a point to the box, region: null before there is one, pressed: index of a region}

const find = (selector) => element.querySelector(selector);
const [canvas, captions, text, note] = ["svg", ".captions", "textarea", "details .hint"].map(find);
const clamp = (value, least, most) => Math.min(Math.max(value, least), most);
const color = (index) => COLORS[index % COLORS.length];
const lineOf = (region) => region.line ?? `${region.box.join(",")}: ${region.caption}`;
const nameOf = (index) => `region ${index + 1} (${regions[index].box.join(", ")})`;
const size = () => [props.width, props.height].map((pixels) => Math.max(1, Math.round(Number(pixels))) || 1);

function regionOf(line) {
  const found = BOX.exec(line);
  return found ? { box: found.slice(1, 5).map(Number), caption: found[5] } : { line };
}

/** Take over what the text says. */
function read() {
  if (text.value !== props.value) text.value = props.value;
  regions = text.value.split("\n").filter((line) => line.trim()).map(regionOf);
  chosen = -1;
  show();
}

/** Say in the text what the regions are. */
function store() {
  text.value = props.value = regions.map(lineOf).join("\n");
}

function changed(selector) {
  store();
  show();
  find(selector)?.focus({ preventScroll: true });
}

function choose(index) {
  chosen = index;
  for (const row of captions.children) row.classList.toggle("chosen", Number(row.dataset.index) === index);
  showCanvas();
}

// What is seen.

function show() {
  const wrong = regions.flatMap((region) => region.line ?? []);
  note.textContent = wrong.length ? `no region, such as 0,0,16,32: red heart, is this: ${wrong.join("; ")}` : "";
  captions.replaceChildren(...regions.flatMap((region, index) => (region.box ? row(region, index) : [])));
  choose(chosen);
}

function showCanvas() {
  const [width, height] = size();
  const unit = Math.max(width, height) / 30;
  const shapes = regions.flatMap((region, index) => (region.box ? rectangle(region, index, unit) : []));
  canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
  canvas.replaceChildren(...shapes, ...(regions[chosen]?.box ? corners(regions[chosen].box, unit) : []));
}

function shape(tag, attributes, words = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = words;
  return made;
}

/** A rectangle, and its caption within it. */
function rectangle({ box: [left, top, right, bottom], caption }, index, unit) {
  const place = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
  const look = { fill: color(index), class: index === chosen ? "chosen" : "", "data-index": index };
  const role = { tabindex: 0, role: "img", "aria-label": `${nameOf(index)}: ${caption}` };
  const label = shape("svg", place);
  label.append(shape("text", { x: unit / 2, y: unit * 2, "font-size": unit * 1.6 }, caption));
  return [shape("rect", { ...place, ...look, ...role }), label];
}

/** Handles at the corners of a box; each knows the corner that stays when it is dragged. */
function corners([left, top, right, bottom], unit) {
  const ends = [[left, top, right, bottom], [right, top, left, bottom], [left, bottom, right, top], [right, bottom, left, top]];
  return ends.map(([cx, cy, ...stays]) => shape("circle", { cx, cy, r: 0.8 * unit, "data-stays": stays.join(",") }));
}

function row(region, index) {
  const caption = Object.assign(document.createElement("input"), {
    type: "text",
    value: region.caption,
    placeholder: "what it shows",
    ariaLabel: `caption of ${nameOf(index)}`,
    oninput: () => { region.caption = caption.value; store(); showCanvas(); },
    onfocus: () => choose(index),
    onkeydown: (event) => { if (event.key === "Enter" && !event.isComposing) trigger("submit"); },
  });
  const made = document.createElement("li");
  made.dataset.index = index;
  made.style.setProperty("--color", color(index));
  made.append(
    caption,
    button("up", "↑", `draw ${nameOf(index)} before the one above`, index > 0, () => swap(index, index - 1)),
    button("down", "↓", `draw ${nameOf(index)} after the one below`, index < regions.length - 1, () => swap(index, index + 1)),
    button("delete", "✕", `delete ${nameOf(index)}`, true, () => remove(index)),
  );
  return made;
}

function button(className, textContent, ariaLabel, isUsable, onclick) {
  const made = document.createElement("button");
  return Object.assign(made, { type: "button", className, textContent, ariaLabel, title: ariaLabel, disabled: !isUsable, onclick });
}

// What is done.

function add(box) {
  chosen = regions.push({ box, caption: "" }) - 1;
  return regions[chosen];
}

function swap(index, other) {
  [regions[index], regions[other]] = [regions[other], regions[index]];
  chosen = other;
  changed(`li[data-index="${other}"] ${other < index ? ".up" : ".down"}:enabled`);
}

function remove(index) {
  regions.splice(index, 1);
  chosen = -1;
  changed(`li[data-index="${Math.min(index, regions.length - 1)}"] .delete, .add`);
}

const between = ([a, b], [c, d]) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];

/** The box moved, but not beyond the picture. */
function moved([left, top, right, bottom], across, down) {
  const [width, height] = size();
  const x = clamp(across, Math.min(0, -left), Math.max(0, width - right));
  const y = clamp(down, Math.min(0, -top), Math.max(0, height - bottom));
  return [left + x, top + y, right + x, bottom + y];
}

function grown([left, top, right, bottom], across, down) {
  const [width, height] = size();
  return [left, top, clamp(right + across, left + 1, width), clamp(bottom + down, top + 1, height)];
}

/** Where between pixels a pointer is. */
function pointAt(event) {
  const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(canvas.getScreenCTM().inverse());
  const [width, height] = size();
  return [clamp(Math.round(x), 0, width), clamp(Math.round(y), 0, height)];
}

canvas.onpointerdown = (event) => {
  if (event.button || drag) return;
  const pointer = event.pointerId;
  event.preventDefault();
  canvas.setPointerCapture(pointer);
  const { index, stays } = event.target.dataset;
  const [pressed, from] = [index === undefined ? -1 : Number(index), pointAt(event)];
  if (stays !== undefined) {
    const corner = stays.split(",").map(Number);
    drag = { pointer, region: regions[chosen], boxAt: (to) => between(corner, to) };
  } else if (pressed >= 0 && pressed === chosen) {
    const { box } = regions[chosen];
    drag = { pointer, region: regions[chosen], boxAt: (to) => moved(box, to[0] - from[0], to[1] - from[1]) };
  } else {
    drag = { pointer, region: null, pressed, boxAt: (to) => between(from, to) };
  }
};

canvas.onpointermove = (event) => {
  if (drag?.pointer !== event.pointerId) return;
  const box = drag.boxAt(pointAt(event));
  if (box[0] === box[2] || box[1] === box[3]) return;
  drag.region ??= add(box);
  drag.region.box = box;
  showCanvas();
};

canvas.onpointerup = (event) => {
  if (drag?.pointer !== event.pointerId) return;
  const { region, pressed } = drag;
  drag = null;
  if (region) {
    changed(`li[data-index="${chosen}"] input`);
  } else {
    choose(pressed);
    find(`rect[data-index="${pressed}"]`)?.focus({ preventScroll: true });
  }
};

canvas.onpointercancel = () => {
  drag = null;
  read();
};

canvas.onkeydown = (event) => {
  const [index, by] = [Number(event.target.dataset.index), ARROWS[event.key]];
  if (!by && event.key !== "Delete" && event.key !== "Backspace") return;
  event.preventDefault();
  if (!by) return remove(index);
  chosen = index;
  regions[index].box = (event.shiftKey ? grown : moved)(regions[index].box, ...by);
  changed(`rect[data-index="${index}"]`);
};

find(".add").onclick = () => {
  const [width, height] = size();
  add([Math.floor(width / 4), Math.floor(height / 4), Math.ceil((width * 3) / 4), Math.ceil((height * 3) / 4)]);
  changed(`li[data-index="${chosen}"] input`);
};
text.oninput = () => {
  props.value = text.value;
  read();
};
watch("value", read);
watch(["width", "height"], showCanvas);
read();
