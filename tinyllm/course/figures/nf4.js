// NF4 as the engine has it, in float32: each step is rounded by Math.fround, so that the bytes are the same bits.
const round = Math.fround, TINY = round(1e-38);
const weights = data.weights.map(round);

// What a block makes of its weights. A full one multiplies by the reciprocal, a last partial one divides.
function quantised(block, size, { levels, midpoints }) {
  const whole = block.length === size;
  const absmax = block.reduce((most, w) => Math.max(most, Math.abs(w)), 0);
  const scale = whole ? absmax : Math.max(absmax, TINY);
  const reciprocal = round(1 / Math.max(absmax, TINY));
  return block.map((w) => {
    const scaled = whole ? round(w * reciprocal) : round(w / scale);
    const code = midpoints.reduce((n, m) => n + (scaled > round(m)), 0);
    return { w, scaled, code, scale, back: round(round(levels[code]) * scale) };
  });
}

function all(size, set) {
  const found = [];
  for (let at = 0; at < weights.length; at += size) found.push(...quantised(weights.slice(at, at + size), size, set));
  return found;
}

function packed(size, set) {
  const codes = all(size, set).map((q) => q.code);
  const zero = set.midpoints.reduce((n, m) => n + (0 > m), 0);  // fills up an odd end
  return Array.from({ length: Math.ceil(codes.length / 2) }, (_, i) => codes[2 * i] << 4 | (codes[2 * i + 1] ?? zero));
}

const size = choice("Block size", data.blocks);
const set = choice("Levels", data.sets.map((s) => s.name));
const which = slider("Weight", weights.length - 1, 17);
if (data.blocks.includes(64)) size.control.value = data.blocks.indexOf(64);

function update() {
  const n = data.blocks[size()], chosen = data.sets[set()], i = which();
  const start = i - i % n, block = quantised(weights.slice(start, start + n), n, chosen);
  const at = i - start, q = block[at], half = i % 2 ? "low" : "high";
  const byte = packed(n, chosen)[i >> 1].toString(16).padStart(2, "0");
  const error = q.back - q.w, off = error ? `off by ${short(error)}` : "which is exact";
  say(`Weight ${i} is ${short(q.w)}. The largest magnitude of its block of ${n} is ${short(q.scale)}; divided by it, it is `
    + `${short(q.scaled)}, and the nearest level is number ${q.code}, ${short(chosen.levels[q.code])}. In bits `
    + `${q.code.toString(2).padStart(4, "0")}, the ${half} half of byte ${i >> 1}, 0x${byte}. Back: ${short(q.back)}, ${off}.`);
  picture(block, at, chosen, q);
  table(["weight", "value", "divided", "level", "bits", "back", "error"], block.map((b, k) => [start + k, short(b.w),
    short(b.scaled), b.code, b.code.toString(2).padStart(4, "0"), short(b.back), short(b.back - b.w, 2)]), at);
}

function picture(block, at, { levels, midpoints }, q) {
  const shapes = [], wide = (room() - 20) / block.length, x = (v) => 14 + (room() - 28) * (v + 1) / 2;
  shapes.push(["rect", { x: 10 + at * wide, y: 18, width: Math.max(wide, 3), height: 104, fill: "var(--faint)" }]);
  block.forEach((b, k) => {
    const high = 50 * Math.abs(b.w) / (q.scale || 1), left = 10 + k * wide;
    shapes.push(["rect", { x: left, y: b.w < 0 ? 70 : 70 - high, width: Math.max(1, wide - 1), height: Math.max(high, 0.5),
      fill: k === at ? "var(--orange)" : "var(--line)" }]);
    shapes.push(["line", { x1: left, x2: left + Math.max(1, wide - 1), y1: 70 - 50 * b.back / (q.scale || 1),
      y2: 70 - 50 * b.back / (q.scale || 1), stroke: "var(--blue)", "stroke-width": 2 }]);
  });
  shapes.push(["text", { x: 10, y: 14 }, "The block: its weights; in blue, what comes back"]);
  for (const m of midpoints) shapes.push(["line", { x1: x(m), x2: x(m), y1: 176, y2: 196, stroke: "var(--line)",
    "stroke-dasharray": "2 3" }]);
  levels.forEach((level, k) => {
    const mine = k === q.code;
    shapes.push(["line", { x1: x(level), x2: x(level), y1: 170, y2: 202, stroke: mine ? "var(--orange)" : "var(--blue)",
      "stroke-width": mine ? 4 : 2 }]);
    shapes.push(["text", { x: x(level), y: 220, "text-anchor": "middle" }, k]);
  });
  shapes.push(["path", { d: `M${x(q.scaled)} 168 l-6 -12 h12 z`, fill: "var(--orange)" }]);
  shapes.push(["text", { x: 10, y: 146 }, "Divided by the scale; levels blue, their ends dashed"]);
  draw(230, `A block of ${block.length} weights, and weight ${at} of it between ${levels.length} levels: at `
    + `${short(q.scaled)}, nearest to level ${q.code}.`, shapes);
}

update();
