// The steps of the engine's own walk: JavaScript goes through them and draws.
const turn = Object.fromEntries(data.steps.map((step, i) => [step.node, i]));  // of each operation
const at = slider("Step", data.steps.length - 1, 0, (i) => `${i + 1} of ${data.steps.length}`);
const go = (by) => () => { at.control.value = (at() + by + data.steps.length) % data.steps.length; at.told(); };
button("Back", go(-1));
button("Next", go(1));

const shaped = (shape) => (shape.length ? `of shape (${shape.join(", ")}${shape.length === 1 ? "," : ""})` : "one number");
const valued = ({ shape, numbers: n, norm }) => shaped(shape)
  + (n ? `: ${n.map((x) => short(x)).join(", ")}` : `, with the norm ${short(norm)}`);
const called = (node) => (node in turn ? `${data.labels[node]} (step ${turn[node] + 1})` : data.labels[node]);

function update() {
  const i = at(), step = data.steps[i];
  const gives = step.adds.map((a) => `to ${called(a.node)} ${valued(a)}${a.summed ? `, summed up from ${shaped(a.summed).replace("of ", "")}` : ""}`
    + (a.nth > 1 ? `, added to what ${a.nth - 1 === 1 ? "another has" : `${a.nth - 1} others have`} brought` : ""));
  say(`Step ${i + 1} of ${data.steps.length}: ${data.labels[step.node]} has its whole gradient, ${valued(step.gradient)}. `
    + (gives.length ? `It gives ${gives.join("; ")}.` : "It gives nothing on."));
  picture(i, step);
  const rows = data.steps.flatMap((s, k) => s.adds.map((a) => [k + 1, data.labels[s.node], called(a.node),
    a.nth === 1 ? "first" : `added, ${a.nth}.`, `(${a.shape.join(", ")})`, a.numbers ? a.numbers.map((x) => short(x)).join(", ") : `norm ${short(a.norm)}`]));
  table(["step", "operation", "gives to", "as", "shape", "numbers"], rows, rows.findIndex((r) => r[0] === i + 1));
}

function picture(i, step) {
  const [width, height] = data.size, scale = Math.min(1, room() / width), shapes = [];
  const given = new Set(step.adds.map((a) => a.node));
  for (const [source, user, d] of data.edges) {
    const now = user === step.node && given.has(source), done = user in turn && turn[user] < i;
    shapes.push(["path", { d, fill: "none", stroke: now ? "var(--orange)" : done ? "var(--blue)" : "var(--line)",
      "stroke-width": now ? 4 : done ? 2 : 1, "stroke-dasharray": now || done ? "none" : "3 3" }]);
  }
  data.boxes.forEach(([x, y, w], node) => {
    const now = node === step.node, done = node in turn && turn[node] < i;
    shapes.push(["rect", { x: x - w / 2, y: y - data.box / 2, width: w, height: data.box, rx: data.leaves[node] ? 11 : 3,
      fill: now ? "var(--orange)" : "var(--paper)", stroke: now || given.has(node) ? "var(--orange)" : done ? "var(--blue)" : "var(--line)",
      "stroke-width": now || given.has(node) ? 3 : done ? 2 : 1 }]);
    shapes.push(["text", { x, y: y + 4, "text-anchor": "middle", style: `font-family: ui-monospace, monospace; font-size: 11px;`
      + (now ? "fill: var(--paper); stroke: none; font-weight: 700" : "stroke: none") }, data.labels[node]]);
  });
  const left = Math.max(0, (room() - width * scale) / 2);
  draw(height * scale, `The graph, the result below. ${called(step.node)} has its turn and gives to `
    + `${[...given].map(called).join(", ") || "nobody"}.`, [["g", { transform: `translate(${left} 0) scale(${scale})` }, ...shapes]]);
}

update();
