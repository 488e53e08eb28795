// Everything was judged beforehand, each answer by each property: switching one off leaves its column out of account.
const { properties, rows } = data;
const quoted = (name) => `“${name}”`;
const ended = (sentence) => (/[.?!]$/.test(sentence) ? sentence : `${sentence}.`);
const pen = document.createElement("canvas").getContext("2d");
pen.font = "12px system-ui, sans-serif";  // the drawing's letters
const width = (words) => pen.measureText(words).width;
const fit = (words, pixels) => (width(words) <= pixels || words.length < 2 ? words
  : fit(`${words.replace(/.…?$/u, "")}…`, pixels));

const switched = boxes("Properties that are on", properties);
const which = choice("Look at", rows.map((r) => (r.kind === "yours" ? `${r.name} (yours)` : r.name)));

// The numbers of the properties that catch an answer: of those that are on, or of all.
const catching = ({ found }, on = properties) => found.flatMap((f, p) => (f && on[p] ? [p] : []));
const verb = (r) => (r.kind === "mistake" ? "caught" : "refused");
const of = (kind) => rows.filter((r) => r.kind === kind);

function update() {
  const on = switched(), i = which();
  const sentences = [counted(on), refused("right", on), refused("yours", on), looked(rows[i], on)];
  say(sentences.filter(Boolean).join(" "));
  picture(on, i);
  const told = (r) => (f) => (f ? `${verb(r)}: ${ended(f.said)}${f.case ? ` Case: ${f.case}` : ""}` : "passes");
  table(["answer", "by those that are on", ...properties.map((p, k) => (on[k] ? p : `${p} (off)`))],
    rows.map((r) => [r.name, verdict(r, on), ...r.found.map(told(r))]), i);
  for (const cell of place.numbers.querySelectorAll("th, td")) {
    const sentence = cell.textContent.length > 30;
    cell.style.cssText = `white-space: normal; text-align: left; vertical-align: top; min-width: ${sentence ? 16 : 6}rem`;
  }
}

function counted(on) {
  const many = on.filter(Boolean).length, mistakes = of("mistake");
  if (!many) return `None of the ${properties.length} properties is on: no mistake is caught.`;
  const through = mistakes.filter((r) => !catching(r, on).length), caught = mistakes.length - through.length;
  const would = (r) => catching(r).map((p) => quoted(properties[p])).join(" or ") || "none";
  const named = through.slice(0, 2).map((r) => `${quoted(r.name)} (${would(r)} would)`);
  if (through.length > 2) named.push(`${through.length - 2} more`);
  const catches = many === 1 ? "is on: it catches" : "are on: they catch";
  return `${many} of ${properties.length} properties ${catches} ${caught} of ${mistakes.length} mistakes.`
    + `${named.length ? ` Not caught: ${named.join(", ")}.` : ""}`;
}

function refused(kind, on) {
  const all = of(kind), many = all.filter((r) => catching(r, on).length).length;
  if (!all.length) return "";
  const own = all.length === 1 ? "yours" : `your ${all.length} answers`;
  const whose = kind === "right" ? `the ${all.length} right answers` : own;
  return `Of ${whose} ${many || "none"} ${many > 1 ? "are" : "is"} refused.`;
}

// What became of one answer, with the smallest case of the first property that catches it.
function looked(r, on) {
  const able = catching(r), now = catching(r, on), p = now.length ? now[0] : able[0];
  const name = quoted(r.name) + (r.source ? `, found in ${r.source},` : "");
  if (!able.length) return `${name} passes ${properties.length === 1 ? "it" : `all ${properties.length}`}.`;
  const by = now.length ? `is ${verb(r)} by ${quoted(properties[p])}`
    : `${verdict(r, on)}, but ${quoted(properties[p])}, which is off, would catch it`;
  const more = now.length > 1 ? ` ${now.length - 1} more ${now.length > 2 ? "catch" : "catches"} it too.` : "";
  const { said, case: smallest } = r.found[p];
  return `${name} ${by}: ${ended(said)}${smallest ? ` The smallest case found: ${ended(smallest)}` : ""}${more}`
    + `${r.hint ? ` Hint: ${r.hint}` : ""}`;
}

