// What each thread does between two barriers, as the engine's runtime saw it; the pairs that race were found there, too.
const longest = Math.max(...data.versions.map((v) => v.stretches.length));
const which = choice("Kernel", data.versions.map((v) => v.name));
const stretch = slider("Stretch", longest - 1, 0, (k) => String(k + 1));
const thread = slider("Thread", data.threads - 1);

const did = (a) => `${a.verb} place ${a.place} (${a.value})`;

function update() {
  const version = data.versions[which()], last = version.stretches.length - 1, k = Math.min(stretch(), last), t = thread();
  const steps = version.stretches[k] ?? [], races = version.races[k] ?? [], own = steps[t] ?? [];
  const mine = races.find(([a, , b]) => a === t || b === t) ?? races[0];
  const results = Object.entries(version.results).map(([order, result]) => `${order} ${result}`).join(", ");
  const total = version.races.reduce((n, r) => n + r.length, 0);
  say(`${version.name}, stretch ${k + 1} of ${last + 1}${k < stretch() ? " (it has no more)" : ""}: thread ${t} `
    + (own.length ? `${own.map(did).join(", then ")}.` : "does nothing in shared memory.")
    + (mine ? ` A race: ${told(steps, mine)}, and nothing says who is first.` : " No two of them meet here without an order.")
    + (version.stopped ? ` The kernel was stopped: ${version.stopped}.` : "")
    + ` In all stretches ${total} pairs race. Results with the threads in turn, ${results}.`);
  picture(version, steps, races, mine, t, k);
  table(["thread", "does", "place", "value", "line", "races"], steps.flatMap((all, n) => all.map((a) => [n, a.verb, a.place,
    a.value, `${a.line}: ${a.text}`, a.races ? "yes" : ""])), steps.slice(0, t).reduce((n, all) => n + all.length, 0));
}

function told(steps, [a, i, b, j]) {
  const one = steps[a][i], other = steps[b][j];
  return `thread ${a} ${one.verb} place ${one.place} in line ${one.line}, thread ${b} ${other.verb} it in line ${other.line}`;
}

function picture(version, steps, races, mine, t, k) {
  const most = Math.max(1, ...steps.map((all) => all.length)), high = 26, left = 62;
  const wide = Math.min(76, (room() - left - 8) / most), shapes = [];
  const centre = (n, i) => [left + wide * i + wide / 2, 28 + high * n + high / 2];
  shapes.push(["text", { x: 4, y: 14 }, k ? "After a barrier" : "From the start"]);
  shapes.push(["line", { x1: left - 4, x2: left - 4, y1: 22, y2: 30 + high * steps.length, stroke: "var(--ink)",
    "stroke-width": k ? 4 : 1 }]);
  if (mine) {
    const [x1, y1] = centre(mine[0], mine[1]), [x2, y2] = centre(mine[2], mine[3]);
    shapes.push(["line", { x1, y1, x2, y2, stroke: "var(--orange)", "stroke-width": 3, "stroke-dasharray": "5 3" }]);
  }
  steps.forEach((all, n) => {
    const own = n === t ? 700 : 400;
    shapes.push(["text", { x: 4, y: centre(n, 0)[1] + 4, "font-weight": own }, `thread ${n}`]);
    all.forEach((a, i) => {
      const [x, y] = centre(n, i), writes = a.verb !== "reads";
      shapes.push(["rect", { x: x - wide / 2 + 3, y: y - 10, width: wide - 6, height: 20, rx: 3,
        fill: writes ? "var(--blue)" : "var(--paper)", stroke: a.races ? "var(--orange)" : "var(--blue)",
        "stroke-width": a.races ? 4 : n === t ? 2.5 : 1 }]);
      shapes.push(["text", { x, y: y + 4, "text-anchor": "middle", "font-weight": own,
        style: `stroke: none; ${writes ? "fill: var(--paper)" : ""}` }, `${writes ? "w" : "r"} ${a.place}`]);
    });
  });
  const low = 30 + high * steps.length;
  shapes.push(["text", { x: 4, y: low + 16 }, races.length ? "Orange: two threads, one place, one writes" : "What one thread writes here, no other touches"]);
  draw(low + 24, `${steps.length} threads in stretch ${k + 1} of ${version.name}; ${races.length} pairs race.`, shapes);
}

update();
