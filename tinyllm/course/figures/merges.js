// What each way of merging holds for a weight; all values are the engine's.
const way = choice("Merged into", data.ways.map((w) => w.name));
const which = slider("Weight", data.base.length - 1, 3);
const text = element("pre");
place.drawing.after(text);
way.control.value = data.ways.length - 1;

function update() {
  const i = which(), row = data.ways[way()], trained = data.ways[0];
  const base = data.base[i], exact = data.exact[i], held = row.weights[i];
  const back = held === base ? " That is the base's own value: of the update nothing is left." : "";
  say(`Weight ${i} of ${data.layer} was ${short(base)} in the four-bit base; with the update it is ${short(exact)}. `
    + `${row.name} (${row.words}): ${short(held)}, off by ${short(Math.abs(held - exact), 2)}.${back}`
    + (row.loss === null ? "" : ` The loss is ${short(row.loss)}, as trained ${short(trained.loss)}.`)
    + (row.text === null || row === trained ? "" : row.text === trained.text ? " It writes the same text." : " It writes another text."));
  text.textContent = row.text === null ? "" : row.text;
  picture(row, base, exact, held);
  table(["way", `weight ${i}`, "mean distance", "bytes", "loss"], data.ways.map((w) => [w.name, short(w.weights[i]),
    short(w.away, 3), w.bytes === null ? "" : bytes(w.bytes), w.loss === null ? "" : short(w.loss)]), way());
}

function picture(row, base, exact, held) {
  const lines = [["four-bit base", base, "var(--line)"], ["with the update, as trained", exact, "var(--blue)"],
    [row.name, held, "var(--orange)"]];
  const values = [base, exact, ...data.ways.map((w) => w.weights[which()])];
  const low = Math.min(...values), wide = Math.max(...values) - low || 1, x = (v) => 16 + (room() - 32) * (v - low) / wide;
  const shapes = [["line", { x1: x(exact), x2: x(exact), y1: 16, y2: 118, stroke: "var(--blue)", "stroke-dasharray": "3 4" }]];
  lines.forEach(([name, value, color], k) => {
    const y = 28 + 38 * k, right = x(value) > room() / 2;
    shapes.push(["line", { x1: 8, x2: room() - 8, y1: y, y2: y, stroke: "var(--faint)" }]);
    shapes.push(["circle", { cx: x(value), cy: y, r: 6, fill: color }]);
    shapes.push(["text", { x: right ? x(value) - 12 : x(value) + 12, y: y - 6, "text-anchor": right ? "end" : "start" },
      `${name}: ${short(value)}`]);
  });
  draw(124, `On a line: four-bit base ${short(base)}, with the update ${short(exact)}, ${row.name} ${short(held)}.`, shapes);
}

update();