function verdict(r, on) {
  const many = catching(r, on).length;
  return many ? `${verb(r)} by ${many}` : r.kind === "mistake" ? "slips through" : "passes";
}

const HEADS = { mistake: "Known mistakes", right: "Right answers", yours: "Yours" };
const column = (p) => 14 + 28 * p;
const text = (x, y, words, more = {}) => ["text", { x, y, ...more }, words];

function mark(x, y, caught, on, color) {
  if (!caught) return [["circle", { cx: x, cy: y, r: 2.5, fill: "var(--line)" }]];
  const box = { x: x - 9, y: y - 9, width: 18, height: 18, rx: 2 };
  const outline = { fill: "none", stroke: "var(--line)", "stroke-width": 1.5, "stroke-dasharray": "3 2" };
  if (!on) return [["rect", { ...box, ...outline }]];
  const cross = `M${x - 5} ${y - 5} l10 10 m0 -10 l-10 10`;
  return [["rect", { ...box, fill: color }], ["path", { d: cross, stroke: "var(--paper)", "stroke-width": 2.5 }]];
}

// A stair of names: each begins above its column, and a line leads down from it.
function stair(on, foot) {
  return properties.flatMap((p, k) => [
    text(column(k) - 4, 14 + 18 * k, fit(on[k] ? p : `${p} (off)`, room() - column(k))),
    ["line", { x1: column(k), x2: column(k), y1: 18 + 18 * k, y2: foot, stroke: "var(--line)",
      ...(on[k] ? {} : { "stroke-dasharray": "2 3" }) }],
  ]);
}

// One answer: its marks, its name, and what became of it, which on a phone stands below the name.
function answer(r, y, on, { names, broad, high, end }) {
  const middle = y + high / 2, color = r.kind === "mistake" ? "var(--green)" : "var(--orange)";
  const told = verdict(r, on), open = told === "slips through", line = broad ? middle + 4 : y + 16;
  return [
    ...r.found.flatMap((f, k) => mark(column(k), middle, f, on[k], color)),
    text(names, line, fit(r.name, end - names - (broad ? 100 : 0))),
    text(broad ? end - 4 : names, broad ? line : line + 15, open ? `▸ ${told}` : told, {
      "text-anchor": broad ? "end" : "start", style: open ? "fill: var(--orange); font-weight: 600" : "" }),
  ];
}

function legend(y) {
  let x = column(0);
  return [["caught", 1, 1], ["would be, were it on", 1, 0], ["passes", 0, 0]].flatMap(([words, caught, lit]) => {
    const at = x;
    x += 40 + width(words);
    return [...mark(at, y, caught, lit, "var(--green)"), text(at + 15, y + 4, words)];
  });
}

function picture(on, picked) {
  const names = column(properties.length), broad = room() - names >= 400, high = broad ? 25 : 38;
  const end = broad ? names + 400 : room(), foot = 18 * properties.length + 6, shapes = stair(on, foot);
  let y = foot;
  for (const kind of ["mistake", "right", "yours"]) {
    if (!of(kind).length) continue;
    shapes.push(text(names, y + 18, HEADS[kind], { style: "font-weight: 600" }));
    y += 24;
    for (const r of of(kind)) {
      if (r === rows[picked]) shapes.push(["rect", { x: 0, y, width: end, height: high, fill: "var(--faint)" }]);
      shapes.push(...answer(r, y, on, { names, broad, high, end }));
      y += high;
    }
    if (kind !== "mistake") continue;
    properties.forEach((_, k) => shapes.push(text(column(k), y + 16, of(kind).filter((r) => r.found[k]).length,
      { "text-anchor": "middle" })));
    shapes.push(text(names, y + 16, fit("mistakes that it catches", room() - names)));
    y += 26;
  }
  const through = of("mistake").filter((r) => !catching(r, on).length).length;
  draw(y + 32, `A grid of ${rows.length} answers against ${properties.length} properties, ${on.filter(Boolean).length} `
    + `of them on: ${of("mistake").length - through} of the mistakes are caught, ${through} slip through.`,
  [...shapes, ...legend(y + 16)]);
}

update();
