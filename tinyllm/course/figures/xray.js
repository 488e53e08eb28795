// The singular values of one matrix's change, the r largest of them kept; and the loss by the rank of all changes.
const most = Math.max(...data.matrices.map((m) => m.values.length));
const which = choice("Matrix", data.matrices.map((m) => m.name));
const rank = slider("Directions kept", most, Math.min(8, most));

// Losses were measured for some ranks: the largest that is not above r.
const measured = (r) => data.losses.filter(([at]) => at <= r).at(-1);

function update() {
  const { name, shape: [rows, columns], values, share } = data.matrices[which()];
  const all = Math.min(rows, columns), r = Math.min(rank(), values.length), held = r ? share[r - 1] : 0;
  const thin = r * (rows + columns), whole = rows * columns, at = measured(rank());
  say(`${name} (${rows} x ${columns}) changed in ${all} directions. The ${r} largest hold ${short(100 * held, 3)} % of the `
    + `change's square, in ${thin.toLocaleString("en")} numbers instead of ${whole.toLocaleString("en")}.`
    + (r < rank() ? " It has no more." : "")
    + (at ? ` With ${at[0]} directions of every matrix the loss is ${short(at[1])}.` : ""));
  const shapes = [["text", { x: 4, y: 14 }, "Singular values of the change, kept ones filled"]];
  const wide = (room() - 8) / values.length;
  values.forEach((v, i) => {
    const high = Math.max(1, 110 * v / values[0]), kept = i < r;
    shapes.push(["rect", { x: 4.5 + i * wide, y: 134 - high, width: Math.max(1, wide - 2), height: high,
      fill: kept ? "var(--blue)" : "none", stroke: kept ? "var(--blue)" : "var(--line)" }]);
  });
  if (data.losses.length) lossCurve(shapes, at);
  draw(data.losses.length ? 290 : 150, `Singular values of the change of ${name}, falling from ${short(values[0])}; `
    + `${r} of them kept, ${short(100 * held, 3)} % of the square.`, shapes);
  table(["direction", "singular value", "share up to here"], values.map((v, i) => [i + 1, short(v),
    `${short(100 * share[i], 3)} %`]), r - 1);
}

function lossCurve(shapes, at) {
  const losses = data.losses.map(([, loss]) => loss), low = Math.min(...losses), high = Math.max(...losses);
  const x = (i) => 26 + (room() - 52) * i / Math.max(1, losses.length - 1);
  const y = (loss) => 250 - 64 * (loss - low) / (high - low || 1);
  shapes.push(["text", { x: 4, y: 164 }, "Loss, with so many directions of every matrix"]);
  shapes.push(["polyline", { points: losses.map((loss, i) => `${x(i)},${y(loss)}`).join(" "), fill: "none",
    stroke: "var(--orange)", "stroke-width": 2 }]);
  data.losses.forEach(([r, loss], i) => {
    const now = at && at[0] === r;
    shapes.push(["circle", { cx: x(i), cy: y(loss), r: now ? 7 : 4, fill: now ? "var(--orange)" : "var(--paper)",
      stroke: "var(--orange)", "stroke-width": 2 }]);
    shapes.push(["text", { x: x(i), y: 280, "text-anchor": "middle" }, r]);
    if (now) shapes.push(["text", { x: Math.min(x(i), room() - 44), y: y(loss) - 12, "text-anchor": "middle" }, short(loss)]);
  });
}

update();
