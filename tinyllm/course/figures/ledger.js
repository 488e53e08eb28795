// Bytes by part for each model and method; JavaScript adds up and compares, the parts are the engine's plan.
const NAMES = { base: "base weights", adapters: "adapters", gradients: "gradients", optimizer: "optimiser",
  activations: "activations", head: "head and loss", tiles: "unpacked tiles" };
const which = slider("Model", data.models.length - 1, data.models.length - 1, (i) => data.models[i].name);
const how = choice("Training", data.methods.map((m) => m.name));
how.control.value = data.methods.length - 1;

const sum = (held) => Object.values(held).reduce((a, b) => a + b, 0);

function update() {
  const model = data.models[which()], method = data.methods[how()], held = model.held[method.key], total = sum(held);
  const parts = Object.entries(held).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
  const fits = data.rooms.find((r) => total <= r.bytes);
  say(`${model.name}, ${(model.parameters / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} million parameters, ${method.name}, `
    + `a step of ${data.step}: ${bytes(total)}. Its largest part is ${NAMES[parts[0][0]]}, ${bytes(parts[0][1])}. `
    + (fits ? `It fits into a ${fits.name}.` : "It fits into none of the three machines."));
  picture(model, method, total);
  table(["part", ...data.methods.map((m) => m.name)], [...Object.keys(held).map((part) => [NAMES[part] ?? part,
    ...data.methods.map((m) => bytes(model.held[m.key][part]))]), ["sum", ...data.methods.map((m) => bytes(sum(model.held[m.key])))]]);
}

function picture(model, method, total) {
  const sums = data.methods.map((m) => sum(model.held[m.key])), most = Math.max(...sums), wide = room() - 16;
  const shapes = [], low = 40 * sums.length, rooms = data.rooms.filter((r) => r.bytes <= 1.05 * most);
  const bar = (y, n, of, fill) => ["rect", { x: 8, y, width: Math.max(1, wide * n / of), height: 14, fill }];
  data.methods.forEach((m, i) => shapes.push(bar(40 * i + 20, sums[i], most, m === method ? "var(--orange)" : "var(--line)")));
  rooms.forEach((r, i) => {
    const x = 8 + wide * r.bytes / most, right = x > wide / 2;
    shapes.push(["line", { x1: x, x2: x, y1: 14, y2: low + 16 * i, stroke: "var(--ink)", "stroke-dasharray": "4 3" }]);
    shapes.push(["text", { x: right ? x - 4 : x + 4, y: low + 10 + 16 * i, "text-anchor": right ? "end" : "start" }, r.name]);
  });
  data.methods.forEach((m, i) => shapes.push(["text", { x: 8, y: 40 * i + 14, "font-weight": m === method ? 700 : 400 },
    `${m.name}: ${bytes(sums[i])}`]));
  const parts = Object.entries(model.held[method.key]).filter(([, n]) => n > 0), start = low + 16 * rooms.length + 16;
  parts.forEach(([part, n], i) => {
    shapes.push(bar(start + 36 * i + 18, n, Math.max(...parts.map((p) => p[1])), "var(--blue)"));
    shapes.push(["text", { x: 8, y: start + 36 * i + 12 }, `${NAMES[part] ?? part}: ${bytes(n)}, ${(100 * n / total).toFixed(1)} %`]);
  });
  draw(start + 36 * parts.length, `${model.name}: ${data.methods.map((m, i) => `${m.name} ${bytes(sums[i])}`).join(", ")}.`, shapes);
}

update();
