"use strict";
// What the figures share: elements, native controls, one sentence that is read aloud, one table with the numbers.

const data = JSON.parse(document.getElementById("data").textContent);
const place = Object.fromEntries(["controls", "drawing", "said", "numbers"].map((id) => [id, document.getElementById(id)]));

function element(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

// Shapes are lists: ["rect", {x: 1, ...}] or ["text", {...}, "words"]. The words of the whole drawing are `alt`. It is
// as wide as the page leaves room for (`room()`), in pixels, so that its letters stay legible on a phone.
const room = () => place.drawing.clientWidth || 720;

function draw(height, alt, shapes) {
  const made = (tag, attributes, ...children) => {
    const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    found.append(...children.map((c) => (Array.isArray(c) ? made(...c) : String(c))));
    return found;
  };
  const size = { width: room(), height, viewBox: `0 0 ${room()} ${height}` };
  place.drawing.replaceChildren(made("svg", { ...size, role: "img", "aria-label": alt }, ...shapes));
}

// Controls return a function that gives the value; each change draws everything again.
function added(label, control, read, words = () => "") {
  const output = element("span");
  place.controls.append(element("label", {}, `${label} `, output, control));
  const told = () => { output.textContent = words(read()); };
  control.addEventListener("input", () => { told(); update(); });
  queueMicrotask(told);
  return Object.assign(read, { control, told });
}

function slider(label, most, value = 0, words = String, least = 0) {
  const control = element("input", { type: "range", min: least, max: most, step: 1, value });
  return added(label, control, () => Number(control.value), words);
}

function choice(label, names) {
  const control = element("select", {}, ...names.map((name, i) => element("option", { value: i }, name)));
  return added(label, control, () => Number(control.value));
}

function boxes(legend, names, checked = () => true) {
  const inputs = names.map((_, i) => element("input", { type: "checkbox", ...(checked(i) ? { checked: "" } : {}) }));
  const labels = names.map((name, i) => element("label", {}, inputs[i], ` ${name}`));
  place.controls.append(element("fieldset", {}, element("legend", {}, legend), ...labels));
  for (const input of inputs) input.addEventListener("input", () => update());
  return () => inputs.map((input) => input.checked);
}

function button(label, act) {
  const control = element("button", { type: "button" }, label);
  control.addEventListener("click", () => { act(); update(); });
  place.controls.append(control);
}

function say(sentence) { place.said.textContent = sentence; }

function table(head, rows, picked = -1) {
  const line = (tag, cells) => cells.map((cell) => element(tag, tag === "th" ? { scope: "col" } : {}, String(cell)));
  const body = rows.map((cells, i) => element("tr", i === picked ? { class: "picked" } : {}, ...line("td", cells)));
  place.numbers.replaceChildren(element("table", {}, element("tr", {}, ...line("th", head)), ...body));
}

// Numbers as people read them: four digits, and thousands apart.
function short(x, digits = 4) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e-4 && size < 1e6 ? String(Number(x.toPrecision(digits))) : x.toExponential(digits - 1);
}
function bytes(n) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (n >= size) return `${short(n / size, 3)} ${unit}`;
  return `${n} bytes`;
}

let wide = 0;
new ResizeObserver(() => { if (wide !== room()) { wide = room(); update(); } }).observe(place.drawing);
place.controls.addEventListener("submit", (event) => event.preventDefault());

// In a page that has a theme of its own the figure follows it, and is as high as what it shows.
try {
  if (frameElement) {
    const root = document.documentElement, outside = parent.document.documentElement;
    const follow = () => { if (outside.dataset.theme) root.dataset.theme = outside.dataset.theme; };
    new MutationObserver(follow).observe(outside, { attributeFilter: ["data-theme"] });
    new ResizeObserver(() => { frameElement.style.height = `${root.offsetHeight + 8}px`; }).observe(document.body);
    follow();
  }
} catch { /* somebody else's page: it keeps the height that it was given */ }
