const LEAST = 9 / 12, MOST = 1.25;  // letters have at least 9 pixels; what has no room then is outside of the window
const HIGH = 440, LEGEND = 24, LEFT = [4, 74, 144, 254];  // of the window, of the legend under it and its parts
const steps = data.steps;

const value = (x) => (typeof x === "string" ? x : short(x));
const shape = (g) => (g.shape === "()" ? "one number" : g.shape);
const amount = (g) => (g.shape === "()" ? value(g.numbers[0]) : g.shape);
const all = (g) => (g.numbers ? g.numbers.map(value).join(", ") : `norm ${value(g.norm)}`);
const over = (part) => (part.over ? `, summed over ${part.over}` : "");

const step = slider("Step", steps.length, 1, (k) => `${k} of ${steps.length}`, 1);
function move(by) {
  step.control.value = (step() - 1 + by + steps.length) % steps.length + 1;  // from an end to the other
  step.told();
}
button("back", () => move(-1));
button("next", () => move(1));

function sentence(i) {
  const { own, leaf, parts, gradient } = steps[i];
  const what = gradient.shape === "()" ? `the gradient ${amount(gradient)}` : `a gradient of shape ${gradient.shape}`;
  const start = `Step ${i + 1} of ${steps.length}: ${own}${i ? " has received" : ", the loss, starts with"} ${what}.`;
  if (leaf) return `${start} It was not computed from anything, so this is what backward() adds to its .grad.`;
  const each = parts.map((p) => `${amount(p)} to ${steps[p.to].name}${over(p)}, `
    + (p.first ? "the first to do so" : "on top of what is there"));
  return `${start} It adds ${each.map((words, k) => (k && k === each.length - 1 ? "and " : "") + words).join("; ")}.`;
}

function update() {
  const i = step() - 1, rows = [];
  say(sentence(i));
  picture(i);
  steps.slice(0, i + 1).forEach((s, k) => {
    rows.push([k + 1, `${s.own} ${k ? "has received" : "starts with"}`, shape(s.gradient), "", all(s.gradient)]);
    for (const p of s.parts) {
      rows.push([k + 1, `adds to ${steps[p.to].name}`, shape(p), `${p.first ? "first" : "on top"}${over(p)}`, all(p)]);
    }
  });
  table(["step", "what", "shape", "how", "numbers"], rows, rows.findIndex((row) => row[0] === i + 1));
}

// How boxes look by what has happened to them; by their lines as well, not by colour alone.
const LOOKS = {
  now: { fill: "var(--paper)", stroke: "var(--orange)", "stroke-width": 3 },
  done: { fill: "var(--faint)", stroke: "var(--line)" },
  "has received": { fill: "var(--paper)", stroke: "var(--blue)", "stroke-width": 2 },
  "nothing yet": { fill: "var(--paper)", stroke: "var(--line)", "stroke-dasharray": "3 3" },
};

function look(k, i) {
  if (k <= i) return k === i ? "now" : "done";
  return steps.slice(0, i + 1).some((s) => s.parts.some((p) => p.to === k)) ? "has received" : "nothing yet";
}

function box(x, y, width, height, kind) {
  return ["rect", { x: x - width / 2, y: y - height / 2, width, height, rx: 4, ...LOOKS[kind] }];
}

// Where a window starts that has `at` in its middle, if it is smaller than the whole.
function scrolled(at, size, whole) {
  return whole < size ? (whole - size) / 2 : Math.min(Math.max(at - size / 2, 0), whole - size);
}

function picture(i) {
  const scale = Math.max(LEAST, Math.min(MOST, room() / data.width)), [x, y] = steps[i].place;
  const high = Math.min(HIGH, data.height * scale);
  const left = scrolled(x * scale, room(), data.width * scale);
  const top = scrolled(y * scale, high, data.height * scale);
  const looks = steps.map((_, k) => look(k, i)), shapes = [];
  steps.forEach((s, k) => s.parts.forEach((p) => {
    const now = { stroke: "var(--blue)", "stroke-width": 3 }, later = { "stroke-dasharray": "2 4" };
    shapes.push(["path", { d: p.line, fill: "none", stroke: "var(--line)", ...(k === i ? now : k > i ? later : {}) }]);
  }));
  steps.forEach((s, k) => {
    const [at, down, width] = s.place, plain = { "text-anchor": "middle", style: "stroke: none" };
    shapes.push(box(at, down, width, data.box, looks[k]), ["text", { x: at, y: down + 4, ...plain }, s.box]);
  });
  const shares = new Map();  // where one input gets several, they are written side by side
  for (const p of steps[i].parts) shares.set(p.to, [...(shares.get(p.to) ?? []), p]);
  for (const parts of shares.values()) {
    const [ax, ay, bx] = parts[0].start, tip = ay + data.box / 2;
    shapes.push(["path", { d: `M${ax} ${tip} l-6 9 h12 z`, fill: "var(--blue)" }]);
    const words = parts.map((p) => (p.first ? "" : "+ ") + amount(p)).join(" ");
    const middle = 0.7 * ax + 0.3 * bx, wide = 6.6 * words.length;
    shapes.push(["rect", { x: middle - wide / 2, y: tip + 13, width: wide, height: 15, fill: "var(--paper)" }],
      ["text", { x: middle, y: tip + 25, "text-anchor": "middle" }, words]);
  }
  const group = ["g", { transform: `translate(${-left} ${-top}) scale(${scale})` }, ...shapes];
  const cover = ["rect", { x: 0, y: high, width: room(), height: LEGEND, fill: "var(--paper)" }], legend = [];
  Object.keys(LOOKS).forEach((kind, k) => legend.push(box(LEFT[k] + 8, high + 13, 16, 12, kind),
    ["text", { x: LEFT[k] + 21, y: high + 17 }, kind]));
  const count = (kind) => looks.filter((l) => l === kind).length;
  const alt = `A graph of ${steps.length} boxes, the loss below. Step ${steps[i].box} has its turn; `
    + `${count("done")} are done, ${count("has received")} have received something and wait, `
    + `${count("nothing yet")} have nothing yet.`;
  draw(high + LEGEND, alt, [group, cover, ...legend]);
}

update();
